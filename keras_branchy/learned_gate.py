# SPDX-License-Identifier: Apache-2.0
"""A gate that learns from held-out samples when its exit is right; NumPy only.

The score of the criterion `learned` is

    σ(b + u·p₁ + v·H + w·(p₁-p₂)),  σ(x) = 1/(1 + e^-x), a probability in [0, 1],

of the largest probability ``p₁``, the entropy ``H`` in nats and the margin over the second
largest; a sample leaves at or above the threshold. ``b, u, v, w`` make the logarithmic loss
least on held-out samples, the target being whether the exit's label is right, or, without
labels, whether it is the last exit's. That an exit learns how sure to be is BERxiT's (Xin
et al., EACL 2021); a logistic curve over scores is Platt's (1999). What it sees are scores,
so a few hundred samples are enough.

The three scores say nearly the same, and may tell right from wrong without an error: a
ridge of 1 on the squared weights of the standardised scores keeps them finite, and is
nothing beside a few hundred samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras_branchy.criteria import COEFFICIENTS, check_coefficients, gate_scores

__all__ = ["GateReport", "area_under_roc", "check_gates", "fit_gate"]

RIDGE = 1.0
# Scores that differ by less are not told apart: float32 would round what they say away.
SPREAD = 1e-3
HEADER = ("exit", *COEFFICIENTS, "right", "told apart", "by entropy")


@dataclass(frozen=True)
class GateReport:
    """What `BranchyModel.fit_gates` found; print it for a table.

    Attributes:
        exit_names: Names of the exits with a learned gate.
        samples: Number of held-out samples.
        target: `"right"`, or `"agrees"` with the last exit where there were no labels.
        coefficients: For each of these exits those of `criteria.COEFFICIENTS`.
        shares: Share of the samples on which each exit is right, or agrees.
        areas: Area under the ROC curve of each gate's score: how likely a right answer
            has a higher score than a wrong one.
        entropy_areas: The same of the entropy, for comparison.
    """

    exit_names: list[str]
    samples: int
    target: str
    coefficients: list[list[float]]
    shares: list[float]
    areas: list[float]
    entropy_areas: list[float]

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            HEADER,
            *(
                (name, *map("{:.4g}".format, row), *map("{:.2%}".format, of_exit))
                for name, row, *of_exit in zip(
                    self.exit_names,
                    self.coefficients,
                    self.shares,
                    self.areas,
                    self.entropy_areas,
                    strict=True,
                )
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        return "\n".join([f"Gates learned from {self.samples:,} samples:", *lines])


def fit_gate(logits: np.ndarray, right: np.ndarray) -> list[float]:
    """The coefficients of an exit's gate.

    Args:
        logits: [n, C] floating, the exit's. Rows without a score (NaN, +inf) are left out:
            they never leave early.
        right: [n] bool, whether leaving there is right.

    Returns:
        Four floats, as `criteria.COEFFICIENTS` names them.

    Raises:
        ValueError: If no sample has a score, or all are right or none.

    Example:

    ```python
    import numpy as np
    from keras_branchy.criteria import gate_scores
    from keras_branchy.learned_gate import fit_gate

    logits = np.array([[4.0, 0.0], [3.0, 0.0], [0.2, 0.0], [0.1, 0.0]] * 50)
    right = np.array([True, True, False, True] * 50)
    coefficients = fit_gate(logits, right)
    score, _ = gate_scores(logits, "learned", coefficients)
    assert score[0] > 0.9 > score[2]
    ```
    """
    scores = _scores(logits)
    known = np.isfinite(scores).all(-1)
    x, target = scores[known], np.asarray(right, bool)[known]
    if not len(target) or target.all() or not target.any():
        said = "none" if not target.any() else "all"
        raise ValueError(
            "A gate learns from right and wrong answers. Received: "
            f"{len(target)} samples with a score, {said} of them right. Pass more held-out "
            "samples, or use another criterion for this exit."
        )
    mean, spread = x.mean(0), np.maximum(x.std(0), SPREAD)
    bias, *weights = _logistic((x - mean) / spread, target)
    slopes = np.array(weights) / spread
    return [float(bias - slopes @ mean), *map(float, slopes)]


def area_under_roc(score: np.ndarray, right: np.ndarray) -> float:
    """How likely a right sample has a higher score than a wrong one; ties count half.

    Args:
        score: [n], higher where surer; NaN is left out.
        right: [n] bool, with both among those that have a score.
    """
    known = ~np.isnan(score)
    right = np.asarray(right, bool)[known]
    _, place, count = np.unique(score[known], return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    ones = int(right.sum())
    above = rank[right].sum() - ones * (ones + 1) / 2
    return float(above / (ones * (len(right) - ones)))


def check_gates(gates: Any, criteria: Sequence[str]) -> list[list[float] | None]:
    """Coefficients for each exit but the last; `None` where there are none.

    Raises:
        ValueError: If they are no list of that length, or one does not fit its exit.
    """
    if gates is None:
        return [None] * len(criteria)
    ordered = not isinstance(gates, (str, bytes, Mapping, Set))
    if not (ordered and hasattr(gates, "__len__")) or len(gates) != len(criteria):
        raise ValueError(
            "`gates` has one entry per exit but the last: four floats for the criterion "
            f"'learned', None for others. Received: gates={gates!r}. Expected "
            f"{len(criteria)} entries, for the criteria {list(criteria)}."
        )
    return [
        None if row is None else check_coefficients(criterion, row)
        for criterion, row in zip(criteria, gates, strict=True)
    ]


def _scores(logits: np.ndarray) -> np.ndarray:
    """What a gate sees of logits [n, C]: [n, 3]."""
    columns = [gate_scores(logits, criterion)[0] for criterion in COEFFICIENTS[1:]]
    return np.stack(columns, axis=-1)


def _logistic(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Bias and weights of a logistic regression with a ridge, by Newton's method."""
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    ridge = np.diag([0.0, *[RIDGE] * (x.shape[1] - 1)])
    sign = np.where(target, 1.0, -1.0)

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -sign * (x @ w)).sum() + w @ ridge @ w / 2)

    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = np.exp(-np.logaddexp(0.0, -(x @ w)))
        slope = x.T @ (p - target) + ridge @ w
        curvature = (x * (p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(curvature + 1e-12 * np.eye(len(w)), slope)
        while loss(w - step) > loss(w) and np.abs(step).max() > 1e-12:
            step /= 2
        w = w - step
        if np.abs(step).max() <= 1e-10 * (1 + np.abs(w).max()):
            break
    return w
