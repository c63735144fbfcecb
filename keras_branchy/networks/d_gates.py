# SPDX-License-Identifier: Apache-2.0
"""Decision gates at two taps of a network: linear, on averaged features."""

from __future__ import annotations

import keras
from keras.layers import AveragePooling2D

from keras_branchy.branchy_model import BranchyModel
from keras_branchy.exit_branch import ExitBranch

__all__ = ["check_gates", "with_d_gates"]

GRID = 4  # cells in each direction that a gate sees


def check_gates(gates: str) -> None:
    """Before a large network is built."""
    if gates not in ("hinge", "crossentropy"):
        raise ValueError(
            "`gates` must be 'hinge', decision values for `OneVsRestHinge`, or "
            f"'crossentropy', probabilities. Received: gates={gates!r}."
        )


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
