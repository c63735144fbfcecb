# SPDX-License-Identifier: Apache-2.0
"""Answers to a stream of batches, in its order, while samples wait for full chunks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

import numpy as np

from keras_branchy.waiting import Tensors
from keras_branchy.walk import Engine, Walk

__all__ = ["check_max_wait", "in_order"]

# More batches than this never wait, however few of their samples go on.
MOST_HELD = 64

Answers = list[np.ndarray]


def in_order(
    walk: Walk,
    lend: Callable[[], AbstractContextManager[Engine]],
    batches: Iterable[tuple[Tensors, int]],
    max_wait: float | None = None,
) -> Iterator[tuple[Answers, float]]:
    """Takes batches through a walk, and gives the answers to each as soon as it can.

    A batch is answered when all its samples have left, and those before it are answered.
    Whoever waits for others is taken to the end when the oldest batch has waited for
    `max_wait` seconds, or `MOST_HELD` batches wait; the clock is looked at after each.

    Args:
        walk: A new walk.
        lend: Lends the engine for as long as one batch takes.
        batches: Tensors by name, and the number of samples.
        max_wait: In seconds; None for as long as it takes.

    Yields:
        Labels, probabilities, exits and scores of a batch, and the seconds since it came.
    """
    waiting: deque[tuple[int, float]] = deque()
    for tensors, count in batches:
        waiting.append((count, time.perf_counter()))
        with lend() as engine:
            walk.enter(engine, tensors, count)
            if _is_late(waiting, max_wait):
                walk.flush(engine)
        yield from _answered(walk, waiting)
    with lend() as engine:
        walk.flush(engine)
    yield from _answered(walk, waiting)


def _is_late(waiting: deque[tuple[int, float]], max_wait: float | None) -> bool:
    if len(waiting) >= MOST_HELD:
        return True
    return max_wait is not None and time.perf_counter() - waiting[0][1] >= max_wait


def _answered(
    walk: Walk, waiting: deque[tuple[int, float]]
) -> Iterator[tuple[Answers, float]]:
    while waiting and walk.answered(waiting[0][0]):
        count, begin = waiting.popleft()
        answers = walk.answers(count)
        walk.release(count)
        yield answers, time.perf_counter() - begin


def check_max_wait(max_wait: float | None) -> None:
    """Refuses what is no waiting time.

    Raises:
        ValueError: If it is neither None nor a number of seconds of at least 0.
    """
    fits = isinstance(max_wait, (int, float)) and not isinstance(max_wait, bool)
    if max_wait is not None and not (fits and max_wait >= 0):
        raise ValueError(
            f"`max_wait` must be a number of seconds, at least 0, or None. Received: "
            f"{max_wait!r}. 0 answers each batch at once, 0.05 within fifty milliseconds "
            "of the next batch, None when it is fastest."
        )
