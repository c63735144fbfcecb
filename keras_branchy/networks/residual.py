# SPDX-License-Identifier: Apache-2.0
"""The residual block of ResNets for small images, with a shortcut without parameters."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras.layers import Add, BatchNormalization, Conv2D, ReLU, ZeroPadding2D

from keras_branchy.cost import register
from keras_branchy.networks.stochastic_depth import StochasticDepth

__all__ = ["ResidualBlock", "ZeroPaddedShortcut", "batch_norm", "residual_block"]


@keras.saving.register_keras_serializable(package="keras_branchy")
class ZeroPaddedShortcut(keras.layers.Layer):
    """Takes every other row and column, and puts channels of zeros in front.

    The shortcut without parameters of He et al. (arXiv 1512.03385, option A), where a
    block halves the image and widens the channels.

    Args:
        filters: Channels of the output, at least those of the input.
        strides: Distance of the rows and columns taken.
        **kwargs: As for every layer.

    Input shape:
        [B, H, W, C], any floating dtype.

    Output shape:
        [B, ⌈H / strides⌉, ⌈W / strides⌉, filters].

    Raises:
        ValueError: If `filters` is less than the channels of the input.

    Example:

    ```python
    import numpy as np
    from keras_branchy.networks import ZeroPaddedShortcut

    shortcut = ZeroPaddedShortcut(3)(np.ones((1, 4, 4, 2), "float32"))
    assert shortcut.shape == (1, 2, 2, 3)
    np.testing.assert_array_equal(np.array(shortcut)[0, 0, 0], [0, 1, 1])
    ```
    """

    def __init__(self, filters: int, strides: int = 2, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides

    def build(self, input_shape: Any) -> None:
        if input_shape[-1] > self.filters:
            raise ValueError(
                "`filters` must be at least the number of channels that arrive. Received: "
                f"filters={self.filters} and features of shape {tuple(input_shape)}."
            )
        self.built = True

    def call(self, inputs: Any) -> Any:
        taken = inputs[:, :: self.strides, :: self.strides]
        lacking = self.filters - inputs.shape[-1]
        return ops.pad(taken, [(0, 0), (0, 0), (0, 0), (lacking, 0)])

    def compute_output_shape(self, input_shape: Any) -> tuple:
        batch, *sizes, _ = input_shape
        return (batch, *(size and -(-size // self.strides) for size in sizes), self.filters)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


register(ZeroPaddedShortcut, lambda layer, inputs, outputs: 0)


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
    x = _conv(filters, f"{name}_conv1", strides=strides, padding=padding)(x)
    x = batch_norm(f"{name}_bn1")(x)
    x = ReLU(name=f"{name}_relu1")(x)
    x = _conv(filters, f"{name}_conv2", padding="same")(x)
    x = batch_norm(f"{name}_bn2")(x)
    if survival is not None:
        x = StochasticDepth(survival, name=f"{name}_survival")(x)
    x = Add(name=f"{name}_add")([x, shortcut])
    return ReLU(name=f"{name}_out")(x)


def batch_norm(name: str, **options: Any) -> BatchNormalization:
    """As Chainer's: decay 0.9, epsilon 2e-5."""
    return BatchNormalization(momentum=0.9, epsilon=2e-5, name=name, **options)


def _conv(filters: int, name: str, **options: Any) -> Conv2D:
    return Conv2D(filters, 3, kernel_initializer="he_normal", name=name, **options)


@keras.saving.register_keras_serializable(package="keras_branchy")
class ResidualBlock(keras.layers.Layer):
    """`residual_block` without strides as one layer, for the head of an exit.

    Args:
        filters: Channels, those of the input too.
        **kwargs: As for every layer.

    Input shape:
        [B, H, W, filters], any floating dtype.

    Output shape:
        As the input.

    Example:

    ```python
    import numpy as np
    from keras_branchy.networks import ResidualBlock

    assert ResidualBlock(4)(np.ones((1, 8, 8, 4), "float32")).shape == (1, 8, 8, 4)
    ```
    """

    def __init__(self, filters: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        same = {"padding": "same", "dtype": self.dtype_policy}
        self.conv1 = _conv(filters, "conv1", **same)
        self.bn1 = batch_norm("bn1", dtype=self.dtype_policy)
        self.conv2 = _conv(filters, "conv2", **same)
        self.bn2 = batch_norm("bn2", dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        for layer in (self.conv1, self.bn1, self.conv2, self.bn2):
            layer.build(input_shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = ops.relu(self.bn1(self.conv1(inputs), training=training))
        return ops.relu(self.bn2(self.conv2(x), training=training) + inputs)

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


def _block_macs(layer: Any, inputs: list, outputs: list) -> int:
    _, height, width, channels = outputs[0]
    return 2 * height * width * 9 * channels * channels


register(ResidualBlock, _block_macs)
