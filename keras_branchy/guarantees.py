# SPDX-License-Identifier: Apache-2.0
"""Thresholds that keep a target on data to come, with a stated probability.

Three tenths of the samples lay a path of candidates, from one that is surely safe to one
that is too bold; the others test them in that order (`risk.RiskTest`). Which are which is
drawn at random, with a fixed seed. Nothing is tested on the samples that it was chosen on,
so the statement holds for any network, any scores, and samples drawn like those of the
calibration.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_branchy.answers import Answers
from keras_branchy.candidates import candidates
from keras_branchy.risk import RiskTest
from keras_branchy.survey import Survey
from keras_branchy.targets import Target

__all__ = ["Guarantee", "certified"]

FEWEST_FOR_A_PATH = 20
# A path needs fewer samples than a test: its fit is smooth (`expected_gains`).
TESTED = 0.7


@dataclass(frozen=True)
class Guarantee:
    """What holds for samples to come, and the test that says so.

    Attributes:
        statement: The guarantee, in one sentence.
        confidence: The probability, over the draw of the calibration samples, that it
            holds; `"mean"` if it holds on average over these draws.
        limits: The largest mean losses that the target allows.
        risks: The mean losses of the chosen thresholds on the test samples; of a drop in
            accuracy, what is gained taken off.
        samples: How many samples tested; they chose nothing.
    """

    statement: str
    confidence: float | str
    limits: list[float]
    risks: list[float]
    samples: int


def certified(
    survey: Survey, target: Target, confidence: Any, seed: int = 0
) -> tuple[list[float | None], Guarantee]:
    """The boldest thresholds on the path that the test lets pass.

    Args:
        survey: Of the calibration samples.
        target: What is to be kept.
        confidence: As for `RiskTest`.
        seed: Of the split into halves.

    Raises:
        ValueError: If so few samples cannot show the target, with the number needed, or
            not even the safest thresholds pass.
    """
    test = RiskTest(confidence, gains_count=target.gains_count)
    limits = _limits(target, survey.answers)
    chosen_by, tested_on = _split(survey, target, test, limits, seed)
    walked: list[list[float | None]] = []

    def requirements() -> Iterator[list[tuple[np.ndarray, float]]]:
        for thresholds in candidates(chosen_by, target):
            walked.append(thresholds)
            losses = _losses(target, tested_on, thresholds)
            yield list(zip(losses, limits, strict=True))

    passed = test.walk(requirements())
    if not passed:
        losses = _losses(target, tested_on, walked[0])
        raise ValueError(_refusal(target, test, limits, losses, tested_on))
    if len(passed) == 1 and target.is_risk:
        others = "every sample goes to the last exit"
        if survey.answers.leaving is not None:
            others = "samples leave early only where successive exits agree"
        warnings.warn(
            f"No early exit could be shown to keep {target.name}={target.value} at "
            f"confidence={confidence}: {others}. Give more samples, allow more, or train "
            "the exits further.",
            stacklevel=2,
        )
    guarantee = Guarantee(
        statement=_statement(target, test, survey.answers),
        confidence=confidence,
        limits=limits,
        risks=[evidence.risk for evidence in passed[-1]],
        samples=tested_on.samples,
    )
    return walked[len(passed) - 1], guarantee


def _limits(target: Target, answers: Answers) -> list[float]:
    """The largest mean of each loss of `_losses`."""
    if target.is_risk:
        return [target.limit]
    if target.name == "exit_shares":
        left = np.cumsum(target.value)
        return [float(max(1.0 - share, 0.0)) for share in left]
    least, most = answers.costs[0], answers.costs[-1]
    if target.value < least:
        raise ValueError(
            f"`max_cost`={target.value:g} cannot be kept: leaving at the first exit costs "
            f"{least:g}. Received: costs from {least:g} to {most:g}. Put the first exit "
            "earlier, or give it a smaller head."
        )
    return [float(min((target.value - least) / (most - least), 1.0)) if most > least else 1]


def _losses(
    target: Target, answers: Answers, thresholds: Sequence[float | None]
) -> list[np.ndarray]:
    """Each loss [n] that the target bounds, at these thresholds."""
    taken = answers.exits(thresholds)
    if target.is_risk:
        good = target.good(answers.correct, answers.agrees)
        here = good[taken, np.arange(answers.samples)]
        return [np.subtract(good[-1], here, dtype=float) if target.gains_count else ~here]
    if target.name == "exit_shares":
        return [taken > index for index in range(len(answers.criteria))]
    least, most = answers.costs[0], answers.costs[-1]
    return [(answers.costs[taken] - least) / max(most - least, 1e-300)]


def _split(
    survey: Survey, target: Target, test: RiskTest, limits: list[float], seed: int
) -> tuple[Survey, Answers]:
    """Samples for the path and for the test, which gets what it needs."""
    samples = survey.answers.samples
    least = max(test.samples_needed(limit) for limit in limits)
    enough = least + FEWEST_FOR_A_PATH
    if samples < enough:
        if not math.isfinite(enough):
            raise ValueError(
                f"{target.name}={target.value} with a confidence cannot be shown by any "
                "number of samples: however many keep it, the next may not. Received: "
                f"confidence={test.confidence}. Allow a little, such as 0.001."
            )
        needs = f"at least {enough:,} samples"
        raise ValueError(
            f"{target.name}={target.value} at confidence={test.confidence} needs {needs}: "
            f"{FEWEST_FOR_A_PATH} to choose candidates on, and others to test them on. "
            f"Received: {samples:,} samples. Give more, allow more, or ask for "
            "less confidence."
        )
    # A test that just suffices lets no loss pass; a tenth more costs the path little.
    wanted = min(math.ceil(1.1 * least), samples - FEWEST_FOR_A_PATH)
    tested = max(math.ceil(TESTED * samples), wanted)
    tested = min(tested, samples - FEWEST_FOR_A_PATH)
    return survey.parts(tested, seed)


# ---- In words -----------------------------------------------------------------------
def _statement(target: Target, test: RiskTest, answers: Answers) -> str:
    if test.on_average:
        start = "On average over calibration sets like this one,"
    else:
        start = f"With {100 * float(test.confidence):g} % confidence,"
    value = target.value
    says = {
        "max_accuracy_drop": "accuracy on new samples drops by at most {:.4g} points",
        "max_lost_answers": "the last exit's right answer is lost for at most {:.4g} % of "
        "new samples, so accuracy drops by no more",
        "min_accuracy": "accuracy on new samples is at least {:.4g} %",
        "max_disagreement": "the answer differs from the last exit's for at most "
        "{:.4g} % of new samples",
    }
    if target.is_risk:
        said = says[target.name].format(100 * value)
        return f"{start} {said.replace(' 1 points', ' 1 point')}."
    if target.name == "max_cost":
        share = 100 * value / answers.costs[-1]
        return (
            f"{start} the mean cost of new samples is at most {value:.4g}, {share:.4g} % "
            "of the whole model's."
        )
    left = ", ".join(f"{100 * share:.4g} %" for share in np.cumsum(value))
    return f"{start} at least {left} of new samples have left by the exits in turn."


def _refusal(
    target: Target,
    test: RiskTest,
    limits: list[float],
    losses: list[np.ndarray],
    tested_on: Answers,
) -> str:
    seen = ", ".join(f"{100 * float(np.mean(loss)):.4g} %" for loss in losses)
    allowed = ", ".join(f"{100 * limit:.4g} %" for limit in limits)
    return (
        f"Not even the safest thresholds can be shown to keep {target.name}={target.value} "
        f"at confidence={test.confidence}. Received: {tested_on.samples:,} test samples "
        f"with a mean loss of {seen}, where {allowed} is the limit. Allow more, give more "
        f"samples, or train the model further{tested_on.or_else}."
    )
