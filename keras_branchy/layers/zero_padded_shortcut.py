# SPDX-License-Identifier: Apache-2.0
"""ZeroPaddedShortcut: past a block that halves the image, without parameters."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["ZeroPaddedShortcut"]


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
