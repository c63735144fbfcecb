# SPDX-License-Identifier: Apache-2.0
"""Decision gates at two taps of a network: linear, on averaged features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras.layers import AveragePooling2D, BatchNormalization, Conv2D

from keras_branchy.branchy_model import BranchyModel
from keras_branchy.exit_branch import ExitBranch

__all__ = ["batch_norm", "check", "convolution", "with_d_gates"]

GRID = 4  # cells in each direction that a gate sees


def check(blocks: Sequence[int], gates: str, published: str) -> None:
    """Refuses what cannot be built, before a large network is."""
    if len(blocks) != 4 or min(blocks) < 1:
        raise ValueError(
            "`blocks` must say how many each of four groups has, at least 1. "
            f"Received: blocks={blocks!r}. {published}."
        )
    if gates not in ("hinge", "crossentropy"):
        raise ValueError(
            "`gates` must be 'hinge', decision values for `OneVsRestHinge`, or "
            f"'crossentropy', probabilities. Received: gates={gates!r}."
        )


def convolution(x: Any, filters: int, size: int, name: str, strides: int = 1) -> Any:
    """Without a bias, which the normalization around it has: [B, ⌈H/s⌉, ⌈W/s⌉, filters]."""
    return Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def batch_norm(x: Any, name: str) -> Any:
    """With the decay of the networks' own trainings: [B, H, W, C] as it was."""
    return BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def with_d_gates(
    backbone: keras.Model, taps: list[str], gates: str, name: str
) -> BranchyModel:
    """Puts a linear gate at each tap, trained with a hinge loss or with crossentropy."""
    exits = {}
    for index, tap in enumerate(taps, 1):
        size, classes = backbone.get_layer(tap).output.shape[1], backbone.output.shape[-1]
        pool = AveragePooling2D(size // GRID, name=f"gate{index}_pool")
        exits[tap] = (
            ExitBranch(classes, layers=[pool], activation=None, criterion="distance")
            if gates == "hinge"
            else ExitBranch(classes, layers=[pool], criterion="max_probability")
        )
    return BranchyModel(backbone, exits, name=name)
