# SPDX-License-Identifier: Apache-2.0
"""What every exit answers on held-out samples: all that calibration looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_branchy.criteria import CRITERIA
from keras_branchy.thresholds import gate_thresholds

__all__ = ["Answers"]


class Answers:
    """Scores and right answers of N exits on n held-out samples.

    Args:
        scores: For each exit but the last, [n] scores of its criterion; NaN never exits.
        correct: [N, n] bool, whether each exit's label is right.
        costs: [N] cost of a sample that leaves at each exit, everything before it
            included, in any unit, more than 0 and never falling.
        criteria: Criterion names of every exit but the last.
        num_classes: Number of classes, which bounds the scores.
        agrees: [N, n] bool, whether each exit's label is the last exit's. By default,
            whether both are right, or both wrong.
        labels: [n] int, the right classes, where they are to be told apart.
        trunk_costs: [N] costs as published figures count them, heads left out.
        leaving: [N-1, n] bool, who leaves at an exit at any threshold, as those do on whom
            successive exits agree where a model has `patience`. By default nobody.

    Raises:
        ValueError: If there is no sample, the arrays do not fit together, or costs fall.
    """

    def __init__(
        self,
        scores: Sequence[np.ndarray],
        correct: np.ndarray,
        costs: Sequence[float] | np.ndarray,
        criteria: Sequence[str],
        num_classes: int,
        agrees: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        trunk_costs: Sequence[float] | np.ndarray | None = None,
        leaving: np.ndarray | None = None,
    ):
        _check_shapes(scores, correct, agrees, labels, leaving, len(criteria))
        self.scores = [np.asarray(score) for score in scores]
        self.correct = np.asarray(correct, bool)
        self.costs = _check_costs(costs, len(self.correct))
        self.criteria = list(criteria)
        self.num_classes = num_classes
        same = self.correct == self.correct[-1]
        self.agrees = same if agrees is None else np.asarray(agrees, bool)
        self.labels = None if labels is None else np.asarray(labels)
        self.trunk_costs = None if trunk_costs is None else np.asarray(trunk_costs, float)
        self.leaving = None if leaving is None else np.asarray(leaving, bool)

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.correct.shape[1]

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """What the scores of each exit can be at least and at most."""
        return [CRITERIA[name].bounds(self.num_classes) for name in self.criteria]

    @property
    def or_else(self) -> str:
        """What else a person can do, for errors, where more leave than thresholds let."""
        return "" if self.leaving is None else ", or set model.patience higher, or to None"

    def of(self, samples: np.ndarray) -> Answers:
        """Those on some of the samples."""
        return Answers(
            [score[samples] for score in self.scores],
            self.correct[:, samples],
            self.costs,
            self.criteria,
            self.num_classes,
            self.agrees[:, samples],
            None if self.labels is None else self.labels[samples],
            self.trunk_costs,
            None if self.leaving is None else self.leaving[:, samples],
        )

    def exits(self, thresholds: Sequence[float | None]) -> np.ndarray:
        """The exit [n] at which each sample leaves."""
        limits = gate_thresholds(thresholds, self.criteria)
        taken = np.full(self.samples, len(self.criteria))
        for index in reversed(range(len(self.criteria))):
            criterion = CRITERIA[self.criteria[index]]
            leaves = criterion.exits(self.scores[index], limits[index])
            taken[leaves if self.leaving is None else leaves | self.leaving[index]] = index
        return taken


def _check_shapes(
    scores: Sequence[np.ndarray],
    correct: np.ndarray,
    agrees: Any,
    labels: Any,
    leaving: Any,
    exits: int,
) -> None:
    shape, given = np.shape(correct), [np.shape(score) for score in scores]
    if shape[-1:] == (0,):
        raise ValueError(
            "Calibration needs held-out samples with labels. Received: 0 samples."
        )
    fit = len(shape) == 2 and shape[0] == exits + 1 and given == [shape[1:]] * exits
    also = {
        name: np.shape(value)
        for name, value, wanted in (
            ("agrees", agrees, shape),
            ("labels", labels, shape[1:]),
            ("leaving", leaving, (exits, *shape[1:])),
        )
        if value is not None and np.shape(value) != wanted
    }
    if not fit or also:
        raise ValueError(
            "`correct` must be [exits, samples], `agrees` too, `labels` [samples], and "
            f"`scores` and `leaving` [samples] for each exit but the last, of {exits} "
            "criteria. "
            f"Received: correct of shape {shape}, scores of shapes {given}"
            + "".join(f", {name} of shape {size}" for name, size in also.items())
            + "."
        )


def _check_costs(costs: Sequence[float] | np.ndarray, exits: int) -> np.ndarray:
    cost = np.asarray(costs, np.float64)
    rising = cost.shape == (exits,) and (np.diff(cost) >= 0).all() and cost[0] > 0
    if not (rising and np.isfinite(cost).all()):
        raise ValueError(
            f"`costs` must be {exits} numbers of more than 0 that never fall: what a "
            "sample costs that leaves at each exit, everything before it included. "
            f"Received: costs={list(costs)}."
        )
    return cost
