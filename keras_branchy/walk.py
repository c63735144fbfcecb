# SPDX-License-Identifier: Apache-2.0
"""The walk of samples through stages in chunks: who stays waits until a chunk is full.

A stage that few samples reach is dear when it runs for two or three of each batch. Here the
samples that stay at an exit wait until there are as many of them as the stage takes at a
time, from however many batches, so every stage runs at full chunks until the end.

Whatever runs the stages is an `Engine`; TensorFlow and LiteRT both are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from keras_branchy.batch_gate import Gate, batch_gate
from keras_branchy.criteria import CRITERIA
from keras_branchy.waiting import Tensors, Waiting, joined

__all__ = ["ANSWERS", "Crew", "Engine", "Rules", "Walk"]

Keep = Callable[[np.ndarray], dict[str, np.ndarray]]

ANSWERS = ("labels", "probabilities", "exits", "scores")
_UNANSWERED = -1
# Less work than this is not worth waking another thread for.
_WORTH_SHARING = 200e-6  # seconds


class Engine(Protocol):
    """What runs stages, for one thread."""

    @property
    def chunks(self) -> Sequence[int]:
        """Samples at a time, at most, at each stage."""

    def run(self, stage: int, tensors: Tensors, count: int) -> tuple[np.ndarray, Keep]:
        """Computes a stage.

        Args:
            stage: Its index.
            tensors: Rows [count, …] of everything that it reads, by name.
            count: How many samples.

        Returns:
            Logits float32 [count, C], and a function that copies the rows at some indices
            of what the stage made for later stages, by name. The function is good until
            the engine runs again.
        """
        ...


class Crew(Protocol):
    """Engines that work at the same time."""

    @property
    def engines(self) -> Sequence[Engine]:
        """At least one."""

    def each(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Runs the tasks at the same time, at most one for each engine."""
        ...


@dataclass(frozen=True)
class Rules:
    """Who leaves where.

    Attributes:
        criteria: Of every exit, the last included.
        coefficients: Of every exit; None where the criterion has none.
        live: For every stage the names of the tensors that later stages read.
        num_classes: Number of classes.
        patience: How many successive exits must agree for a sample to leave, or None.
    """

    criteria: Sequence[str]
    coefficients: Sequence[Sequence[float] | None]
    live: Sequence[Sequence[str]]
    num_classes: int
    patience: int | None = None

    def gates(self) -> list[Gate]:
        """The gate of each exit."""
        return list(map(batch_gate, self.criteria, self.coefficients))


