# SPDX-License-Identifier: Apache-2.0
"""A block of a ResNet for small images, layer by layer."""

from __future__ import annotations

from typing import Any

from keras.layers import Add, ReLU, ZeroPadding2D

from keras_branchy.layers.residual_block import batch_norm, conv3x3
from keras_branchy.layers.stochastic_depth import StochasticDepth
from keras_branchy.layers.zero_padded_shortcut import ZeroPaddedShortcut

__all__ = ["residual_block"]


def residual_block(
    x: Any, filters: int, name: str, strides: int = 1, survival: float | None = None
) -> Any:
    """Two 3x3 convolutions beside a shortcut: [B, H, W, C] -> [B, H/s, W/s, filters]."""
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = ZeroPaddedShortcut(filters, strides, name=f"{name}_shortcut")(x)
    if strides != 1:
        # One pixel to each side; "same" would pad one side only.
        x = ZeroPadding2D(1, name=f"{name}_pad")(x)
    padding = "valid" if strides != 1 else "same"
    x = conv3x3(filters, f"{name}_conv1", strides=strides, padding=padding)(x)
    x = batch_norm(f"{name}_bn1")(x)
    x = ReLU(name=f"{name}_relu1")(x)
    x = conv3x3(filters, f"{name}_conv2", padding="same")(x)
    x = batch_norm(f"{name}_bn2")(x)
    if survival is not None:
        x = StochasticDepth(survival, name=f"{name}_survival")(x)
    x = Add(name=f"{name}_add")([x, shortcut])
    return ReLU(name=f"{name}_out")(x)
