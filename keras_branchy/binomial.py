# SPDX-License-Identifier: Apache-2.0
"""Binomial probabilities, exact to rounding; NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

__all__ = ["binomial_cdf", "binomial_interval", "log_factorials"]


def binomial_cdf(successes: np.ndarray, trials: int, probability: float) -> np.ndarray:
    """P(X ≤ k) for X ~ Binomial(trials, probability), for each k of `successes`."""
    successes = np.asarray(successes)
    if probability <= 0 or probability >= 1:
        return np.where(successes >= (trials if probability >= 1 else 0), 1.0, 0.0)
    k = np.arange(min(int(successes.max(initial=0)), trials) + 1)
    steps = np.log(trials - k[:-1]) - np.log(k[:-1] + 1)
    choose = np.concatenate([[0.0], np.cumsum(steps)])
    logs = choose + k * math.log(probability) + (trials - k) * math.log1p(-probability)
    sums = np.minimum(np.cumsum(np.exp(logs)), 1.0)
    return np.where(successes < 0, 0.0, sums[successes.clip(0, len(k) - 1)])


def binomial_interval(
    first: int, last: int, trials: int, error: float
) -> tuple[float, float]:
    """A probability's interval if from `first` to `last` of the trials are successes.

    Clopper and Pearson's: it misses the probability with one of at most `error`, half on
    either side.
    """
    least, most = 0.0, 1.0
    if first > 0:
        least, _ = _bisected(
            lambda p: 1 - _at_most(first - 1, trials, p) < error / 2, 0.0, first / trials
        )
    if last < trials:
        _, most = _bisected(
            lambda p: _at_most(last, trials, p) >= error / 2, last / trials, 1.0
        )
    return least, most


def _at_most(successes: int, trials: int, probability: float) -> float:
    return float(binomial_cdf(np.array([successes]), trials, probability)[0])


def _bisected(
    below: Callable[[float], bool], low: float, high: float
) -> tuple[float, float]:
    """Two numbers close together, `below` true of the first and not of the second."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return low, high


@lru_cache(maxsize=8)
def log_factorials(most: int) -> np.ndarray:
    """Ln k! for k from 0 to `most`."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])
