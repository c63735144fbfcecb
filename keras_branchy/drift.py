# SPDX-License-Identifier: Apache-2.0
"""Whether a running model's samples still leave where they left at calibration.

Exits are seen without labels. When the share of samples that leaves at an exit moves, the
data have moved, and thresholds that were chosen on the old data keep no promise.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_branchy.report import CalibrationReport

__all__ = ["DriftStatus", "ExitDrift"]


@dataclass(frozen=True)
class DriftStatus:
    """What is known after the samples seen so far; print it for a sentence.

    Attributes:
        drifted: Whether it is time to recalibrate; once True, it stays so.
        samples: Samples seen.
        expected: Share that left at each exit at calibration.
        observed: The same where the evidence lies: over all samples seen, or over the
            current window where that fired. NaN before the first sample.
        evidence: The larger of both tests' evidence against "nothing has changed", as a
            part of what an alarm takes: 1 or more is an alarm.
        where: `"all samples"` or `"the last n samples"`.
    """

    drifted: bool
    samples: int
    expected: tuple[float, ...]
    observed: tuple[float, ...]
    evidence: float
    where: str

    def __str__(self) -> str:
        if not self.samples:
            return "No sample was seen yet."
        moves = [b - a for a, b in zip(self.expected, self.observed, strict=True)]
        index = max(range(len(moves)), key=lambda k: abs(moves[k]))
        fact = (
            f"exit {index + 1} took {self.observed[index]:.1%} of {self.where}, and "
            f"{self.expected[index]:.1%} at calibration"
        )
        if self.drifted:
            return f"The data have changed: {fact}. Recalibrate on new labelled samples."
        return f"No sign of drift in {self.samples:,} samples: {fact}."


class ExitDrift:
    """Compares the exits that samples take with those they took at calibration.

    Two tests run side by side. One looks at all samples since calibration and finds small
    changes that last; the other starts anew every `window` samples and finds late ones.
    Both may be asked after every batch, for ever: over the whole life of the monitor, the
    probability of ever raising an alarm while nothing changes is at most
    `false_alarm_rate`, whatever the number of samples, exits or questions.

    With counts c of the calibration samples and x of n new ones over K exits, the evidence
    is the Bayes factor of two unknown distributions against one that gave both,

        E = M(x) · M(c) / M(x + c),    M(x) = Γ(K) Π Γ(x_k + 1) / Γ(n + K),

    where M is the probability of a sequence under a uniform prior. Given c, E is a
    martingale of mean 1 for new samples of the predictive distribution M(x + c) / M(c), so
    that by Ville's inequality it ever reaches 1/α with probability α at most: the
    uncertainty of the calibration shares is part of the test. All samples together get
    α = rate / 2, window j gets rate / (2 j (j + 1)), which adds up to the rate. This is the
    multinomial test of Lindon and Malek, "Anytime-Valid Inference for Multinomial Count
    Data" (NeurIPS 2022, arXiv 2011.03567), with the distribution under test unknown too.
    The bound holds on the average over where the true shares may lie given c; at any fixed
    shares tried it is kept with room (`tests/test_drift.py`).

    Samples are taken to be independent. Frames of one video are not: pass every n-th.

    Args:
        counts: How many calibration samples left at each exit, the last included.
        false_alarm_rate: Probability of a false alarm, ever.
        window: Samples after which the second test starts anew.

    Raises:
        ValueError: If there are not two exits or more, a count is no whole number of at
            least 0, all are 0, or a setting is out of range.

    Example:

    ```python
    from keras_branchy.drift import ExitDrift

    drift = ExitDrift([9000, 1000])
    assert not drift.update([0] * 900 + [1] * 100).drifted
    assert drift.update([0] * 600 + [1] * 400).drifted
    ```
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        false_alarm_rate: float = 0.01,
        window: int = 2000,
    ):
        self.calibration = _check_counts(counts)
        if not 0.0 < false_alarm_rate < 1.0:
            raise ValueError(
                "`false_alarm_rate` is a probability between 0 and 1. Received: "
                f"false_alarm_rate={false_alarm_rate}. 0.01 is one in a hundred."
            )
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(
                "`window` is a number of samples, an integer of at least 1. Received: "
                f"window={window!r}."
            )
        self.false_alarm_rate = float(false_alarm_rate)
        self.window = window
        self._total = [0] * len(self.calibration)
        self._recent = [0] * len(self.calibration)
        self._windows = 1
        self._alarm: DriftStatus | None = None

    @classmethod
    def from_report(
        cls,
        report: CalibrationReport,
        *,
        false_alarm_rate: float = 0.01,
        window: int = 2000,
    ) -> ExitDrift:
        """Starts from what `BranchyModel.calibrate` returned."""
        counts = [round(share * report.samples) for share in report.shares]
        return cls(counts, false_alarm_rate=false_alarm_rate, window=window)

    @property
    def status(self) -> DriftStatus:
        """What is known by now."""
        if self._alarm is None:
            return self._look()
        return self._alarm

    def update(self, exits: Iterable[int]) -> DriftStatus:
        """Adds the exits that new samples took, as `predict_early(…).exits` holds them.

        Args:
            exits: Indices of exits from 0, in the order in which samples came.

        Returns:
            The status after them.

        Raises:
            TypeError: If `exits` are no indices.
            ValueError: If an index names no exit.
        """
        taken = _check_exits(exits)
        unknown = sorted({k for k in taken if not 0 <= k < len(self.calibration)})
        if unknown:
            raise ValueError(
                f"Exits are indices from 0 to {len(self.calibration) - 1}. Received: "
                f"{unknown}. Pass `predict_early(…).exits` of the calibrated model."
            )
        while taken and self._alarm is None:
            room = self.window - sum(self._recent)
            self._add(taken[:room])
            taken = taken[room:]
        return self.status

    def _add(self, exits: Sequence[int]) -> None:
        if sum(self._recent) == 0 and any(self._total):
            self._windows += 1
        for index, count in Counter(exits).items():
            self._total[index] += count
            self._recent[index] += count
        status = self._look()
        self._alarm = status if status.drifted else None
        if sum(self._recent) == self.window:
            self._recent = [0] * len(self.calibration)

    def _look(self) -> DriftStatus:
        half, j = self.false_alarm_rate / 2, self._windows
        overall = self._evidence(self._total) / -math.log(half)
        recent = self._evidence(self._recent) / -math.log(half / (j * (j + 1)))
        fired = recent if recent >= max(1.0, overall) else overall
        seen = self._recent if fired is recent else self._total
        whole = seen is self._total or sum(seen) == sum(self._total)
        return DriftStatus(
            drifted=fired >= 1.0,
            samples=sum(self._total),
            expected=_shares(self.calibration),
            observed=_shares(seen),
            evidence=max(overall, recent),
            where="all samples" if whole else f"the last {sum(seen):,} samples",
        )

    def _evidence(self, seen: Sequence[int]) -> float:
        """Ln E, never below 0."""
        both = [a + b for a, b in zip(self.calibration, seen, strict=True)]
        apart = _log_mixture(seen) + _log_mixture(self.calibration)
        return max(0.0, apart - _log_mixture(both))


