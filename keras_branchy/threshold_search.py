# SPDX-License-Identifier: Apache-2.0
"""The search for thresholds, on cached scores; NumPy only.

Each exit's samples are sorted once by how sure the exit was. With the other thresholds
fixed, the best cut of one exit is then exact, by cumulative sums over that order. Exits
are optimised in turn, for a rising price of cost, which gives a front of operating points;
the cheapest that keeps the target is refined the same way, by one and two exits at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_branchy.criteria import CRITERIA
from keras_branchy.report import OperatingPoint

__all__ = ["ThresholdSearch"]

# Scores nearer than this, relatively, may change places on another runtime: no cut there.
NEAR = 1e-6
# Prices of the whole model's cost, in correct answers: from "accuracy only" to "cost only".
PRICES = np.geomspace(1e-3, 1e2, 31)
MAX_SWEEPS = 20
# How many cuts of an earlier exit are tried together with every cut of a later one.
TRIED_TOGETHER = 64


@dataclass(frozen=True)
class _Order:
    """The samples of one exit from its surest to its least sure."""

    samples: np.ndarray  # [m] indices; rows with NaN scores are left out
    scores: np.ndarray  # [m] their scores
    rank: np.ndarray  # [n] position of each sample in `samples`; n where left out
    exits_below: bool


class ThresholdSearch:
    """The search for cuts. A cut of an exit is a rank: samples of lower rank leave.

    Cuts lie between different scores only, since equal scores leave together.
    """

    def __init__(
        self,
        scores: Sequence[np.ndarray],
        correct: np.ndarray,
        costs: Sequence[float],
        criteria: Sequence[str],
    ):
        self.correct = np.asarray(correct, bool)
        self.samples = self.correct.shape[1]
        self.exits = len(criteria)
        costs = np.asarray(costs, np.float64)
        self.costs = costs / costs[-1]
        self.orders = [
            _order(np.asarray(score, np.float64), CRITERIA[name].exits_below)
            for score, name in zip(scores, criteria, strict=True)
        ]

    def taken(self, cuts: Sequence[int]) -> np.ndarray:
        """The exit of each sample, [n]."""
        exits = np.full(self.samples, self.exits)
        for index in reversed(range(self.exits)):
            exits[self.orders[index].rank < cuts[index]] = index
        return exits

    def measure(self, cuts: Sequence[int]) -> tuple[int, float]:
        """Correct answers, and the mean cost as a share of the whole model's."""
        exits = self.taken(cuts)
        right = self.correct[exits, np.arange(self.samples)].sum()
        return int(right), float(self.costs[exits].mean())

    def front(self) -> list[tuple[int, ...]]:
        """Operating points that none beats in accuracy and cost, by rising cost."""
        cuts = [0] * self.exits
        visited = {tuple(cuts)}
        for price in PRICES:
            cuts = self._descend(cuts, price)
            visited.add(tuple(cuts))
        measured = sorted((*self.measure(c)[::-1], c) for c in visited)
        front: list[tuple[int, ...]] = []
        best = -1
        for _, right, point in measured:
            if right > best:
                front.append(point)
                best = right
        return front

    def cheapest(self, front: Sequence[tuple[int, ...]], drop: float) -> tuple[int, ...]:
        """The cheapest cuts that lose at most `drop` against the last exit."""
        allowed = int(np.floor(drop * self.samples + 1e-9))
        needed = int(self.correct[-1].sum()) - allowed
        starts = [cuts for cuts in front if self.measure(cuts)[0] >= needed]
        # Accuracy only is the last of the front, and keeps every target.
        return self._refine(starts[0], needed)

    def with_shares(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Cuts at which each exit takes its share of all samples, as near as ties allow."""
        cuts: list[int] = []
        staying = np.ones(self.samples, bool)
        for index, share in enumerate(shares):
            order = self.orders[index]
            leaving = np.cumsum(staying[order.samples])
            candidates = _cut_ranks(order.scores)
            count = np.concatenate([[0], leaving])[candidates]
            best = np.abs(count - share * self.samples).argmin()
            cuts.append(int(candidates[best]))
            staying &= order.rank >= cuts[-1]
        return tuple(cuts)

    def accuracy_where_taken(self, cuts: Sequence[int]) -> list[float | None]:
        """Accuracy of each exit on the samples that leave there; None where none does."""
        exits = self.taken(cuts)
        return [
            float(row[exits == index].mean()) if (exits == index).any() else None
            for index, row in enumerate(self.correct)
        ]

    def point(
        self, cuts: Sequence[int], bounds: Sequence[tuple[float, float]]
    ) -> OperatingPoint:
        """The operating point at `cuts`, its thresholds between two scores."""
        right, cost = self.measure(cuts)
        exits = self.taken(cuts)
        reaching = np.ones(self.samples, bool)
        thresholds = []
        for index, order in enumerate(self.orders):
            thresholds.append(_threshold(order, cuts[index], reaching, bounds[index]))
            reaching &= order.rank >= cuts[index]
        shares = np.bincount(exits, minlength=self.exits + 1) / self.samples
        return OperatingPoint(
            thresholds=thresholds,
            accuracy=right / self.samples,
            cost=cost,
            shares=[float(share) for share in shares],
        )

    def _descend(self, cuts: list[int], price: float) -> list[int]:
        """Improves one exit at a time until no cut of any exit is worth more."""
        cuts = list(cuts)
        for _ in range(MAX_SWEEPS):
            before = list(cuts)
            for index in reversed(range(self.exits)):
                ranks, right, cost = self._gains(cuts, index)
                cuts[index] = int(ranks[(right - price * cost).argmax()])
            if cuts == before:
                break
        return cuts

    def _refine(self, cuts: Sequence[int], needed: int) -> tuple[int, ...]:
        """Lowers the cost while enough answers stay right."""
        best = list(cuts)
        for _ in range(MAX_SWEEPS):
            before = list(best)
            for index in range(self.exits):
                best = self._recut(best, index, needed)
            for earlier in range(self.exits):
                for later in range(earlier + 1, self.exits):
                    best = self._recut_both(best, earlier, later, needed)
            if best == before:
                break
        return tuple(best)

    def _recut(self, cuts: Sequence[int], index: int, needed: int) -> list[int]:
        """The cheapest cut of one exit that leaves enough right answers."""
        ranks, right, cost = self._gains(cuts, index)
        rest, _ = self.measure([*cuts[:index], 0, *cuts[index + 1 :]])
        enough = rest + right >= needed
        if not enough.any():
            return list(cuts)
        return [
            *cuts[:index],
            int(ranks[np.where(enough, cost, np.inf).argmin()]),
            *cuts[index + 1 :],
        ]

    def _recut_both(
        self, cuts: Sequence[int], earlier: int, later: int, needed: int
    ) -> list[int]:
        """The cheapest cuts of two exits: some of the earlier, all of the later one."""
        ranks = _cut_ranks(self.orders[earlier].scores)
        chosen = np.linspace(0, len(ranks) - 1, min(len(ranks), TRIED_TOGETHER))
        best, least = list(cuts), self.measure(cuts)[1]
        for rank in ranks[chosen.round().astype(np.int64)]:
            moved = [*cuts[:earlier], int(rank), *cuts[earlier + 1 :]]
            moved = self._recut(moved, later, needed)
            right, cost = self.measure(moved)
            if right >= needed and cost < least - 1e-12:
                best, least = moved, cost
        return best

    def _gains(
        self, cuts: Sequence[int], index: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What each cut of one exit adds against no cut there, the others fixed.

        Returns:
            Ranks to cut at, rising from 0; added correct answers; added total cost.
        """
        order = self.orders[index]
        everyone = np.arange(self.samples)
        later = self.taken([0] * (index + 1) + list(cuts[index + 1 :]))
        reaches = np.ones(self.samples, bool)
        for earlier in range(index):
            reaches &= self.orders[earlier].rank >= cuts[earlier]
        right = self.correct[index].astype(np.int64) - self.correct[later, everyone]
        cost = self.costs[index] - self.costs[later]
        ranks = _cut_ranks(order.scores)

        def added(value: np.ndarray) -> np.ndarray:
            values = np.where(reaches, value, 0)[order.samples]
            return np.concatenate([[0], np.cumsum(values)])[ranks]

        return ranks, added(right), added(cost)


def _order(scores: np.ndarray, exits_below: bool) -> _Order:
    known = np.flatnonzero(~np.isnan(scores))
    sureness = -scores[known] if exits_below else scores[known]
    samples = known[np.argsort(-sureness, kind="stable")]
    rank = np.full(len(scores), len(scores))
    rank[samples] = np.arange(len(samples))
    return _Order(samples, scores[samples], rank, exits_below)


def _cut_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks between scores that differ, with 0 for nobody and the end for everyone."""
    apart = np.abs(np.diff(scores)) > NEAR * np.maximum(
        np.abs(scores[1:]), np.abs(scores[:-1])
    )
    return np.unique([0, *(np.flatnonzero(apart) + 1), len(scores)]).astype(np.int64)


def _threshold(
    order: _Order, cut: int, reaching: np.ndarray, bounds: tuple[float, float]
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
    limit = bounds[1] if exits_below else bounds[0]
    if not np.isfinite(limit):
        return last - max(abs(last), 1.0)
    middle = (last + limit) / 2
    return middle if abs(middle - last) > NEAR else last + (1 if exits_below else -1) * NEAR
