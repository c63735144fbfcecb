# SPDX-License-Identifier: Apache-2.0
"""Thresholds from what every exit said of held-out samples; NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from keras_branchy.criteria import CRITERIA
from keras_branchy.report import CalibrationReport, OperatingPoint
from keras_branchy.threshold_search import HUGE, NEAR, Order, ThresholdSearch

__all__ = ["CalibrationReport", "OperatingPoint", "calibrate"]


def calibrate(
    scores: Sequence[np.ndarray],
    correct: np.ndarray,
    costs: Sequence[float],
    criteria: Sequence[str],
    num_classes: int,
    *,
    max_accuracy_drop: float | None = None,
    exit_shares: Sequence[float] | None = None,
    exit_names: Sequence[str] | None = None,
) -> CalibrationReport:
    """Chooses thresholds for N exits from n held-out samples.

    Args:
        scores: For each exit but the last, [n] scores of its criterion; NaN never exits.
        correct: [N, n] bool, whether each exit's label is right.
        costs: [N] cost of a sample that leaves at each exit, everything before it
            included, in any unit, more than 0 and never falling.
        criteria: Criterion names of every exit but the last.
        num_classes: Number of classes, which bounds the scores.
        max_accuracy_drop: Largest accuracy to lose against the last exit, a fraction.
        exit_shares: Instead, the share of all samples to leave at each exit but the last.
        exit_names: Names for the report; `exit_1`, … by default.

    Returns:
        The report with the chosen thresholds.

    Raises:
        ValueError: If there is no sample, the arrays do not fit together, costs fall, or
            there is not exactly one valid target.

    Example:

    ```python
    import numpy as np
    from keras_branchy.calibration import calibrate

    entropy = np.array([0.1, 0.2, 0.9, 1.0])
    correct = np.array([[True, True, True, False], [True, True, True, True]])
    report = calibrate([entropy], correct, [1, 4], ["entropy"], 10, max_accuracy_drop=0.0)
    assert 0.9 < report.thresholds[0] < 1.0 and report.accuracy == 1.0
    ```
    """
    _check_samples(scores, correct, costs, len(criteria))
    _check_target(max_accuracy_drop, exit_shares, len(criteria))
    search = ThresholdSearch(scores, correct, costs, criteria)
    front: list[tuple[int, ...]] = []
    if exit_shares is not None:
        chosen = search.with_shares(exit_shares)
    else:
        front = search.front()
        chosen = search.cheapest(front, float(max_accuracy_drop or 0.0))
        front = search.unbeaten([*front, chosen])
    bounds = [CRITERIA[name].bounds(num_classes) for name in criteria]
    names = exit_names or [f"exit_{k}" for k in range(1, len(criteria) + 2)]
    return CalibrationReport(
        exit_names=list(names),
        criteria=list(criteria),
        point=_point(search, chosen, bounds),
        front=[_point(search, cuts, bounds) for cuts in front],
        samples=search.samples,
        last_accuracy=float(search.correct[-1].mean()),
        exit_accuracy=[float(x) for x in search.correct.mean(axis=1)],
        accuracy_where_taken=_accuracy_where_taken(search, chosen),
        exit_costs=[float(x) for x in search.costs],
        max_accuracy_drop=None if max_accuracy_drop is None else float(max_accuracy_drop),
    )


def _point(
    search: ThresholdSearch, cuts: Sequence[int], bounds: Sequence[tuple[float, float]]
) -> OperatingPoint:
    """The operating point at `cuts`, its thresholds between two scores."""
    right, cost = search.measure(cuts)
    exits = search.taken(cuts)
    thresholds = [
        _threshold(order, cuts[index], exits >= index, bounds[index])
        for index, order in enumerate(search.orders)
    ]
    shares = np.bincount(exits, minlength=search.exits + 1) / search.samples
    return OperatingPoint(
        thresholds=thresholds,
        accuracy=right / search.samples,
        cost=cost,
        shares=[float(share) for share in shares],
    )


def _accuracy_where_taken(
    search: ThresholdSearch, cuts: Sequence[int]
) -> list[float | None]:
    """Accuracy of each exit on the samples that leave there; None where none does."""
    exits = search.taken(cuts)
    return [
        float(row[exits == index].mean()) if (exits == index).any() else None
        for index, row in enumerate(search.correct)
    ]


def _threshold(
    order: Order, cut: int, reaching: np.ndarray, bounds: tuple[float, float]
) -> float | None:
    """Midway between the last score that leaves and the first that stays."""
    here = reaching[order.samples]
    leaving, staying = order.scores[:cut][here[:cut]], order.scores[cut:][here[cut:]]
    if not len(leaving):
        return None
    last = float(leaving[-1])
    if len(staying):
        return (last + float(staying[0])) / 2
    return _beyond(last, order.exits_below, bounds)


def _beyond(last: float, exits_below: bool, bounds: tuple[float, float]) -> float:
    """A threshold at which every sample leaves, the least sure one scoring `last`."""
    step = NEAR * max(abs(last), 1.0)
    if exits_below:
        return max((last + bounds[1]) / 2, last + step)
    if math.isinf(bounds[0]):
        return max(last - max(abs(last), 1.0), -HUGE)
    return min((last + bounds[0]) / 2, last - step)


def _check_samples(
    scores: Sequence[np.ndarray], correct: np.ndarray, costs: Sequence[float], exits: int
) -> None:
    shape, given = np.shape(correct), [np.shape(score) for score in scores]
    if shape[-1:] == (0,):
        raise ValueError(
            "Calibration needs held-out samples with labels. Received: 0 samples."
        )
    if len(shape) != 2 or shape[0] != exits + 1 or given != [shape[1:]] * exits:
        raise ValueError(
            "`correct` must be [exits, samples], and `scores` [samples] for each exit but "
            f"the last, of {exits} criteria. Received: correct of shape {shape}, scores "
            f"of shapes {given}."
        )
    cost = np.asarray(costs, np.float64)
    rising = cost.shape == shape[:1] and (np.diff(cost) >= 0).all() and cost[0] > 0
    if not (rising and np.isfinite(cost).all()):
        raise ValueError(
            f"`costs` must be {exits + 1} numbers of more than 0 that never fall: what a "
            "sample costs that leaves at each exit, everything before it included. "
            f"Received: costs={list(costs)}."
        )


def _check_target(
    max_accuracy_drop: float | None, exit_shares: Sequence[float] | None, exits: int
) -> None:
    if (max_accuracy_drop is None) == (exit_shares is None):
        raise ValueError(
            "Calibration needs exactly one target. Received: max_accuracy_drop="
            f"{max_accuracy_drop}, exit_shares={exit_shares}. Pass for example "
            "max_accuracy_drop=0.01 to lose at most one point of accuracy."
        )
    if max_accuracy_drop is not None and not 0.0 <= max_accuracy_drop <= 1.0:
        raise ValueError(
            "`max_accuracy_drop` is a fraction between 0 and 1. Received: "
            f"{max_accuracy_drop}. One point of accuracy is 0.01."
        )
    if exit_shares is None:
        return
    shares = np.asarray(exit_shares, np.float64)
    fit = shares.shape == (exits,) and (shares >= 0).all() and shares.sum() <= 1 + 1e-9
    if not fit:
        raise ValueError(
            "`exit_shares` holds the share of all samples that leaves at each exit but "
            f"the last: {exits} numbers of at least 0 with a sum of at most 1. Received: "
            f"{exit_shares}."
        )
