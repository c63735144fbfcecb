# SPDX-License-Identifier: Apache-2.0
"""The exit criteria: what an exit's score is, and on which side of a threshold it exits.

With logits ``z``, ``m = max z``, ``S = Σ e^(z-m)`` and probabilities
``p = e^(z-m) / S``, sorted so that ``p₁ ≥ p₂ ≥ …``:

| criterion | score | unit | exits where | source |
|---|---|---|---|---|
| `entropy` | ``ln S - Σ e^(z-m)·(z-m)/S`` | nats | score < T | BranchyNet, 1709.01686 |
| `max_probability` | ``p₁`` | probability | score ≥ T | MSDNet, 1703.09844 |
| `margin` | ``p₁ - p₂`` | probability | score ≥ T | Park et al., 2015 (big/LITTLE) |
| `distance` | ``m`` | decision value | score ≥ T | d-gates, 1811.01476 |
| `learned` | ``σ(b + u·p₁ + v·H + w·(p₁-p₂))`` | probability | score ≥ T | see below |

The numbers are arXiv's. ``H`` is the entropy and ``σ(x) = 1/(1 + e^-x)``. The coefficients
``b, u, v, w`` of `learned` are fitted to whether an exit is right (`learned_gate`), as the
exits of BERxiT (Xin et al., EACL 2021) learn when to leave; its scores are in float32 what
float64 gives to about 1e-6 of the largest coefficient.

A row that holds a NaN, a +inf, or nothing but -inf has the score
NaN, and NaN never exits. The label is the class of the largest logit; ties go to the lowest
class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "COEFFICIENTS",
    "CRITERIA",
    "Criterion",
    "check_coefficients",
    "check_criterion",
    "gate_scores",
]

# What the coefficients of the criterion `learned` belong to, in order.
COEFFICIENTS = ("bias", "max_probability", "entropy", "margin")


@dataclass(frozen=True)
class Criterion:
    """One exit criterion.

    Attributes:
        name: The name that `ExitBranch(criterion=…)` and manifests use.
        unit: Unit of the score and of its threshold.
        exits_below: True if a sample exits where score < threshold, False if it
            exits where score ≥ threshold.
    """

    name: str
    unit: str
    exits_below: bool

    @property
    def never(self) -> float:
        """The threshold at which no sample exits: a disabled exit."""
        return -math.inf if self.exits_below else math.inf

    def bounds(self, num_classes: int) -> tuple[float, float]:
        """The range that scores over `num_classes` classes can take."""
        return {
            "entropy": (0.0, math.log(num_classes)),
            "max_probability": (1.0 / num_classes, 1.0),
            "margin": (0.0, 1.0),
            "distance": (-math.inf, math.inf),
            "learned": (0.0, 1.0),
        }[self.name]

    def exits(self, score: np.ndarray, threshold: float | None) -> np.ndarray:
        """Which scores exit; a threshold of `None` lets none."""
        if threshold is None:
            return np.zeros(np.shape(score), bool)
        return score < threshold if self.exits_below else score >= threshold


CRITERIA = {
    criterion.name: criterion
    for criterion in (
        Criterion("entropy", "nats", exits_below=True),
        Criterion("max_probability", "probability", exits_below=False),
        Criterion("margin", "probability", exits_below=False),
        Criterion("distance", "decision value", exits_below=False),
        Criterion("learned", "probability", exits_below=False),
    )
}


def check_criterion(name: str) -> Criterion:
    """Returns the criterion called `name`.

    Raises:
        ValueError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in CRITERIA:
        expected = ", ".join(repr(known) for known in CRITERIA)
        raise ValueError(f"Unknown criterion {name!r}. Expected one of: {expected}.")
    return CRITERIA[name]


