# SPDX-License-Identifier: Apache-2.0
"""What calibration is asked for: one target, its value checked, and what it counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TARGETS", "Target"]

TARGETS = (
    "max_accuracy_drop",
    "min_accuracy",
    "max_lost_answers",
    "max_disagreement",
    "max_cost",
    "exit_shares",
)


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        name: One of `TARGETS`.
        value: A float, or the list of shares.
    """

    name: str
    value: Any

    @classmethod
    def of(cls, exits: int, **given: Any) -> Target:
        """The one target among `given`, for a model with `exits` exits and the last.

        Raises:
            ValueError: If there is not exactly one, or its value makes no sense.
        """
        asked = {name: value for name, value in given.items() if value is not None}
        if len(asked) != 1:
            received = ", ".join(f"{name}={value}" for name, value in asked.items())
            raise ValueError(
                f"Calibration takes exactly one target, of {', '.join(TARGETS)}. "
                f"Received: {received or 'none'}."
            )
        ((name, value),) = asked.items()
        if name == "exit_shares":
            return cls(name, _shares(value, exits))
        if name == "max_cost":
            return cls(name, _positive(value))
        return cls(name, _fraction(name, value))

    @property
    def is_risk(self) -> bool:
        """Whether the target bounds how many answers may be bad."""
        return self.name not in ("max_cost", "exit_shares")

    @property
    def gains_count(self) -> bool:
        """Whether answers that early exit gains make up for those that it loses."""
        return self.name == "max_accuracy_drop"

    @property
    def limit(self) -> float:
        """The largest share of bad answers."""
        return 1.0 - self.value if self.name == "min_accuracy" else self.value

    def good(self, correct: np.ndarray, agrees: np.ndarray) -> np.ndarray:
        """[N, n] bool: which answers of each exit are no loss, one sample at a time."""
        if self.name == "max_disagreement":
            return agrees
        # What the last exit gets wrong cannot be lost.
        return correct | ~correct[-1] if self.name == "max_lost_answers" else correct

    def needed(self, correct: np.ndarray, agrees: np.ndarray) -> tuple[np.ndarray, int]:
        """What to count [N, n] on these samples themselves, and how many there must be.

        A drop is the difference of two accuracies, so gains make up for losses.
        """
        samples = correct.shape[1]
        if self.name in ("max_disagreement", "max_lost_answers"):
            return self.good(correct, agrees), samples - _floor(self.value * samples)
        if self.name == "min_accuracy":
            return correct, math.ceil(self.value * samples - 1e-9)
        return correct, int(correct[-1].sum()) - _floor(self.value * samples)


def _floor(value: float) -> int:
    return math.floor(value + 1e-9)


def _fraction(name: str, value: Any) -> float:
    if not (isinstance(value, (int, float, np.number)) and 0.0 <= value <= 1.0):
        raise ValueError(
            f"`{name}` is a fraction between 0 and 1. Received: {value!r}. One point of "
            "accuracy is 0.01."
        )
    return float(value)


def _positive(value: Any) -> float:
    if not (isinstance(value, (int, float, np.number)) and 0.0 < value < math.inf):
        raise ValueError(
            "`max_cost` is the mean cost of a sample, more than 0, in the unit of the "
            f"costs: MACs by default. Received: {value!r}."
        )
    return float(value)


def _shares(value: Sequence[float], exits: int) -> list[float]:
    try:
        shares = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        shares = np.array(np.nan)
    fit = shares.shape == (exits,) and (shares >= 0).all() and shares.sum() <= 1 + 1e-9
    if not fit:
        raise ValueError(
            "`exit_shares` holds the share of all samples that leaves at each exit but "
            f"the last: {exits} numbers of at least 0 with a sum of at most 1. Received: "
            f"{value!r}."
        )
    return shares.tolist()
