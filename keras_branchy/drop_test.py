# SPDX-License-Identifier: Apache-2.0
"""An exact test of a drop in accuracy, losses less gains, on finitely many samples.

Of n samples L are lost (the last exit is right, early exit wrong) and G gained (the other
way round), so the drop is P(lost) - P(gained). Tested is that it is above a limit ε, as in
comparisons of paired answers: Tango (1998) gives the score statistic, Hsueh, Liu and Chen
(2001, "Unconditional exact tests for equivalence or noninferiority for paired binary
endpoints") its exact distribution, Berger and Boos (1994) the bound of what is not known.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from keras_branchy.binomial import binomial_interval, log_factorials

__all__ = ["DropTest", "score_statistic"]

# Of the error that is allowed, the part for the gains' rate to lie outside its interval.
OUTSIDE = 0.02
# In roots of the number of gains, which have a standard deviation of 1/2.
BLOCK = 2.0
# Steps of the gains' rate, in standard errors of the drop.
STEP = 0.04
# Standard deviations that are summed up; what lies beyond counts as passed by mistake.
REACH = 5.0


class DropTest:
    """Whether so many losses and gains show that accuracy drops by less than a limit.

    It passes without any loss, if that is at most as likely as δ at a rate of ε; else where
    the score statistic T is at most a critical value, which depends on G only by the block
    of numbers that G is in. For rates q of gains, let each block have
    an interval C such that q is in that of G's block with a probability of at least
    1 - γ (Clopper and Pearson). The critical value t of a block is such that for each q in
    C, and P(lost) = q + ε, T ≤ t or L = 0 has a probability of at most δ - γ.

    A drop of more than ε passes with a probability of at most δ:

    - Where P(lost) is larger than q + ε, the test passes more rarely: given G, the losses
      are binomial, and it passes for all L up to some number. So let it be q + ε.
    - If it passes, q is outside the interval of G's block, or inside it with L = 0 or T at
      most the critical value of a block whose interval holds q. The first has a probability
      of at most γ. The second implies L = 0 or T at most the largest critical value of
      these blocks, which has one of at most δ - γ.
    - Where (1 - ε)ⁿ, the most that L = 0 has, is between δ - γ and δ, only L = 0 passes.

    Between two rates q ≤ r that are computed, the probability is at most that with losses
    of q + ε and gains of r, since it passes for more losses where there are more gains.

    Args:
        samples: n.
        limit: ε, more than 0 and less than 1.
        error: δ, the probability with which a larger drop may pass.

    Example:

    ```python
    from keras_branchy.drop_test import DropTest

    test = DropTest(samples=5_000, limit=0.01, error=0.05)
    assert test.passes(lost=30, gained=0) and test.passes(lost=110, gained=90)
    assert not test.passes(lost=50, gained=0)
    ```
    """

    def __init__(self, samples: int, limit: float, error: float):
        self.samples, self.limit, self.error = samples, limit, error
        without = math.exp(samples * math.log1p(-limit))
        self.without_loss = without <= error * (1 + 1e-12)
        self._nothing_else = self.without_loss and without > (1 - OUTSIDE) * error
        self._blocks: dict[int, _Block] = {}

    def passes(self, lost: int, gained: int) -> bool:
        """Whether `lost` and `gained` of the samples show a drop below the limit."""
        if lost == 0 and self.without_loss:
            return True
        if lost - gained >= self.samples * self.limit or self._nothing_else:
            return False
        place = math.floor(math.sqrt(gained) / BLOCK)
        if place not in self._blocks:
            first, after = (math.ceil((BLOCK * k) ** 2) for k in (place, place + 1))
            self._blocks[place] = _Block(self, first, min(after - 1, self.samples))
        value = score_statistic(lost, gained, self.samples, self.limit)
        return self._blocks[place].passes(float(value))

    def losses_allowed(self, gained: int) -> int:
        """The most losses that pass with so many gains; -1 where not even none does."""
        passing, failing = -1, gained + math.ceil(self.samples * self.limit)
        while failing - passing > 1:
            middle = (passing + failing) // 2
            if self.passes(middle, gained):
                passing = middle
            else:
                failing = middle
        return passing


def score_statistic(
    lost: np.ndarray | int, gained: np.ndarray | int, samples: int, limit: float
) -> np.ndarray:
    """Tango's T: the drop less the limit, in its standard errors at the limit.

    The error is that of the likeliest rate of gains where the drop is just `limit`. T rises
    with the losses and falls with the gains.
    """
    lost, gained = np.asarray(lost, np.float64), np.asarray(gained, np.float64)
    linear = limit * (2 * samples - lost + gained) - lost - gained
    constant = gained * limit * (1 - limit)
    rate = (np.sqrt(linear**2 + 8 * samples * constant) - linear) / (4 * samples)
    variance = samples * (2 * rate + limit * (1 - limit))
    return (lost - gained - samples * limit) / np.sqrt(variance)


class _Block:
    """Numbers of gains from `first` to `last`, and which values of T pass there."""

    def __init__(self, test: DropTest, first: int, last: int):
        self.test = test
        least, most = binomial_interval(first, last, test.samples, OUTSIDE * test.error)
        self.rates = _rates(test, least, min(most, (1 - test.limit) / 2))
        # What is known to pass and not to: T at most the one, at least the other.
        self.passing, self.failing = -math.inf, math.inf
        self._sizes: _Sizes | None = None

    def passes(self, value: float) -> bool:
        # Most values are far from the critical one, which is near the normal's.
        normal = NormalDist().inv_cdf(self.test.error)
        for tried in (normal - 0.1, normal, value):
            if value <= self.passing or value >= self.failing:
                break
            if self.passing < tried < self.failing:
                self._try(tried)
        return value <= self.passing

    def _try(self, value: float) -> None:
        if self._sizes is None:
            self._sizes = _Sizes(self.test, self.rates)
        if self._sizes.largest(value) <= (1 - OUTSIDE) * self.test.error:
            self.passing = max(self.passing, value)
        else:
            self.failing = min(self.failing, value)


def _rates(test: DropTest, least: float, most: float) -> np.ndarray:
    """Rates of gains from `least` to `most`, in steps that change little."""
    rates = [least]
    while rates[-1] < most:
        step = STEP * math.sqrt((2 * rates[-1] + test.limit) / test.samples)
        rates.append(min(rates[-1] + step, most))
    return np.array(rates if len(rates) > 1 else [least, most])


class _Sizes:
    """Probabilities that T is at most a value, for many rates of gains at once.

    Multinomial probabilities of L and G at one rate are kept in a matrix; those at another
    are its rows and columns times powers of the quotients of the rates.
    """

    def __init__(self, test: DropTest, rates: np.ndarray):
        count, limit = test.samples, test.limit
        # Losses at the lower and gains at the upper end of each step.
        chances = np.stack([rates[:-1] + limit, rates[1:]])
        chances = np.stack([*chances, np.maximum(1 - chances.sum(0), 1e-300)])
        middle = chances[:, chances.shape[1] // 2]
        lost, gained = (_window(row, count) for row in chances[:2])
        rest = count - lost - gained[:, None]
        logs = log_factorials(count)
        log = logs[count] - logs[lost] - logs[gained][:, None] - logs[rest.clip(0)]
        log += lost * math.log(middle[0]) + (gained * math.log(middle[1]))[:, None]
        log += rest * math.log(middle[2])
        self.chances = np.exp(np.where(rest >= 0, log, -np.inf))  # [gained, lost]
        self.values = score_statistic(lost, gained[:, None], count, limit)
        if test.without_loss:
            self.values[:, lost == 0] = -np.inf  # these pass
        ratio = np.log(chances / middle[:, None])
        centre = (int(lost.mean()), int(gained.mean()))
        of_lost, of_gained = ratio[0] - ratio[2], ratio[1] - ratio[2]
        start = count * ratio[2] + centre[0] * of_lost + centre[1] * of_gained
        self.of_lost = np.exp(np.outer(of_lost, lost - centre[0]))
        self.of_gained = np.exp(np.outer(of_gained, gained - centre[1]) + start[:, None])
        self.beyond = np.maximum(1 - self._summed(self.chances), 0.0)

    def largest(self, value: float) -> float:
        """The largest probability, over the rates, to pass with `value` as the critical."""
        passing = self.values <= value
        most = int(passing.any(axis=0).sum())  # T rises with the losses
        inside = self._summed(np.where(passing, self.chances, 0.0)[:, :most])
        return float((inside + self.beyond).max())

    def _summed(self, chances: np.ndarray) -> np.ndarray:
        of_lost = self.of_lost[:, : chances.shape[1]] @ chances.T
        return np.einsum("qg,qg->q", self.of_gained, of_lost)


def _window(chances: np.ndarray, count: int) -> np.ndarray:
    """The numbers that a binomial with one of these chances has, but for far tails."""
    least, most = count * chances.min(), count * chances.max()
    first = math.floor(least - REACH * math.sqrt(least))
    last = math.ceil(most + REACH * math.sqrt(most) + REACH**2 / 2)
    return np.arange(max(first, 0), min(last, count) + 1)


@lru_cache(maxsize=64)
def drop_test(samples: int, limit: float, error: float) -> DropTest:
    """One test for all candidates that are tested alike: it remembers what passes."""
    return DropTest(samples, limit, error)