def check_coefficients(
    criterion: str, coefficients: Sequence[float] | None
) -> list[float] | None:
    """The coefficients of a criterion: four floats for `learned`, `None` for any other.

    Raises:
        ValueError: If they are missing, not four finite numbers, or not for `learned`.
    """
    if coefficients is None and criterion == "learned":
        raise ValueError(
            "The criterion 'learned' has no coefficients yet. Received: None. Fit them "
            "with model.fit_gates(validation_data) before model.calibrate, or pass four "
            f"floats: {', '.join(COEFFICIENTS)}."
        )
    if coefficients is None:
        return None
    if criterion != "learned":
        raise ValueError(
            "Only the criterion 'learned' has coefficients. Received: coefficients="
            f"{coefficients!r} for the criterion {criterion!r}. Pass None."
        )
    try:
        found = [float(np.float32(value)) for value in coefficients]
    except (TypeError, ValueError, OverflowError):
        found = []
    if len(found) != len(COEFFICIENTS) or not np.isfinite(found).all():
        raise ValueError(
            "The criterion 'learned' has four finite coefficients, of "
            f"{', '.join(COEFFICIENTS)}. Received: coefficients={coefficients!r}."
        )
    return [float(value) for value in coefficients]


def gate_scores(
    logits: np.ndarray,
    criterion: str = "entropy",
    coefficients: Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of logits, in NumPy and float64.

    For calibration and for runtimes without TensorFlow. `reference.exit_gate` is the
    definition; this agrees with it to float32 rounding.

    Args:
        logits: Array of shape [..., classes], any floating dtype.
        criterion: Name of a criterion.
        coefficients: Four floats for `learned`, as `COEFFICIENTS` names them.

    Returns:
        score, float64 [...], and label, int64 [...].

    Raises:
        ValueError: If the criterion is unknown or the coefficients are not its own.

    Example:

    ```python
    import numpy as np
    from keras_branchy.criteria import gate_scores

    score, label = gate_scores(np.array([[0.0, 0.0], [9.0, 0.0]]), "max_probability")
    assert score[0] == 0.5 and list(label) == [0, 0]
    ```
    """
    check_criterion(criterion)
    coefficients = check_coefficients(criterion, coefficients)
    z = np.asarray(logits).astype(np.float64)
    lost = np.isnan(z).any(-1) | np.isposinf(z).any(-1) | np.isneginf(z).all(-1)
    broken = np.asarray(lost)
    z = np.where(np.isnan(z), -np.inf, z)
    label = z.argmax(-1)
    z = np.where(broken[..., None], 0.0, z)
    score = _score(z, criterion, coefficients)
    return np.where(broken, np.nan, score), label.astype(np.int64)


def _score(z: np.ndarray, criterion: str, coefficients: list[float] | None) -> np.ndarray:
    """Scores [...] of rows [..., C] without NaN and +inf."""
    top = z.argmax(-1)[..., None]
    largest = np.take_along_axis(z, top, -1)
    if criterion == "distance":
        return largest[..., 0]
    d = z - largest
    e = np.exp(d)
    np.put_along_axis(e, top, 0.0, -1)
    rest = e.sum(-1)
    if criterion == "max_probability":
        return 1.0 / (1.0 + rest)
    if criterion == "margin":
        return _margin(d, top, rest)
    weighted = np.where(e > 0.0, e * np.where(e > 0.0, d, 0.0), 0.0)
    entropy = np.log1p(rest) - weighted.sum(-1) / (1.0 + rest)
    if coefficients is None:
        return entropy
    bias, of_largest, of_entropy, of_margin = coefficients
    x = bias + of_largest / (1.0 + rest) + of_entropy * entropy
    x = x + of_margin * _margin(d, top, rest)
    return np.exp(-np.logaddexp(0.0, -x))


def _margin(d: np.ndarray, top: np.ndarray, rest: np.ndarray) -> np.ndarray:
    others = d.copy()
    np.put_along_axis(others, top, -np.inf, -1)
    return -np.expm1(others.max(-1)) / (1.0 + rest)
