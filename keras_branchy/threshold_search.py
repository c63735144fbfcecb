# SPDX-License-Identifier: Apache-2.0
"""The search for thresholds, on cached scores; NumPy only.

Each exit's samples are sorted once by how sure the exit was; a cut is a place in that
order. Histograms of the places, summed up along each axis, give the outcome of every
combination of cuts of a few exits at once, the others fixed. Such blocks of exits are
optimised in turn, for a rising price of cost, which gives a front of operating points; the
cheapest few that keep the target are refined the same way. Where all combinations fit into
one block, as with two exits or few samples, the outcome is the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np

from keras_branchy.criteria import CRITERIA
from keras_branchy.orders import order_of

__all__ = ["ThresholdSearch"]

# Prices of the whole model's cost, in correct answers: from "accuracy only" to "cost only".
PRICES = np.geomspace(1e-3, 1e2, 31)
MAX_SWEEPS = 20
# The rank of who leaves even where nobody is to.
ALWAYS = -1
# Combinations of cuts that are all looked at, where there are no more.
ALL = 2**16
# Otherwise those of a block of exits; four times as many save less than 0.1 % of cost.
CELLS, CELLS_IN_PASSING = 2**14, 2**12
# Of the whole model's cost, what a block must save for the search to go on in passing.
LEAST_IN_PASSING = 1e-4
# Places from which the search for the cheapest cuts starts, beside nobody leaving early.
STARTS = 3
# Up to here three exits are optimised together, where two at a time find nothing more: of
# eight there are 56 triples.
TRIPLES_UP_TO = 8


class ThresholdSearch:
    """The search for cuts. A cut of an exit is a rank: samples of lower rank leave.

    Cuts lie between different scores only, since equal scores leave together. What counts
    as correct is [N, n], bool or in parts. Who is `leaving` at an exit, [N-1, n] bool, does
    so at any cut.
    """

    def __init__(
        self,
        scores: Sequence[np.ndarray],
        correct: np.ndarray,
        costs: Sequence[float] | np.ndarray,
        criteria: Sequence[str],
        leaving: np.ndarray | None = None,
    ):
        self.correct = np.asarray(correct)
        self.samples = self.correct.shape[1]
        self.exits = len(criteria)
        self.costs = np.asarray(costs, np.float64) / costs[-1]
        self.orders = [
            order_of(np.asarray(score, np.float64), CRITERIA[name].exits_below)
            for score, name in zip(scores, criteria, strict=True)
        ]
        self._ranks = np.array([order.rank for order in self.orders], np.int32)
        if leaving is not None:
            self._ranks[np.asarray(leaving, bool)] = ALWAYS
        self._columns = np.arange(self.samples)
        # An earlier exit counts more, so that the largest tells the first to leave at.
        counts = np.arange(self.exits, 0, -1)
        self._counts = counts.astype(np.min_scalar_type(self.exits))[:, None]

    def taken(self, cuts: Sequence[int]) -> np.ndarray:
        """The exit of each sample, [n]."""
        leaves = self._ranks < np.asarray(cuts, np.int32)[:, None]
        first = (leaves * self._counts).max(axis=0, initial=0)
        return self.exits - first.astype(np.intp)

    def always(self, index: int) -> np.ndarray:
        """Who leaves at an exit at any cut, [n] bool."""
        return self._ranks[index] == ALWAYS

    def _right(self, exits: np.ndarray) -> np.ndarray:
        """What each sample counts as at its exit, [n]."""
        return self.correct.reshape(-1).take(exits * self.samples + self._columns)

    def measure(self, cuts: Sequence[int]) -> tuple[float, float]:
        """Correct answers, and the mean cost as a share of the whole model's."""
        exits = self.taken(cuts)
        return _total(self._right(exits)), float(self.costs[exits].mean())

    def front(self, thorough: bool = True) -> list[tuple[int, ...]]:
        """Operating points that none beats in accuracy and cost, by rising cost."""
        cuts: tuple[int, ...] = (0,) * self.exits
        visited = [cuts]
        for price in PRICES if thorough else PRICES[::2]:
            cuts = self._improve(
                cuts, 1, lambda right, cost, p=price: p * cost - right, not thorough
            )
            visited.append(cuts)
        return self.unbeaten(visited)

    def unbeaten(self, points: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Those of `points` that none beats in accuracy and cost, by rising cost."""
        measured = [(*self.measure(cuts), cuts) for cuts in dict.fromkeys(points)]
        front: list[tuple[int, ...]] = []
        best = -math.inf
        for right, _, cuts in sorted(measured, key=lambda found: (found[1], -found[0])):
            if right > best:
                front.append(cuts)
                best = right
        return front

    def cheapest(
        self, front: Sequence[tuple[int, ...]], needed: float, thorough: bool = True
    ) -> tuple[int, ...]:
        """The cheapest cuts found with `needed` correct answers, or else the most correct.

        Args:
            front: Where to look from, as `front()` gives it.
            needed: How many correct answers there must be.
            thorough: Whether to look from several places, and at three exits at once.
        """

        def cost_if_kept(right: np.ndarray, cost: np.ndarray) -> np.ndarray:
            # Of cuts that cost alike, those that are right more often.
            kept = cost - 1e-5 * right
            return np.where(right >= needed, kept, 2.0 * self.samples + needed - right)

        kept = [cuts for cuts in front if self.measure(cuts)[0] >= needed]
        return self._best([*kept, front[-1]], cost_if_kept, thorough)

    def most_accurate(
        self, front: Sequence[tuple[int, ...]], budget: float, thorough: bool = True
    ) -> tuple[int, ...]:
        """The most correct cuts found whose mean cost is at most `budget`, or the cheapest.

        Args:
            front: As for `cheapest`.
            budget: A share of the whole model's cost.
            thorough: As for `cheapest`.
        """
        allowed = budget * self.samples * (1 + 1e-9)

        def errors_if_kept(right: np.ndarray, cost: np.ndarray) -> np.ndarray:
            # Of cuts that are right as often, the cheapest.
            kept = self.samples - right + cost / (2.0 * self.samples)
            return np.where(cost <= allowed, kept, 2.0 * self.samples + cost - allowed)

        kept = [cuts for cuts in reversed(front) if self.measure(cuts)[1] <= budget]
        return self._best([*kept, front[0]], errors_if_kept, thorough)

    def _best(
        self, starts: Sequence[tuple[int, ...]], loss: Callable, thorough: bool
    ) -> tuple[int, ...]:
        """The cuts of least loss that are found from the first few places."""
        if not thorough:
            return self._improve(starts[0], 2, loss, in_passing=True)
        ends = {
            self._improve(cuts, 2, loss) for cuts in [*starts[:STARTS], (0,) * self.exits]
        }
        best = min(ends, key=lambda cuts: (self._loss(cuts, loss), cuts))
        return self._improve(best, 3 if self.exits <= TRIPLES_UP_TO else 2, loss)

    def _loss(self, cuts: tuple[int, ...], loss: Callable) -> float:
        right, cost = self.measure(cuts)
        return float(loss(np.float64(right), np.float64(cost * self.samples)))

    def with_shares(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Cuts at which each exit takes its share of all samples, as near as ties allow."""
        cuts: list[int] = []
        staying = np.ones(self.samples, bool)
        for order, share in zip(self.orders, shares, strict=True):
            always = self.always(len(cuts))
            choice = (staying & ~always)[order.samples]
            leaving = np.concatenate([[0], np.cumsum(choice)])[order.cuts]
            leaving += np.count_nonzero(staying & always)
            cuts.append(int(order.cuts[np.abs(leaving - share * self.samples).argmin()]))
            staying &= self._ranks[len(cuts) - 1] >= cuts[-1]
        return tuple(cuts)

    def _improve(
        self,
        cuts: tuple[int, ...],
        most: int,
        loss: Callable,
        in_passing: bool = False,
    ) -> tuple[int, ...]:
        """Lowers `loss(right, cost)`, blocks of up to `most` exits at a time."""
        if math.prod(len(order.cuts) for order in self.orders) <= ALL:
            return self._improve_block(cuts, tuple(range(self.exits)), loss, math.inf)
        cells = CELLS_IN_PASSING if in_passing else CELLS
        least = LEAST_IN_PASSING * self.samples if in_passing else 1e-6
        for _ in range(MAX_SWEEPS):
            before = cuts
            for block in self._blocks(most):
                cuts = self._improve_block(cuts, block, loss, cells, least)
            if cuts == before:
                break
        return cuts

    def _blocks(self, most: int) -> Iterator[tuple[int, ...]]:
        """Blocks of one exit, of two …."""
        for size in range(1, min(most, self.exits) + 1):
            yield from combinations(reversed(range(self.exits)), size)

    def _improve_block(
        self,
        cuts: tuple[int, ...],
        block: tuple[int, ...],
        loss: Callable,
        cells: float,
        least: float = 1e-6,
    ) -> tuple[int, ...]:
        block = tuple(sorted(block))
        room = math.inf if len(block) == 1 else cells ** (1 / len(block))
        tried = [self.orders[index].some_cuts(cuts[index], room) for index in block]
        values = loss(*self._outcomes(cuts, block, tried))
        here = tuple(
            int(np.searchsorted(ranks, cuts[index]))
            for index, ranks in zip(block, tried, strict=True)
        )
        best = np.unravel_index(values.argmin(), values.shape)
        if values[best] > values[here] - least:
            return cuts
        chosen = list(cuts)
        for index, ranks, place in zip(block, tried, best, strict=True):
            chosen[index] = int(ranks[place])
        return tuple(chosen)

    def _outcomes(
        self, cuts: Sequence[int], block: Sequence[int], tried: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Correct answers and total cost for all combinations of cuts of some exits.

        Returns:
            Two arrays with one axis per exit of `block`, in the order of `tried`.
        """
        fixed = [0 if index in block else cut for index, cut in enumerate(cuts)]
        everyone = self.taken(fixed)
        right_otherwise = self._right(everyone)
        right = np.array(_total(right_otherwise), np.float64)
        cost = np.array(np.bincount(everyone, minlength=self.exits + 1) @ self.costs)
        # The others' cuts decide for those who leave before the block.
        here = np.flatnonzero(everyone > block[0])
        otherwise, right_otherwise = everyone[here], right_otherwise[here]
        cost_otherwise = self.costs[otherwise]
        cell = np.zeros(len(here), np.intp)
        shape: tuple[int, ...] = ()
        for index, ranks in zip(block, tried, strict=True):
            # The place in `ranks` of the first cut at which a sample leaves.
            first = _places(ranks, self.samples)[self._ranks[index][here]]
            if index > block[0]:
                first[otherwise <= index] = len(ranks)
            shape = (*shape, len(ranks) + 1)
            cell = cell * shape[-1] + first
            gained = self.correct[index][here] * 1.0 - right_otherwise
            saved = self.costs[index] - cost_otherwise
            right = right[..., None] + _summed(cell, gained, shape)
            cost = cost[..., None] + _summed(cell, saved, shape)
        return right, cost


def _total(right: np.ndarray) -> float:
    return int(np.count_nonzero(right)) if right.dtype == bool else float(right.sum())


def _places(ranks: np.ndarray, samples: int) -> np.ndarray:
    """For each rank from 0 to `samples`, how many of `ranks` are at most that."""
    ends = np.concatenate([[0], ranks, [samples + 1]])
    return np.repeat(np.arange(len(ranks) + 1), ends[1:] - ends[:-1])


def _summed(cell: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sums over samples that stay at the earlier axes and leave at the last, per cut."""
    sums = np.bincount(cell, values, math.prod(shape)).reshape(shape).cumsum(-1)[..., :-1]
    for axis in range(len(shape) - 1):
        before = (slice(None),) * axis
        left = sums.cumsum(axis)
        sums = left[(*before, slice(-1, None))] - left[(*before, slice(None, -1))]
    return sums
