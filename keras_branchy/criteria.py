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

The numbers are arXiv's. A row that holds a NaN, a +inf, or nothing but -inf has the score
NaN, and NaN never exits. The label is the class of the largest logit; ties go to the lowest
class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["CRITERIA", "Criterion", "check_criterion", "gate_scores"]


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


def gate_scores(
    logits: np.ndarray, criterion: str = "entropy"
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of logits, in NumPy and float64.

    For calibration and for runtimes without TensorFlow. `reference.exit_gate` is the
    definition; this agrees with it to float32 rounding.

    Args:
        logits: Array of shape [..., classes], any floating dtype.
        criterion: Name of a criterion.

    Returns:
        score, float64 [...], and label, int64 [...].

    Example:

    ```python
    import numpy as np
    from keras_branchy.criteria import gate_scores

    score, label = gate_scores(np.array([[0.0, 0.0], [9.0, 0.0]]), "max_probability")
    assert score[0] == 0.5 and list(label) == [0, 0]
    ```
    """
    check_criterion(criterion)
    z = np.asarray(logits).astype(np.float64)
    lost = np.isnan(z).any(-1) | np.isposinf(z).any(-1) | np.isneginf(z).all(-1)
    broken = np.asarray(lost)
    z = np.where(np.isnan(z), -np.inf, z)
    label = z.argmax(-1)
    z = np.where(broken[..., None], 0.0, z)
    top = z.argmax(-1)[..., None]
    largest = np.take_along_axis(z, top, -1)
    d = z - largest
    e = np.exp(d)
    np.put_along_axis(e, top, 0.0, -1)
    rest = e.sum(-1)
    if criterion == "distance":
        score = largest[..., 0]
    elif criterion == "max_probability":
        score = 1.0 / (1.0 + rest)
    elif criterion == "margin":
        np.put_along_axis(d, top, -np.inf, -1)
        score = -np.expm1(d.max(-1)) / (1.0 + rest)
    else:
        weighted = np.where(e > 0.0, e * np.where(e > 0.0, d, 0.0), 0.0)
        score = np.log1p(rest) - weighted.sum(-1) / (1.0 + rest)
    return np.where(broken, np.nan, score), label.astype(np.int64)
