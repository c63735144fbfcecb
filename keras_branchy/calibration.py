# SPDX-License-Identifier: Apache-2.0
"""Thresholds from what every exit says of held-out samples; NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_branchy.answers import Answers
from keras_branchy.guarantees import Guarantee, certified
from keras_branchy.midpoints import thresholds_at
from keras_branchy.report import CalibrationReport, OperatingPoint
from keras_branchy.survey import Survey
from keras_branchy.targets import Target

__all__ = ["CalibrationReport", "OperatingPoint", "calibrate"]


def calibrate(
    scores: Sequence[np.ndarray],
    correct: np.ndarray,
    costs: Sequence[float],
    criteria: Sequence[str],
    num_classes: int,
    *,
    max_accuracy_drop: float | None = None,
    min_accuracy: float | None = None,
    max_lost_answers: float | None = None,
    max_disagreement: float | None = None,
    max_cost: float | None = None,
    exit_shares: Sequence[float] | None = None,
    confidence: Any = None,
    agrees: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    trunk_costs: Sequence[float] | None = None,
    leaving: np.ndarray | None = None,
    exit_names: Sequence[str] | None = None,
) -> CalibrationReport:
    """Chooses thresholds on held-out answers, for exactly one target.

    Args:
        scores: For each exit but the last, [n] scores of its criterion; NaN never exits.
        correct: [N, n] bool, whether each exit's label is right.
        costs: [N] cost of a sample that leaves at each exit, everything before it
            included, in any unit, more than 0 and never falling.
        criteria: Criterion names of every exit but the last.
        num_classes: Number of classes, which bounds the scores.
        max_accuracy_drop: Largest accuracy to lose against the last exit, a fraction.
        min_accuracy: Instead: the accuracy to keep, a fraction.
        max_lost_answers: Instead: the largest share of samples that the last exit would
            get right and that leave with a wrong answer, whatever others gain.
        max_disagreement: Instead: the largest share of samples whose answer may differ
            from the last exit's.
        max_cost: Instead: the largest mean cost of a sample, in the unit of the costs.
        exit_shares: Instead: the share of all samples that leaves at each exit but the
            last.
        confidence: None, to keep the target on these samples; a probability, to keep it
            with that on samples to come; `"mean"`, to keep it there on average.
        agrees: [N, n] bool, whether each exit's label is the last exit's. By default,
            whether both are right, or both wrong.
        labels: [n] int, the right classes, for what each class loses.
        trunk_costs: [N] costs without the heads, for the other counting.
        leaving: [N-1, n] bool, who leaves at an exit at any threshold, as those do on whom
            successive exits agree (`agreement.agreements`). By default nobody.
        exit_names: Names of the exits for the report.

    Returns:
        The report with the chosen thresholds.

    Raises:
        ValueError: If there is no sample, the arrays do not fit together, costs fall,
            there is not exactly one valid target, it cannot be met, or so few samples
            cannot show it.

    Example:

    ```python
    import numpy as np
    from keras_branchy.calibration import calibrate

    scores = [np.array([0.1, 0.9, 1.1])]
    correct = np.array([[True, True, False], [True, True, True]])
    report = calibrate(scores, correct, [1, 4], ["entropy"], 10, max_accuracy_drop=0.0)
    assert 0.9 < report.thresholds[0] < 1.1 and report.accuracy == 1.0
    ```
    """
    answers = Answers(
        scores, correct, costs, criteria, num_classes, agrees, labels, trunk_costs, leaving
    )
    target = Target.of(
        len(answers.criteria),
        max_accuracy_drop=max_accuracy_drop,
        min_accuracy=min_accuracy,
        max_lost_answers=max_lost_answers,
        max_disagreement=max_disagreement,
        max_cost=max_cost,
        exit_shares=exit_shares,
    )
    survey, guarantee = Survey(answers), None
    if confidence is None:
        thresholds, front = on_these(survey, target)
    else:
        thresholds, guarantee = certified(survey, target, confidence)
        front = _front(survey)
    return _report(answers, target, thresholds, front, guarantee, exit_names)


def _front(survey: Survey) -> list[list[float | None]]:
    search, bounds = survey.search(survey.answers.correct), survey.answers.bounds
    cuts = survey.front(survey.answers.correct)
    return [thresholds_at(search, point, bounds) for point in cuts]


def on_these(
    survey: Survey, target: Target
) -> tuple[list[float | None], list[list[float | None]]]:
    """The best thresholds on these samples, and those of a front with them on it.

    Raises:
        ValueError: If no thresholds are found that meet the target.
    """
    answers = survey.answers
    search = survey.search(answers.correct)
    if target.name == "exit_shares":
        chosen = search.with_shares(target.value)
        return thresholds_at(search, chosen, answers.bounds), []
    front = survey.front(answers.correct)
    if target.name == "max_cost":
        budget = target.value / answers.costs[-1]
        chosen = search.most_accurate(front, budget)
        _check_met(search.measure(chosen)[1] <= budget * (1 + 1e-9), target, answers)
    else:
        counted, needed = target.needed(answers.correct, answers.agrees)
        counting = survey.search(counted)
        chosen = counting.cheapest(survey.front(counted), needed)
        _check_met(counting.measure(chosen)[0] >= needed, target, answers)
    front = search.unbeaten([*front, chosen])
    at = [thresholds_at(search, cuts, answers.bounds) for cuts in [chosen, *front]]
    return at[0], at[1:]


def _check_met(met: bool, target: Target, answers: Answers) -> None:
    if met:
        return
    if target.name == "max_cost":
        raise ValueError(
            f"`max_cost`={target.value:g} cannot be kept: leaving at the first exit costs "
            f"{answers.costs[0]:g}. Put the first exit earlier, or give it a smaller head."
        )
    raise ValueError(
        f"{target.name}={target.value} cannot be kept: the last exit is right on "
        f"{answers.correct[-1].mean():.2%} of these samples, and no thresholds were found "
        "that do as much. Ask for less, or train the model "
        f"further{answers.or_else}."
    )


def _report(
    answers: Answers,
    target: Target,
    thresholds: list[float | None],
    front: list[list[float | None]],
    guarantee: Guarantee | None,
    exit_names: Sequence[str] | None,
) -> CalibrationReport:
    exits = answers.exits(thresholds)
    there = [exits == index for index in range(len(answers.costs))]
    names = exit_names or [f"exit_{k}" for k in range(1, len(answers.costs) + 1)]
    return CalibrationReport(
        exit_names=list(names),
        criteria=list(answers.criteria),
        point=_point(answers, thresholds),
        front=[_point(answers, point) for point in front],
        samples=answers.samples,
        last_accuracy=float(answers.correct[-1].mean()),
        exit_accuracy=[float(x) for x in answers.correct.mean(axis=1)],
        accuracy_where_taken=[
            float(row[here].mean()) if here.any() else None
            for row, here in zip(answers.correct, there, strict=True)
        ],
        exit_costs=[float(x) for x in answers.costs / answers.costs[-1]],
        target={target.name: target.value},
        guarantee=guarantee,
        trunk_cost=_trunk_cost(answers, exits),
        class_drops=_class_drops(answers, exits),
    )


def _trunk_cost(answers: Answers, exits: np.ndarray) -> float | None:
    costs = answers.trunk_costs
    return None if costs is None else float((costs[exits] / costs[-1]).mean())


def _class_drops(answers: Answers, exits: np.ndarray) -> list[float | None] | None:
    """Accuracy that each class loses; None for a class without samples."""
    if answers.labels is None:
        return None
    right = answers.correct[exits, np.arange(answers.samples)]
    lost = np.subtract(answers.correct[-1], right, dtype=float)
    of_class = [lost[answers.labels == label] for label in range(answers.num_classes)]
    return [float(values.mean()) if len(values) else None for values in of_class]


def _point(answers: Answers, thresholds: list[float | None]) -> OperatingPoint:
    exits = answers.exits(thresholds)
    right = answers.correct[exits, np.arange(answers.samples)]
    shares = np.bincount(exits, minlength=len(answers.costs)) / answers.samples
    return OperatingPoint(
        thresholds=thresholds,
        accuracy=float(right.mean()),
        cost=float((answers.costs[exits] / answers.costs[-1]).mean()),
        shares=[float(share) for share in shares],
    )
