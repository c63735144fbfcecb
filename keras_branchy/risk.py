# SPDX-License-Identifier: Apache-2.0
"""Tests of a risk on held-out samples, and the walk along a path of candidates.

A *risk* is the mean of a loss in [0, 1] over all data to come; a *limit* is what it may be.
Where gains count, a loss is 1 for an answer that is lost, -1 for one that is gained, and
the risk is the drop in accuracy (`drop_test`).
With a confidence, Learn-Then-Test (Angelopoulos et al., 2021, arXiv 2110.01052): each
candidate's p-value bounds the chance of seeing so small a loss if its risk were above the
limit; candidates are tested in an order fixed beforehand, from the safest, and the walk
ends at the first that fails. The one before it exceeds the limit with a probability of at
most 1 - confidence. "On average" instead is conformal risk control (2208.02814). For early
exits: Jazbec et al., "Fast yet Safe" (2405.20915).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from keras_branchy.binomial import binomial_cdf
from keras_branchy.drop_test import drop_test

__all__ = ["Evidence", "RiskTest"]


@dataclass(frozen=True)
class Evidence:
    """What the test samples say of one candidate.

    Attributes:
        risk: Mean loss on the test samples.
        limit: What the mean loss of data to come may be.
        samples: Number of test samples.
        passes: Whether the test is passed.
    """

    risk: float
    limit: float
    samples: int
    passes: bool


@dataclass(frozen=True)
class RiskTest:
    """A test of risks at one confidence.

    Args:
        confidence: Probability, over the draw of the calibration samples, with which the
            limit is to be kept; or `"mean"`, for keeping it on average over these draws.
        gains_count: Whether losses are -1, 0 or 1, and not from 0 to 1.

    Example:

    ```python
    import numpy as np
    from keras_branchy.risk import RiskTest

    test = RiskTest(0.95)
    assert test.samples_needed(0.01) == 299
    assert test(np.zeros(299), 0.01).passes and not test(np.zeros(298), 0.01).passes
    ```
    """

    confidence: float | str
    gains_count: bool = False

    def __post_init__(self) -> None:
        given = self.confidence
        if isinstance(given, bool) or not isinstance(given, (int, float, np.number)):
            fits = isinstance(given, str) and given == "mean"
        else:
            fits = 0 < given < 1
        if not fits:
            raise ValueError(
                "`confidence` is a probability between 0 and 1, such as 0.95, or 'mean' "
                f"for a limit that is kept on average. Received: confidence={given!r}."
            )

    @property
    def on_average(self) -> bool:
        """Whether the limit is kept on average, and not with a probability."""
        return self.confidence == "mean"

    @property
    def error(self) -> float:
        """The probability with which the limit may be exceeded."""
        return 1.0 - float(self.confidence)

    def samples_needed(self, limit: float) -> float:
        """The fewest test samples with which a loss that was never seen can pass."""
        if limit >= 1:
            return 1
        if limit <= 0:
            return math.inf
        if self.on_average:
            return math.ceil(1 / limit - 1e-9) - 1
        return math.ceil(math.log(self.error) / math.log1p(-limit) - 1e-9)

    def losses_allowed(self, samples: int, limit: float) -> int:
        """How many of `samples` may have a loss of 1; -1 if not even none is enough.

        Where gains count, this is so without any.
        """
        if self.gains_count and not self.on_average:
            return drop_test(samples, limit, self.error).losses_allowed(0)
        if self.on_average:
            return math.floor((samples + 1) * limit + 1e-9) - 1
        most = math.ceil(samples * limit)
        tails = binomial_cdf(np.arange(most + 1), samples, limit)
        return int(np.count_nonzero(tails <= self.error)) - 1

    def __call__(self, losses: np.ndarray, limit: float) -> Evidence:
        """Tests whether the mean loss of data to come is at most `limit`.

        Args:
            losses: [n] in [0, 1], or -1, 0 or 1 where gains count, of samples that had no
                part in choosing the candidate.
            limit: The largest mean loss.
        """
        losses = np.asarray(losses, np.float64)
        count, total = len(losses), float(losses.sum())
        if limit >= 1:
            passes = True
        elif self.on_average:
            passes = total + 1 <= (count + 1) * limit * (1 + 1e-12)
        elif self.gains_count:
            lost, gained = (int((losses == sign).sum()) for sign in (1, -1))
            passes = limit > 0 and drop_test(count, limit, self.error).passes(lost, gained)
        elif np.isin(losses, (0.0, 1.0)).all():
            passes = total <= self.losses_allowed(count, limit)
        else:
            passes = _hoeffding_bentkus(total / count, count, limit) <= self.error
        return Evidence(total / count, limit, count, bool(passes))

    def walk(
        self, candidates: Iterable[list[tuple[np.ndarray, float]]]
    ) -> list[list[Evidence]]:
        """The evidence for each candidate up to the first that fails, which is left out.

        Args:
            candidates: From the safest to the boldest, each a list of losses and limits
                that must all be kept.
        """
        passed = []
        for requirements in candidates:
            evidence = [self(losses, limit) for losses, limit in requirements]
            if not all(found.passes for found in evidence):
                break
            passed.append(evidence)
        return passed


def _hoeffding_bentkus(mean: float, count: int, limit: float) -> float:
    """A p-value for "the mean of a loss in [0, 1] is above `limit`" (2110.01052, 3.2)."""
    if mean >= limit:
        return 1.0
    if limit >= 1:
        return 0.0
    divergence = (1 - mean) * math.log((1 - mean) / (1 - limit))
    if mean > 0:
        divergence += mean * math.log(mean / limit)
    at_most = math.ceil(count * mean - 1e-9)
    bentkus = math.e * float(binomial_cdf(np.array([at_most]), count, limit)[0])
    return min(math.exp(-count * divergence), bentkus)