def _check_exits(exits: Any) -> list[int]:
    try:
        return [operator.index(index) for index in exits]
    except TypeError as error:
        raise TypeError(
            "Exits are a sequence of indices, integers from 0. Received: "
            f"{type(exits).__name__}. Pass `predict_early(…).exits`."
        ) from error


def _log_mixture(counts: Sequence[int]) -> float:
    """Ln M, the probability of a sequence with these counts under a uniform prior."""
    total, kinds = sum(counts), len(counts)
    each = sum(math.lgamma(count + 1) for count in counts)
    return math.lgamma(kinds) + each - math.lgamma(total + kinds)


def _shares(counts: Sequence[int]) -> tuple[float, ...]:
    total = sum(counts)
    return tuple(count / total if total else math.nan for count in counts)


def _check_counts(counts: Sequence[int]) -> list[int]:
    whole = [int(count) for count in counts if count == count and abs(count) < math.inf]
    fit = len(whole) >= 2 and whole == list(counts) and min(whole) >= 0
    if not fit or not any(whole):
        raise ValueError(
            "`counts` holds how many calibration samples left at each exit, whole numbers "
            f"for two exits or more. Received: counts={list(counts)}. Multiply shares by "
            "the number of samples, or use ExitDrift.from_report(report)."
        )
    return whole
