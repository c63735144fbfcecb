# SPDX-License-Identifier: Apache-2.0
"""The samples of an exit from its surest to its least sure, and where cuts may lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = ["HUGE", "NEAR", "Order", "order_of"]

# Scores nearer than this, relatively, may change places on another runtime: no cut there.
NEAR = 1e-6
# The same for scores that float32 cannot hold in full, or that a runtime flushes to zero.
TINY = 1e-37
# Scores beyond this count as this, and thresholds stay within: they are finite in float32.
HUGE = 2.0**126


@dataclass(frozen=True)
class Order:
    """The samples of one exit from its surest to its least sure."""

    samples: np.ndarray  # [m] indices; rows with NaN scores are left out
    scores: np.ndarray  # [m] their scores
    rank: np.ndarray  # [n] position of each sample in `samples`; n where left out
    cuts: np.ndarray  # ranks between different scores, 0 for nobody and m for everyone
    exits_below: bool

    def some_cuts(self, current: int, room: float) -> np.ndarray:
        """Cuts to try: all, or at most `room`, evenly spread and near `current`."""
        last = len(self.cuts) - 1
        if last < room:
            return self.cuts
        far, around = _spread(last, int(room) // 2)
        here = int(np.searchsorted(self.cuts, current))
        places = np.zeros(last + 1, bool)
        places[far] = True
        places[(here + around).clip(0, last)] = True
        places[here] = True
        return self.cuts[places]


@lru_cache(maxsize=256)
def _spread(last: int, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Places evenly from 0 to `last`, and steps to others around a place."""
    step = last / half
    far = np.linspace(0, last, half).round()
    around = np.linspace(-2 * step, 2 * step, half - 2).round()
    return far.astype(np.intp), around.astype(np.intp)


def order_of(scores: np.ndarray, exits_below: bool) -> Order:
    """The order of samples by their scores [n]."""
    sureness = -scores if exits_below else scores
    # NaN never leaves, and what is less sure than any threshold does not either.
    known = np.flatnonzero(sureness >= -HUGE)
    samples = known[np.argsort(-sureness[known], kind="stable")]
    rank = np.full(len(scores), len(scores))
    rank[samples] = np.arange(len(samples))
    ordered = scores[samples].clip(-HUGE, HUGE)
    return Order(samples, ordered, rank, _cuts(ordered), exits_below)


def _cuts(scores: np.ndarray) -> np.ndarray:
    """Ranks between scores that differ, with 0 for nobody and the end for everyone."""
    size = np.maximum(np.abs(scores[1:]), np.abs(scores[:-1]))
    apart = np.abs(np.diff(scores)) > NEAR * size + TINY
    return np.unique([0, *(np.flatnonzero(apart) + 1), len(scores)]).astype(np.int64)
