# SPDX-License-Identifier: Apache-2.0
"""A path of candidate thresholds, from surely safe to too bold, for a test to walk.

Along it only the target and the cost count: at each of a few levels of what the target
allows, the cheapest cuts there are, and even steps between one level and the next, where
they lead on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from keras_branchy.expected_gains import expected_gains
from keras_branchy.midpoints import thresholds_at
from keras_branchy.survey import CandidatePath, Cuts, Survey
from keras_branchy.targets import Target
from keras_branchy.threshold_search import ThresholdSearch

__all__ = ["candidates"]

# As shares of what the target allows on these samples. Those beyond it are for fits that
# were too careful, and for samples that are luckier.
# Near what is allowed they are close, since what lies between two may lead nowhere.
LEVELS = (
    *(0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3),
    *(1.4, 1.6, 1.8, 2.2, 2.6, 3.0, 4.5, 7.0, 11.0),
)
STEPS = 16  # candidates between two levels


def candidates(survey: Survey, target: Target) -> CandidatePath:
    """Thresholds from the safest to the boldest, each made when it is asked for.

    Args:
        survey: Of samples that will not test them.
        target: What is to be kept.
    """
    key = target.name, str(target.value)
    if key not in survey.paths:
        survey.paths[key] = CandidatePath(_made(survey, target))
    return survey.paths[key]


def _made(survey: Survey, target: Target) -> Iterator[list[float | None]]:
    answers = survey.answers
    counted = answers.correct
    if target.is_risk:
        good = target.good(answers.correct, answers.agrees)
        counted = expected_gains(answers.scores, good)
    search = survey.search(counted)
    path: Iterable[Cuts]
    if target.name == "exit_shares":
        path = _path_of_shares(search, np.asarray(target.value))
    elif target.name == "max_cost":
        budget = target.value / answers.costs[-1]
        corners = _corners_of_cost(search, survey.front(counted), budget)
        path = _joined(search, corners, lambda cuts: search.measure(cuts)[::-1])
    else:
        spare = target.limit * answers.samples
        if not target.gains_count:
            spare -= np.count_nonzero(~good[-1])
        front = survey.front(counted, thorough=False)
        corners = _corners_of_risk(search, front, max(spare, 0.0))
        path = _joined(
            search, corners, lambda cuts: tuple(-x for x in search.measure(cuts))
        )
    for cuts in path:
        yield thresholds_at(search, cuts, answers.bounds)


def _corners_of_risk(
    search: ThresholdSearch, front: list[Cuts], spare: float
) -> Iterator[Cuts]:
    """From nobody leaving to more lost answers than the `spare` ones."""
    yield (0,) * search.exits
    for level in LEVELS:
        yield search.cheapest(front, -level * spare, thorough=False)


def _corners_of_cost(
    search: ThresholdSearch, front: list[Cuts], budget: float
) -> Iterator[Cuts]:
    """From everyone leaving at the first exit to a higher cost than `budget` allows."""
    least = search.costs[0]
    everyone = (int(search.orders[0].cuts[-1]), *(0,) * (search.exits - 1))
    yield everyone
    for level in LEVELS:
        allowed = least + level * max(budget - least, 0.0)
        yield search.most_accurate([*front, everyone], allowed, thorough=False)


def _joined(
    search: ThresholdSearch, corners: Iterator[Cuts], measure: Callable
) -> Iterator[Cuts]:
    """The corners, and between two of them cuts in equal steps, as far as they lead on.

    Two corners may be far apart, and what lies between them worse than both: a candidate
    must be better than the last, and no bolder than the corner to which it leads.

    Args:
        search: The search whose cuts they are.
        corners: From the safest to the boldest.
        measure: How bold cuts are, and how good.
    """
    start = next(corners)
    yield start
    best = measure(start)[1]
    for end in corners:
        boldest = measure(end)[0]
        for step in range(1, STEPS + 1):
            share = step / STEPS
            cuts = tuple(
                _nearest(order.cuts, (1 - share) * before + share * after)
                for order, before, after in zip(search.orders, start, end, strict=True)
            )
            bold, good = measure(cuts)
            if good > best and bold <= boldest:
                yield cuts
                best = good
        start = end


def _nearest(cuts: np.ndarray, rank: float) -> int:
    return int(cuts[np.searchsorted(cuts, rank + 1e-9, side="right") - 1])


def _path_of_shares(search: ThresholdSearch, shares: np.ndarray) -> list[Cuts]:
    """From everyone leaving at the first exit to the shares that are asked for."""
    left = np.cumsum(shares)
    path = []
    for more in np.linspace(1.0, 0.0, 8 * STEPS + 1):
        path.append(search.with_shares(np.diff(left + more * (1 - left), prepend=0.0)))
    return list(dict.fromkeys(path))
