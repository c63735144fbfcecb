# SPDX-License-Identifier: Apache-2.0
"""One thread or all of them, for a file at a number of samples: the first calls tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Protocol

import numpy as np

from keras_branchy.runner.engines import Program, Tensors

__all__ = ["Computation", "with_threads"]

# Seconds. Waking threads takes some 10 us, and as much again where another file's threads
# still wait for work: nothing beside a longer call, for which no second copy is opened.
SHORT = 1e-3
BLOCK = 4  # calls


class Computation(Protocol):
    """What a `Program` does."""

    def run(self, tensors: Tensors) -> np.ndarray: ...

    def rest(self) -> dict[str, np.ndarray]: ...

    def views(self) -> dict[str, np.ndarray]: ...


def with_threads(
    opened: Callable[[int], Program], threads: int, settle: Callable[[Program], None]
) -> Computation:
    """A file opened with as many threads as are fastest, of `threads` and one.

    Calls go to both, some to each in turn, until it is known; their answers are the same.

    Args:
        opened: Gives the file opened with a number of threads, the same at each call.
        threads: How many there may be.
        settle: Called once, during a `run`, with what to call from then on. It is not
            called where there is but one thread.
    """
    return opened(1) if threads == 1 else _Trial(opened, threads, settle)


class _Trial:
    """Four blocks of calls: all threads, one, all threads, one."""

    def __init__(
        self,
        opened: Callable[[int], Program],
        threads: int,
        settle: Callable[[Program], None],
    ):
        self._opened, self._settle = opened, settle
        self._ways = (threads, 1)
        self._taken: dict[int, list[float]] = {way: [] for way in self._ways}
        self._ran, self._calls = opened(threads), 0

    def run(self, tensors: Tensors) -> np.ndarray:
        way = self._ways[self._calls // BLOCK % 2]
        self._ran = self._opened(way)
        begin = time.perf_counter()
        logits = self._ran.run(tensors)
        seconds = time.perf_counter() - begin
        self._taken[way].append(seconds / len(logits))
        self._calls += 1
        if self._calls == 4 * BLOCK:
            self._settle(self._opened(min(self._ways, key=self._usual)))
        elif self._calls == BLOCK and self._usual(way) * len(logits) > SHORT:
            self._settle(self._ran)
        return logits

    def rest(self) -> dict[str, np.ndarray]:
        return self._ran.rest()

    def views(self) -> dict[str, np.ndarray]:
        return self._ran.views()

    def _usual(self, way: int) -> float:
        """Seconds a sample, whatever the first call of a block took."""
        return median(self._taken[way])
