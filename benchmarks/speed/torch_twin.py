# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules from the specifications of graph_spec.py; neither Keras nor TensorFlow.

Images are [B, C, H, W] in here, in the memory format that they come in; where they are
flattened they are put channels-last, so that dense kernels of Keras fit.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Twin(nn.Module):
    """A graph: a dict of tensors by name in, a dict of tensors by name out."""

    def __init__(self, spec):
        super().__init__()
        self.inputs, self.outputs = spec["inputs"], spec["outputs"]
        self.wiring, layers = [], []
        for step in spec["steps"]:
            self.wiring.append((tuple(step["reads"]), step["makes"]))
            layers.append(STEPS[step["op"]](step))
        self.layers = nn.ModuleList(layers)

    def forward(self, tensors):
        known = {key: tensors[name] for name, key in self.inputs.items()}
        for layer, (reads, makes) in zip(self.layers, self.wiring, strict=True):
            known[makes] = layer(*[known[key] for key in reads])
        return {name: known[key] for name, key in self.outputs.items()}


def same_padding(size, window, stride, dilation=1):
    """What Keras' "same" adds in front and behind."""
    reach = dilation * (window - 1) + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def padded(x, window, strides, dilation=(1, 1), value=0.0):
    """`x` padded as "same" needs it, and the symmetric rest for the operation itself."""
    rows = same_padding(x.shape[2], window[0], strides[0], dilation[0])
    columns = same_padding(x.shape[3], window[1], strides[1], dilation[1])
    if rows[0] == rows[1] and columns[0] == columns[1]:
        return x, (rows[0], columns[0])
    return F.pad(x, (*columns, *rows), value=value), (0, 0)


class Conv(nn.Module):
    def __init__(self, step):
        super().__init__()
        kernel = torch.from_numpy(step["kernel"])  # [rows, columns, in, out]
        self.groups = step["groups"]
        if step["op"] == "depthwise":
            rows, columns, channels, times = kernel.shape
            kernel = kernel.reshape(rows, columns, 1, channels * times)
            self.groups = channels
        self.weight = nn.Parameter(kernel.permute(3, 2, 0, 1).contiguous())
        bias = step["bias"]
        self.bias = None if bias is None else nn.Parameter(torch.from_numpy(bias))
        self.window = tuple(kernel.shape[:2])
        self.strides, self.dilation = step["strides"], step["dilation"]
        self.same = step["padding"] == "same"

    def forward(self, x):
        rest = (0, 0)
        if self.same:
            x, rest = padded(x, self.window, self.strides, self.dilation)
        given = self.strides, rest, self.dilation, self.groups
        return F.conv2d(x, self.weight, self.bias, *given)


class Dense(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(step["kernel"]).t().contiguous())
        bias = step["bias"]
        self.bias = None if bias is None else nn.Parameter(torch.from_numpy(bias))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


def batch_norm(step):
    layer = nn.BatchNorm2d(len(step["mean"]), eps=step["epsilon"])
    layer.weight.data = torch.from_numpy(step["gamma"])
    layer.bias.data = torch.from_numpy(step["beta"])
    layer.running_mean = torch.from_numpy(step["mean"])
    layer.running_var = torch.from_numpy(step["variance"])
    return layer


class Pool(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.maximum = step["op"] == "max_pool"
        self.size, self.strides = step["size"], step["strides"]
        self.same = step["padding"] == "same"

    def forward(self, x):
        rest, image = (0, 0), x
        if self.same:
            x, rest = padded(x, self.size, self.strides, value=float("-inf"))
        if self.maximum:
            return F.max_pool2d(x, self.size, self.strides, rest)
        if x is not image:
            raise ValueError('average pooling has no twin where "same" pads unevenly')
        return F.avg_pool2d(x, self.size, self.strides, rest, count_include_pad=False)


class Function(nn.Module):
    """A step without weights."""

    def __init__(self, step, apply):
        super().__init__()
        self.step, self.apply_to = step, apply

    def forward(self, *tensors):
        return self.apply_to(self.step, *tensors)


def activation(step):
    names = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "hard_swish": nn.Hardswish,
    }
    return nn.Softmax(-1) if step["name"] == "softmax" else names[step["name"]]()


def flatten(step, x):
    return x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x.flatten(1)


def global_average(step, x):
    return x.mean((2, 3), keepdim=step["keepdims"])


def pad(step, x):
    (top, bottom), (left, right) = step["amounts"]
    return F.pad(x, (left, right, top, bottom))


def add(step, first, *others):
    for other in others:
        first = first + other
    return first


def concatenate(step, *tensors):
    return torch.cat(tensors, 1)


def scale(step, x):
    return x * float(step["scale"]) + float(step["offset"])


def lrn(step, x):
    """As keras_branchy.layers.LocalResponseNormalization computes it."""
    radius, channels = step["depth_radius"], x.shape[1]
    squares = F.pad(x * x, (0, 0, 0, 0, radius, radius))
    total = squares[:, :channels]
    for start in range(1, 2 * radius + 1):
        total = total + squares[:, start : start + channels]
    inner = step["bias"] + step["alpha"] * total
    if step["beta"] == 0.75:
        root = torch.rsqrt(inner)
        return x * (root * torch.sqrt(root))
    return x * inner ** -step["beta"]


def shortcut(step, x):
    strides, lacking = step["strides"], step["filters"] - x.shape[1]
    return F.pad(x[:, :, ::strides, ::strides], (0, 0, 0, 0, lacking, 0))


def without_weights(apply):
    return lambda step: Function(step, apply)


STEPS = {
    "conv": Conv,
    "depthwise": Conv,
    "dense": Dense,
    "batch_norm": batch_norm,
    "max_pool": Pool,
    "average_pool": Pool,
    "activation": activation,
    **{
        name: without_weights(apply)
        for name, apply in {
            "flatten": flatten,
            "global_average": global_average,
            "pad": pad,
            "add": add,
            "concatenate": concatenate,
            "scale": scale,
            "lrn": lrn,
            "shortcut": shortcut,
        }.items()
    },
}
