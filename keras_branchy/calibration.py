# SPDX-License-Identifier: Apache-2.0
"""Thresholds from what every exit said of held-out samples; NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_branchy.criteria import CRITERIA
from keras_branchy.report import CalibrationReport, OperatingPoint
from keras_branchy.threshold_search import ThresholdSearch

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
            included, rising, in any unit.
        criteria: Criterion names of every exit but the last.
        num_classes: Number of classes, which bounds the scores.
        max_accuracy_drop: Largest accuracy to lose against the last exit, a fraction.
        exit_shares: Instead, the share of all samples to leave at each exit but the last.
        exit_names: Names for the report; `exit_1`, … by default.

    Returns:
        The report with the chosen thresholds.

    Raises:
        ValueError: If there is no sample, or not exactly one valid target.

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
    if np.shape(correct)[-1] == 0:
        raise ValueError(
            "Calibration needs held-out samples with labels. Received: 0 samples."
        )
    _check_target(max_accuracy_drop, exit_shares, len(criteria))
    search = ThresholdSearch(scores, correct, costs, criteria)
    if exit_shares is not None:
        front: list = []
        chosen = search.with_shares(exit_shares)
    else:
        front = search.front()
        chosen = search.cheapest(front, float(max_accuracy_drop or 0.0))
    bounds = [CRITERIA[name].bounds(num_classes) for name in criteria]
    names = exit_names or [f"exit_{k}" for k in range(1, len(criteria) + 2)]
    return CalibrationReport(
        exit_names=list(names),
        criteria=list(criteria),
        point=search.point(chosen, bounds),
        front=[search.point(cuts, bounds) for cuts in front],
        samples=search.samples,
        last_accuracy=float(search.correct[-1].mean()),
        exit_accuracy=[float(x) for x in search.correct.mean(axis=1)],
        accuracy_where_taken=search.accuracy_where_taken(chosen),
        exit_costs=[float(x) for x in search.costs],
        max_accuracy_drop=max_accuracy_drop,
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
    if shares.shape != (exits,) or (shares < 0).any() or shares.sum() > 1 + 1e-9:
        raise ValueError(
            "`exit_shares` holds the share of all samples that leaves at each exit but "
            f"the last: {exits} numbers of at least 0 with a sum of at most 1. Received: "
            f"{exit_shares}."
        )
