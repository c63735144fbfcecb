# SPDX-License-Identifier: Apache-2.0
"""StochasticDepth: a residual branch that is dropped at random in training."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["StochasticDepth"]


@keras.saving.register_keras_serializable(package="keras_branchy")
class StochasticDepth(keras.layers.Layer):
    """Keeps a residual branch for a batch with some probability, else gives zeros.

    It stands behind the branch and in front of the addition. In training one draw decides
    for the whole batch, as in the source; otherwise the branch is multiplied by its
    survival. In `b_resnet(stochastic_depth=p)` survival falls linearly with depth: block l
    of L survives with `1 - l / L · (1 - p)`.

    Source: Huang et al., "Deep Networks with Stochastic Depth" (arXiv 1603.09382).

    Args:
        survival_rate: Probability that the branch is kept, above 0 and at most 1.
        seed: An integer for draws that repeat, another one for each layer; or None, for
            draws that follow `keras.utils.set_random_seed`.
        **kwargs: As for every layer.

    Input shape:
        Any, floating.

    Output shape:
        As the input.

    Raises:
        ValueError: If `survival_rate` is no such probability.

    Example:

    ```python
    import numpy as np
    from keras_branchy.networks import StochasticDepth

    layer, branch = StochasticDepth(0.5), np.ones((2, 3), "float32")
    assert np.all(np.array(layer(branch, training=False)) == 0.5)
    assert np.array(layer(branch, training=True)).max() in (0.0, 1.0)
    ```
    """

    def __init__(self, survival_rate: float, *, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.survival_rate = check_survival(survival_rate, "survival_rate")
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs * self.survival_rate
        drawn = keras.random.uniform((), seed=self.seed_generator)
        return ops.where(drawn < self.survival_rate, inputs, ops.zeros_like(inputs))

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "survival_rate": self.survival_rate,
            "seed": self.seed,
        }


def survival_rates(blocks: int, last: float) -> list[float]:
    """Of each block in turn, falling linearly to `last`: 1 - l / L · (1 - last)."""
    last = check_survival(last, "stochastic_depth")
    return [1 - (block + 1) / blocks * (1 - last) for block in range(blocks)]


def check_survival(rate: float, argument: str) -> float:
    """Above 0, since a branch that is never there cannot be scaled to its mean."""
    if not 0 < rate <= 1:
        raise ValueError(
            f"`{argument}` must be a probability of survival, above 0 and at most 1. "
            f"Received: {argument}={rate!r}. For a last block that is kept half of the "
            "time pass 0.5; 1.0 keeps every block."
        )
    return float(rate)