class Walk:
    """Samples on their way through the stages.

    Args:
        rules: Who leaves where.
        gates: `rules.gates()`, which may serve many walks.
        thresholds: [N-1] float32, at which exits exit; see `gate_thresholds`.
        slots: How many engines work on it at the same time, at most.
        capacity: How many samples to expect; it grows where there are more.
    """

    def __init__(
        self,
        rules: Rules,
        gates: Sequence[Gate],
        thresholds: np.ndarray,
        slots: int,
        capacity: int,
    ):
        self.rules, self.gates, self.thresholds = rules, gates, thresholds
        self.last = len(rules.criteria) - 1
        self.first = 0  # the sample that row 0 of the answers belongs to
        self.released = 0  # how many of the rows nobody asks for any more
        self.entered = 0
        self._allocate(capacity)
        self._waiting = [[Waiting() for _ in rules.criteria] for _ in range(slots)]
        self._seconds = [0.0] * len(rules.criteria)  # a sample, at each stage

    def enter(self, crew: Crew, tensors: Tensors, count: int) -> None:
        """Runs the first stage for `count` more samples, and what has filled up by then."""
        start = self.entered
        self.entered += count
        if self.entered - self.first > len(self.exits):
            self._make_room()
        self._share(crew, 0, np.arange(start, start + count), tensors, count)

    def flush(self, crew: Crew) -> None:
        """Takes everybody who waits to the end."""
        for stage in range(1, self.last + 1):
            rest = [waiting[stage].take(None) for waiting in self._waiting]
            rest = [part for part in rest if len(part[0])]
            if rest:
                who, tensors = joined(rest)
                self._share(crew, stage, who, tensors, len(who))

    def answers(self, count: int) -> dict[str, np.ndarray]:
        """The answers of the first `count` samples that are held, which must be there."""
        rows = slice(self.released, self.released + count)
        return {name: getattr(self, name)[rows] for name in ANSWERS}

    def answered(self, count: int) -> bool:
        """Whether the first `count` samples that are held have left."""
        rows = slice(self.released, self.released + count)
        return bool((self.exits[rows] != _UNANSWERED).all())

    def release(self, count: int) -> None:
        """Forgets the first `count` samples that are held."""
        self.released += count

    def _allocate(self, capacity: int) -> None:
        self.labels = np.empty(capacity, np.int64)
        self.probabilities = np.empty((capacity, self.rules.num_classes), np.float32)
        self.exits = np.full(capacity, _UNANSWERED, np.int64)
        self.scores = np.empty(capacity, np.float32)
        if self.rules.patience is not None:
            self.previous = np.empty(capacity, np.int64)
            self.agreed = np.empty(capacity, np.int64)
            self._start(0)

    def _start(self, row: int) -> None:
        """From this row on nobody has met an exit yet."""
        if self.rules.patience is not None:
            self.previous[row:] = -1
            self.agreed[row:] = 0

    def _arrays(self) -> list[tuple[str, np.ndarray]]:
        names = (*ANSWERS, "previous", "agreed")
        return [(name, getattr(self, name)) for name in names if hasattr(self, name)]

    def _make_room(self) -> None:
        """Moves the rows that are held to the front, of larger arrays if need be."""
        old, gone, size = dict(self._arrays()), self.released, len(self.exits)
        self.first, self.released = self.first + gone, 0
        held = self.entered - self.first
        # Answers that were given away stay as they are, so arrays are new ones.
        self._allocate(size if 2 * held <= size else 2 * held)
        for name, array in old.items():
            getattr(self, name)[: size - gone] = array[gone:]

    def _share(
        self, crew: Crew, stage: int, who: np.ndarray, tensors: Tensors, count: int
    ) -> None:
        """Splits samples among the engines."""
        engines = crew.engines
        parts, known = min(len(engines), count), self._seconds[stage]
        if parts < 2 or (known and known * count < _WORTH_SHARING):
            return self._take(engines[0], 0, stage, who, tensors, (0, count))
        edges = [round(index * count / parts) for index in range(parts + 1)]

        def task(slot: int) -> Callable[[], None]:
            span = (edges[slot], edges[slot + 1])
            return lambda: self._take(engines[slot], slot, stage, who, tensors, span)

        return crew.each([task(slot) for slot in range(parts)])

    def _take(
        self,
        engine: Engine,
        slot: int,
        stage: int,
        who: np.ndarray,
        tensors: Tensors,
        span: tuple[int, int],
    ) -> None:
        """Chunk by chunk through this stage, and later ones once a chunk waits there."""
        sizes, waiting = engine.chunks, self._waiting[slot]
        for at in range(*span, sizes[stage]):
            end = min(at + sizes[stage], span[1])
            whole = not at and end == len(who)
            some = tensors if whole else {k: v[at:end] for k, v in tensors.items()}
            self._run(engine, slot, stage, who[at:end], some)
            for later in range(stage + 1, self.last + 1):
                while waiting[later].count >= sizes[later]:
                    full = waiting[later].take(sizes[later])
                    self._run(engine, slot, later, *full)

    def _run(
        self, engine: Engine, slot: int, stage: int, who: np.ndarray, tensors: Tensors
    ) -> None:
        begin = time.perf_counter()
        logits, keep = engine.run(stage, tensors, len(who))
        score, label, probabilities = self.gates[stage](logits)
        if stage == self.last:
            self._write(who, label, probabilities, stage, score)
        else:
            leaves = self._leaves(stage, who, score, label)
            stay = (~leaves).nonzero()[0]
            if not len(stay):
                self._write(who, label, probabilities, stage, score)
            else:
                kept = self._kept(stage, stay, tensors, keep)
                self._waiting[slot][stage + 1].add(who[stay], kept)
                # Those who stay are overwritten once they leave.
                self._write(who, label, probabilities, stage, score)
                self.exits[who[stay] - self.first] = _UNANSWERED
        self._seconds[stage] = (time.perf_counter() - begin) / len(who)

    def _leaves(
        self, stage: int, who: np.ndarray, score: np.ndarray, label: np.ndarray
    ) -> np.ndarray:
        leaves = CRITERIA[self.rules.criteria[stage]].exits(score, self.thresholds[stage])
        if self.rules.patience is None:
            return leaves
        rows = who - self.first
        known = ~np.isnan(score)  # a broken row agrees with nobody
        again = known & (label == self.previous[rows])
        agreed = np.where(again, self.agreed[rows] + 1, 1)
        self.agreed[rows], self.previous[rows] = agreed, np.where(known, label, -1)
        return leaves | (agreed >= self.rules.patience)

    def _kept(
        self, stage: int, stay: np.ndarray, tensors: Tensors, keep: Keep
    ) -> dict[str, np.ndarray]:
        """What those who stay take along: made just now, or brought here."""
        made = keep(stay)
        return {
            name: made[name] if name in made else np.asarray(tensors[name])[stay]
            for name in self.rules.live[stage]
        }

    def _write(self, who: np.ndarray, *answer: Any) -> None:
        label, probabilities, stage, score = answer
        rows: Any = who - self.first
        if stage == 0:  # in order, and a slice is faster than indices
            rows = slice(rows[0], rows[-1] + 1)
        self.labels[rows], self.probabilities[rows] = label, probabilities
        self.exits[rows], self.scores[rows] = stage, score
