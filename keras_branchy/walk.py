# SPDX-License-Identifier: Apache-2.0
"""The walk of samples through stages in chunks: who stays waits until a chunk is full.

A stage that few samples reach is dear when it runs for two or three of each batch. Here the
samples that stay at an exit wait until there are as many of them as the stage takes at a
time, from however many batches, so every stage runs at full chunks until the end.

Whatever runs the stages is an `Engine`. What happens between two stages is one call to
compiled code, `native_step`, or the same in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from keras_branchy import native_step
from keras_branchy.answer_rows import AnswerRows
from keras_branchy.batch_gate import Gate, batch_gate
from keras_branchy.criteria import CRITERIA
from keras_branchy.native_step import Answers, NativeStep
from keras_branchy.waiting import Tensors, Waiting

__all__ = ["Engine", "Rules", "Walk"]

Rest = Callable[[], dict[str, np.ndarray]]


class Engine(Protocol):
    """What runs stages."""

    @property
    def chunks(self) -> Sequence[int]:
        """Samples at a time, at most, at each stage."""

    def run(self, stage: int, tensors: Tensors, count: int) -> tuple[np.ndarray, Rest]:
        """Computes a stage.

        Args:
            stage: Its index.
            tensors: Rows [count, …] of everything that it reads, by name.
            count: How many samples.

        Returns:
            Logits float32 [count, C], and a function that gives what the stage made for
            later stages, [count or more, …], by name. What it gives is good until the
            engine runs again, and nobody may hold it then.
        """
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

    def answer_rows(self, capacity: int) -> AnswerRows:
        """Room for the answers of so many samples."""
        return AnswerRows(self.num_classes, self.patience is not None, capacity)

    def native_steps(
        self, thresholds: np.ndarray, answers: Answers
    ) -> list[NativeStep] | None:
        """The compiled step of each exit, or None where there is none for these rules."""
        library = native_step.load()
        if library is None or self.num_classes > native_step.MOST_CLASSES:
            return None
        rows = zip(
            self.criteria,
            self.coefficients,
            [*thresholds.tolist(), None],
            self.live,
            strict=True,
        )
        return [
            NativeStep(
                library,
                stage,
                criterion,
                coefficients,
                threshold,
                self.num_classes,
                self.patience,
                live,
                answers,
            )
            for stage, (criterion, coefficients, threshold, live) in enumerate(rows)
        ]


class Walk:
    """Samples on their way through the stages.

    Args:
        rules: Who leaves where.
        gates: `rules.gates()`, which may serve many walks.
        thresholds: [N-1] float32, at which exits exit; see `gate_thresholds`.
        capacity: How many samples to expect; it grows where there are more.
    """

    def __init__(
        self,
        rules: Rules,
        gates: Sequence[Gate],
        thresholds: np.ndarray,
        capacity: int,
    ):
        self.rules, self.gates, self.thresholds = rules, gates, thresholds
        self.last = len(rules.criteria) - 1
        self.rows = rules.answer_rows(capacity)
        self._native = rules.native_steps(thresholds, self.rows.places)
        self._waiting = [Waiting() for _ in rules.criteria]
        self._start()

    def begin(self, capacity: int) -> None:
        """Begins anew with other samples, once everybody has left."""
        self._start()
        self.rows.begin(capacity)

    def _start(self) -> None:
        self.first = 0  # the sample that row 0 of the answers belongs to
        self.released = 0  # how many of the rows nobody asks for any more
        self.entered = 0
        self.rows.places.first = 0

    def enter(self, engine: Engine, tensors: Tensors, count: int) -> None:
        """Runs the first stage for `count` more samples, and what has filled up by then."""
        start = self.entered
        self.entered += count
        if self.entered - self.first > len(self.rows):
            self._make_room()
        size = engine.chunks[0]
        for at in range(0, count, size):
            end = min(at + size, count)
            some = tensors if end - at == count else _rows(tensors, at, end)
            self._run(engine, 0, range(start + at, start + end), some)
            for stage in range(1, self.last + 1):
                while self._waiting[stage].count >= engine.chunks[stage]:
                    full = self._waiting[stage].take(engine.chunks[stage])
                    self._run(engine, stage, *full)

    def flush(self, engine: Engine) -> None:
        """Takes everybody who waits to the end."""
        for stage in range(1, self.last + 1):
            while self._waiting[stage].count:
                self._run(engine, stage, *self._waiting[stage].take(engine.chunks[stage]))

    def answers(self, count: int) -> list[np.ndarray]:
        """Labels, probabilities, exits and scores of the first `count` that are held.

        They must have left.
        """
        return self.rows.copies(self.released, count)

    def answered(self, count: int) -> bool:
        """Whether the first `count` samples that are held have left."""
        end = self.first + self.released + count
        return not any(row.count and row.who[row.start] < end for row in self._waiting)

    def release(self, count: int) -> None:
        """Forgets the first `count` samples that are held."""
        self.released += count

    def _make_room(self) -> None:
        """Moves the rows that are held to the front, of larger arrays if need be."""
        gone = self.released
        self.first, self.released = self.first + gone, 0
        self.rows.places.first = self.first
        self.rows.shift(gone, 2 * (self.entered - self.first))

    def _run(
        self, engine: Engine, stage: int, who: np.ndarray | range, tensors: Tensors
    ) -> None:
        logits, rest = engine.run(stage, tensors, len(who))
        waiting = None if stage == self.last else self._waiting[stage + 1]
        carried = {} if waiting is None else self._carried(stage, tensors, rest())
        if self._native is None or not self._native[stage].run(
            logits, who, carried, waiting
        ):
            if isinstance(who, range):
                who = np.arange(who.start, who.stop)
            self._step(stage, logits, who, carried, waiting)

    def _carried(self, stage: int, tensors: Tensors, made: Tensors) -> Tensors:
        """What those who stay take along: made just now, or brought here."""
        return {
            name: made[name] if name in made else np.asarray(tensors[name])
            for name in self.rules.live[stage]
        }

    def _step(
        self,
        stage: int,
        logits: np.ndarray,
        who: np.ndarray,
        carried: Tensors,
        waiting: Waiting | None,
    ) -> None:
        """The step in NumPy."""
        score, label, probabilities = self.gates[stage](logits)
        rows: Any = who - self.first
        if waiting is not None:
            stay = (~self._leaves(stage, rows, score, label)).nonzero()[0]
            if len(stay):
                waiting.add(who, carried, stay)
        if stage == 0:  # in order, and a slice is faster than indices
            rows = slice(rows[0], rows[-1] + 1)
        # Those who stay are overwritten once they leave.
        self.rows.write(rows, label, probabilities, stage, score)

    def _leaves(
        self, stage: int, rows: np.ndarray, score: np.ndarray, label: np.ndarray
    ) -> np.ndarray:
        leaves = CRITERIA[self.rules.criteria[stage]].exits(score, self.thresholds[stage])
        if self.rules.patience is None:
            return leaves
        told = self.rows
        known = ~np.isnan(score)  # a broken row agrees with nobody
        again = known & (label == told.previous[rows])
        agreed = np.where(again, told.agreed[rows] + 1, 1)
        told.agreed[rows], told.previous[rows] = agreed, np.where(known, label, -1)
        return leaves | (agreed >= self.rules.patience)


def _rows(tensors: Tensors, start: int, stop: int) -> Tensors:
    return {name: value[start:stop] for name, value in tensors.items()}
