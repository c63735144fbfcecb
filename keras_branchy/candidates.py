# SPDX-License-Identifier: Apache-2.0
"""A path of candidate thresholds, from surely safe to too bold, for a test to walk.

Along it only the target and the cost count: at each of a few levels of what the target
allows, the cheapest cuts there are, and even steps between one level and the next.
"""

from __future__ import annotations

import math

import numpy as np

from keras_branchy.answers import Answers
from keras_branchy.midpoints import thresholds_at
from keras_branchy.targets import Target
from keras_branchy.threshold_search import ThresholdSearch

__all__ = ["candidates"]

# As shares of what the target allows on these samples.
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.6)
STEPS = 12  # candidates between two levels


def candidates(answers: Answers, target: Target) -> list[list[float | None]]:
    """Thresholds from the safest to the boldest.

    Args:
        answers: Samples that will not test them.
        target: What is to be kept.
    """
    counted = answers.correct
    if target.is_risk:
        counted = target.good(answers.correct, answers.agrees)
    search = ThresholdSearch(answers.scores, counted, answers.costs, answers.criteria)
    if target.name == "exit_shares":
        path = _path_of_shares(search, np.asarray(target.value))
    elif target.name == "max_cost":
        path = _joined(search, _corners_of_cost(search, target.value / answers.costs[-1]))
    else:
        path = _joined(search, _corners_of_risk(search, target))
    return [thresholds_at(search, cuts, answers.bounds) for cuts in path]


def _corners_of_risk(search: ThresholdSearch, target: Target) -> list[tuple[int, ...]]:
    """From nobody leaving to more bad answers than the target allows."""
    front = search.front()
    bad_at_last = int((~search.correct[-1]).sum())
    spare = max(target.limit * search.samples - bad_at_last, 0.0)
    corners = [(0,) * search.exits]
    for level in LEVELS:
        needed = search.samples - math.floor(bad_at_last + level * spare + 1e-9)
        corners.append(search.cheapest(front, needed, thorough=False))
    return corners


def _corners_of_cost(search: ThresholdSearch, budget: float) -> list[tuple[int, ...]]:
    """From everyone leaving at the first exit to a higher cost than `budget` allows."""
    least = search.costs[0]
    everyone = (int(search.orders[0].cuts[-1]), *(0,) * (search.exits - 1))
    front = [*search.front(), everyone]
    corners = [everyone]
    for level in LEVELS:
        allowed = least + level * max(budget - least, 0.0)
        corners.append(search.most_accurate(front, allowed, thorough=False))
    return corners


def _joined(
    search: ThresholdSearch, corners: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """The corners, and between two of them cuts in equal steps, each but once."""
    path = corners[:1]
    for start, end in zip(corners, corners[1:], strict=False):
        for step in range(1, STEPS + 1):
            share = step / STEPS
            cuts = tuple(
                _nearest(order.cuts, (1 - share) * before + share * after)
                for order, before, after in zip(search.orders, start, end, strict=True)
            )
            if cuts != path[-1]:
                path.append(cuts)
    return path


def _nearest(cuts: np.ndarray, rank: float) -> int:
    return int(cuts[np.searchsorted(cuts, rank + 1e-9, side="right") - 1])


def _path_of_shares(search: ThresholdSearch, shares: np.ndarray) -> list[tuple[int, ...]]:
    """From everyone leaving at the first exit to the shares that are asked for."""
    left = np.cumsum(shares)
    path = []
    for more in np.linspace(1.0, 0.0, 8 * STEPS + 1):
        path.append(search.with_shares(np.diff(left + more * (1 - left), prepend=0.0)))
    return list(dict.fromkeys(path))
