# SPDX-License-Identifier: Apache-2.0
"""ResidualBlock: two convolutions beside the identity, as one layer."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras.layers import BatchNormalization, Conv2D

__all__ = ["ResidualBlock", "batch_norm", "conv3x3"]


@keras.saving.register_keras_serializable(package="keras_branchy")
class ResidualBlock(keras.layers.Layer):
    """A residual block of ResNets for small images, for the head of an exit.

    `relu(x + norm(conv(relu(norm(conv(x))))))`, both convolutions 3x3, without strides.
    Normalization is Chainer's: decay 0.9, epsilon 2e-5.

    Args:
        filters: Channels, those of the input too.
        **kwargs: As for every layer.

    Input shape:
        [B, H, W, filters], any floating dtype.

    Output shape:
        As the input.

    Raises:
        ValueError: If the input has another number of channels.

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
        self.conv1 = conv3x3(filters, "conv1", **same)
        self.bn1 = batch_norm("bn1", dtype=self.dtype_policy)
        self.conv2 = conv3x3(filters, "conv2", **same)
        self.bn2 = batch_norm("bn2", dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        if input_shape[-1] != self.filters:
            raise ValueError(
                "`filters` must be the number of channels that arrive, since they are "
                f"added to what leaves. Received: filters={self.filters} and features of "
                f"shape {tuple(input_shape)}. Put a convolution in front, or pass "
                f"filters={input_shape[-1]}."
            )
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


def batch_norm(name: str, **options: Any) -> BatchNormalization:
    """As Chainer's: decay 0.9, epsilon 2e-5."""
    return BatchNormalization(momentum=0.9, epsilon=2e-5, name=name, **options)


def conv3x3(filters: int, name: str, **options: Any) -> Conv2D:
    """3x3, for what a ReLU follows."""
    return Conv2D(filters, 3, kernel_initializer="he_normal", name=name, **options)
