# SPDX-License-Identifier: Apache-2.0
"""Thresholds of a model: checked as they are set, and as the gate takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from keras_branchy.criteria import CRITERIA

__all__ = ["check_patience", "check_thresholds", "gate_thresholds"]

# The gate compares in float32.
LARGEST = float(np.finfo(np.float32).max)


def check_thresholds(
    thresholds: Sequence[float | None] | None, names: list[str]
) -> list[float | None] | None:
    """Thresholds as a list of floats and `None`, one for each exit of `names`.

    Raises:
        ValueError: If they are no list of that length, or one is no finite float32.
    """
    if thresholds is None:
        return None
    ordered = not isinstance(thresholds, (str, bytes, Mapping, Set))
    flat = hasattr(thresholds, "__iter__") and getattr(thresholds, "ndim", 1) == 1
    if not (ordered and flat):
        raise ValueError(
            "`thresholds` must be a list in exit order. Received: "
            f"thresholds={thresholds!r}. Expected {len(names)} floats, for {names}."
        )
    chosen = [None if value is None else _number(value) for value in thresholds]
    if len(chosen) != len(names):
        raise ValueError(
            "`thresholds` has one entry per exit but the last, which takes every sample. "
            f"Received: {len(chosen)} entries. Expected {len(names)}, for {names}."
        )
    if any(value is not None and not abs(value) <= LARGEST for value in chosen):
        raise ValueError(
            "`thresholds` must be finite, in float32. Received: "
            f"{chosen}. Use None to disable an exit."
        )
    return chosen


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`thresholds` holds floats, and None for a disabled exit. Received: "
            f"{value!r} in it."
        ) from error


def gate_thresholds(
    thresholds: Sequence[float | None] | None, criteria: Sequence[str]
) -> np.ndarray:
    """Thresholds as the gate takes them, float32 [N-1]; infinite where an exit is disabled.

    Raises:
        ValueError: If none are set.
    """
    if thresholds is None:
        raise ValueError(
            "The model has no thresholds yet, so it cannot tell who leaves early. "
            "Received: thresholds=None. Choose them with "
            "model.calibrate(validation_data, max_accuracy_drop=0.01), or set "
            f"model.thresholds to a list of {len(criteria)} floats."
        )
    return np.array(
        [
            CRITERIA[criterion].never if threshold is None else threshold
            for criterion, threshold in zip(criteria, thresholds, strict=True)
        ],
        np.float32,
    )


def check_patience(patience: Any, exits: int) -> None:
    """Refuses what is neither None nor a number of exits that can agree.

    Args:
        patience: What is to be checked.
        exits: How many exits there are, the last included.

    Raises:
        ValueError: If it is anything else, or there are fewer exits.
    """
    whole = isinstance(patience, int) and not isinstance(patience, bool)
    if patience is not None and not (whole and patience >= 2):
        raise ValueError(
            "`patience` must be None, or the number of successive exits that must "
            f"agree, an integer of at least 2. Received: patience={patience!r}."
        )
    if patience is not None and patience > exits:
        raise ValueError(
            f"`patience` is the number of successive exits that must agree, and there are "
            f"{exits}. Received: patience={patience}. So many never agree: set fewer, or "
            "None."
        )
