# SPDX-License-Identifier: Apache-2.0
"""LocalResponseNormalization: each value divided by what its neighbouring channels hold."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["LocalResponseNormalization"]


@keras.saving.register_keras_serializable(package="keras_branchy")
class LocalResponseNormalization(keras.layers.Layer):
    """Divides each value by a power of the squares in the channels around it.

    `y[c] = x[c] / (bias + alpha · Σ x[j]²) ** beta`, the sum over the channels j within
    `depth_radius` of c, `alpha` not divided by their number: as in AlexNet (Krizhevsky,
    Sutskever and Hinton, 2012) and in Chainer. It is written in `keras.ops`, so that it
    trains on every backend, and becomes additions, products and square roots in exported
    files, where LiteRT's own normalization would run outside its fast kernels. Under
    float16 and bfloat16 it computes in float32, since squares soon overflow.

    Args:
        depth_radius: Channels to each side that count; 1 is a window of three.
        bias: Added to the sum. Positive.
        alpha: Weight of the sum. Not negative.
        beta: The exponent. 0.75, 0.5 and 1 take square roots only.
        **kwargs: As for every layer.

    Input shape:
        [B, …, C], any floating dtype, channels last.

    Output shape:
        As the input.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    import numpy as np
    from keras_branchy.networks import LocalResponseNormalization

    images = np.ones((1, 2, 2, 3), "float32")
    normalized = np.array(LocalResponseNormalization(bias=1.0, alpha=1.0, beta=1.0)(images))
    np.testing.assert_allclose(normalized[0, 0, 0], [1 / 3, 1 / 4, 1 / 3], rtol=1e-6)
    ```
    """

    def __init__(
        self,
        depth_radius: int = 1,
        *,
        bias: float = 2.0,
        alpha: float = 5e-5,
        beta: float = 0.75,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if depth_radius != int(depth_radius) or depth_radius < 0:
            raise ValueError(
                "`depth_radius` must be a whole number of channels to each side, at least "
                f"0. Received: depth_radius={depth_radius!r}."
            )
        if bias <= 0 or alpha < 0:
            raise ValueError(
                "`bias` must be positive and `alpha` not negative, or what is divided by "
                f"may be 0. Received: bias={bias!r}, alpha={alpha!r}."
            )
        self.depth_radius = int(depth_radius)
        self.bias = float(bias)
        self.alpha = float(alpha)
        self.beta = float(beta)

    def call(self, inputs: Any) -> Any:
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        radius, channels = self.depth_radius, x.shape[-1]
        squares = ops.pad(ops.square(x), [(0, 0)] * (len(x.shape) - 1) + [(radius, radius)])
        total = squares[..., :channels]
        for start in range(1, 2 * radius + 1):
            total = total + squares[..., start : start + channels]
        normalized = x * self._power(self.bias + self.alpha * total)
        return ops.cast(normalized, inputs.dtype)

    def _power(self, x: Any) -> Any:
        """`x ** -beta`, without logarithms where square roots give it."""
        if self.beta == 1.0:
            return 1 / x
        if self.beta not in (0.5, 0.75):
            return ops.power(x, -self.beta)
        root = ops.rsqrt(x)
        return root if self.beta == 0.5 else root * ops.sqrt(root)

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "depth_radius": self.depth_radius,
            "bias": self.bias,
            "alpha": self.alpha,
            "beta": self.beta,
        }
