# SPDX-License-Identifier: Apache-2.0
"""Layers as the published networks have them: NumPy, float64, channels first."""

import numpy as np

EPSILON = 2e-5  # of Chainer's batch normalization


def conv(x, weights, pad=0, stride=1):
    """[B, C, H, W] with kernels [O, C, h, w] and a bias [O]."""
    kernel, bias = weights
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))
    windows = windows[:, :, ::stride, ::stride]
    return (
        np.einsum("bcyxhw,ochw->boyx", windows, kernel, optimize=True) + bias[:, None, None]
    )


def max_pool(x, size, stride):
    """Windows start while they hold a pixel that none has held yet (cover_all)."""
    spare = [(0, 0), (0, 0)]
    for length in x.shape[2:]:
        steps = -(-(length - size) // stride)
        spare.append((0, steps * stride + size - length))
    x = np.pad(x, spare, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    return windows[:, :, ::stride, ::stride].max((-2, -1))


def average_pool(x, size, stride):
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    return windows[:, :, ::stride, ::stride].mean((-2, -1))


def relu(x):
    return np.maximum(x, 0)


def lrn(x, n=3, k=2.0, alpha=5e-5, beta=0.75):
    """Chainer's local_response_normalization, one channel after another."""
    half, channels = n // 2, x.shape[1]
    y = np.empty_like(x)
    for c in range(channels):
        near = x[:, max(0, c - half) : min(channels, c + half + 1)]
        y[:, c] = x[:, c] / (k + alpha * (near**2).sum(1)) ** beta
    return y


def batch_norm(x, weights, epsilon=EPSILON):
    """With the statistics that were gathered: gamma, beta, mean and variance."""
    gamma, beta, mean, variance = (value[:, None, None] for value in weights)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def shortcut(x, filters, stride):
    """Every other pixel, behind channels of zeros."""
    x = x[:, :, ::stride, ::stride]
    zeros = np.zeros((len(x), filters - x.shape[1], *x.shape[2:]))
    return np.concatenate([zeros, x], 1)


def fully_connected(x, weights):
    return x.reshape(len(x), -1) @ weights[0].T + weights[1]


def channels_first(kernel, shape=None):
    """A kernel of Keras as published: [O, C, h, w], or [out, in] for features `shape`.

    `shape` is [rows, columns, channels] of the features that were flattened.
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    rows, columns, channels = shape
    kernel = kernel.reshape(rows, columns, channels, -1).transpose(3, 2, 0, 1)
    return kernel.reshape(len(kernel), -1)


class Weights:
    """The weights of a Keras model or layer by the end of their paths, channels first."""

    def __init__(self, owner):
        self.found = {}
        for weight in owner.weights:
            self.found.setdefault("/".join(weight.path.split("/")[-2:]), weight)

    def conv(self, name):
        bias = self.found.get(f"{name}/bias")
        kernel = channels_first(self.found[f"{name}/kernel"])
        return kernel, np.zeros(len(kernel)) if bias is None else np.asarray(bias, float)

    def norm(self, name):
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        return [np.asarray(self.found[f"{name}/{part}"], float) for part in parts]

    def dense(self, name, shape):
        kernel, bias = (self.found[f"{name}/{part}"] for part in ("kernel", "bias"))
        return channels_first(kernel, shape), np.asarray(bias, float)


def randomize(model, rng, gain=2.0):
    """Draws weights that let signals pass, and statistics that are not 0 and 1."""
    for weight in model.weights:
        shape, kind = tuple(weight.shape), weight.path.split("/")[-1]
        if kind == "kernel":
            drawn = gain * rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        elif kind in ("gamma", "moving_variance"):
            drawn = rng.uniform(0.5, 1.5, shape)
        else:
            drawn = rng.normal(0, 0.25, shape)
        weight.assign(drawn)
