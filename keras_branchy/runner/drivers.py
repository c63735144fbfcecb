# SPDX-License-Identifier: Apache-2.0
"""The walk of samples through an exported model: stage by stage, or in a cascade file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from keras_branchy.criteria import CRITERIA, gate_scores
from keras_branchy.runner.engines import Program, open_program
from keras_branchy.runner.manifest import Manifest
from keras_branchy.runner.row_gate import row_gate, softmax

__all__ = ["Driver", "open_driver"]

Samples = dict[str, np.ndarray]


class Driver(Protocol):
    """What one thread runs."""

    def predict(
        self, samples: Samples, count: int, thresholds: np.ndarray
    ) -> list[np.ndarray]:
        """Labels [B], probabilities [B, C], exits [B], scores [B]."""
        ...

    def every_exit(self, samples: Samples, count: int) -> list[np.ndarray]:
        """Scores [N, B], labels [N, B], probabilities [N, B, C]."""
        ...


def open_driver(manifest: Manifest) -> Driver:
    """Opens the files of a manifest.

    Raises:
        ValueError: If they are not LiteRT's.
    """
    form = manifest.data["format"]
    if form != "litert":
        raise ValueError(
            f"The stage runner runs LiteRT files. Received: an export of format {form!r}, "
            f"{manifest.folder}. Expected one of export_stages(path, format='litert')."
        )
    if manifest.data["layout"] == "cascade":
        return CascadeDriver(manifest)
    size = manifest.data["batch_size"]
    return SampleDriver(manifest) if size == 1 else BatchDriver(manifest)


class _Staged(ABC):
    def __init__(self, manifest: Manifest):
        self.criteria = [row.criterion for row in manifest.exits]
        self.coefficients = [row.gate for row in manifest.exits]
        self.patience = manifest.data["patience"]
        self.num_classes = manifest.data["num_classes"]
        self.batch_size = manifest.data["batch_size"]
        self.programs: list[Program] = [
            open_program(manifest, stage.call, "logits")
            for stage in manifest.stages
            if stage.call is not None
        ]
        self.live = [stage.live for stage in manifest.stages]

    @abstractmethod
    def logits(self, samples: Samples, count: int) -> np.ndarray:
        """The logits of every exit, [N, B, C]."""

    def every_exit(self, samples: Samples, count: int) -> list[np.ndarray]:
        logits = self.logits(samples, count)
        rows = [
            (*gate_scores(values, criterion, gate), softmax(values))
            for values, criterion, gate in zip(
                logits, self.criteria, self.coefficients, strict=True
            )
        ]
        scores, labels, probabilities = map(np.stack, zip(*rows, strict=True))
        return [scores.astype(np.float32), labels, probabilities]


class SampleDriver(_Staged):
    """One sample after another, each as far as it needs to go."""

    def __init__(self, manifest: Manifest):
        super().__init__(manifest)
        self.gates = list(map(row_gate, self.criteria, self.coefficients))
        self.below = [CRITERIA[criterion].exits_below for criterion in self.criteria]

    def predict(
        self, samples: Samples, count: int, thresholds: np.ndarray
    ) -> list[np.ndarray]:
        answers = _blank(count, self.num_classes)
        limits = thresholds.tolist()
        walk = self._walk if self.patience is None else self._walk_patiently
        for index in range(count):
            (score, label, probabilities), taken = walk(_one(samples, index), limits)
            answers[0][index] = label
            answers[1][index] = probabilities
            answers[2][index] = taken
            answers[3][index] = score
        return answers

    def _walk(self, tensors: Samples, limits: list[float]) -> tuple:
        for index, limit in enumerate(limits):
            program = self.programs[index]
            answer = self.gates[index](program.run(tensors))
            if answer[0] < limit if self.below[index] else answer[0] >= limit:
                return answer, index
            tensors.update(program.rest())
        return self.gates[-1](self.programs[-1].run(tensors)), len(limits)

    def _walk_patiently(self, tensors: Samples, limits: list[float]) -> tuple:
        previous, agreed = -1, 0
        for index, limit in enumerate(limits):
            program = self.programs[index]
            answer = self.gates[index](program.run(tensors))
            score, label, _ = answer
            known = score == score  # a broken row agrees with nobody
            agreed = agreed + 1 if known and label == previous else 1
            previous = label if known else -1
            if (
                score < limit if self.below[index] else score >= limit
            ) or agreed >= self.patience:
                return answer, index
            tensors.update(program.rest())
        return self.gates[-1](self.programs[-1].run(tensors)), len(limits)

    def logits(self, samples: Samples, count: int) -> np.ndarray:
        logits = np.zeros((len(self.programs), count, self.num_classes), np.float32)
        for index in range(count):
            tensors = _one(samples, index)
            for k, program in enumerate(self.programs):
                logits[k, index] = program.run(tensors)[0]
                tensors.update(program.rest())
        return logits


class BatchDriver(_Staged):
    """Stage after stage: who is left goes on, in batches of the files' own size."""

    def predict(
        self, samples: Samples, count: int, thresholds: np.ndarray
    ) -> list[np.ndarray]:
        answers = _blank(count, self.num_classes)
        who, tensors = np.arange(count), dict(samples)
        previous, agreed = np.full(count, -1), np.zeros(count, int)
        for index, criterion in enumerate(self.criteria):
            logits = self._run(index, tensors, len(who))
            score, label = gate_scores(logits, criterion, self.coefficients[index])
            score = score.astype(np.float32)
            leaves = np.ones(len(who), bool)
            if index < len(thresholds):
                leaves = CRITERIA[criterion].exits(score, thresholds[index])
                known = ~np.isnan(score)
                agreed = np.where(known & (label == previous), agreed + 1, 1)
                previous = np.where(known, label, -1)
                if self.patience is not None:
                    leaves = leaves | (agreed >= self.patience)
            found = (label, softmax(logits), np.full(len(who), index), score)
            for answer, value in zip(answers, found, strict=True):
                answer[who[leaves]] = value[leaves]
            who, previous, agreed = who[~leaves], previous[~leaves], agreed[~leaves]
            tensors = {name: tensors[name][~leaves] for name in self.live[index]}
        return answers

    def logits(self, samples: Samples, count: int) -> np.ndarray:
        tensors = dict(samples)
        return np.stack(
            [self._run(index, tensors, count) for index in range(len(self.programs))]
        )

    def _run(self, index: int, tensors: Samples, count: int) -> np.ndarray:
        """Logits of all rows; what the stage makes is added to `tensors`."""
        program, logits, made = self.programs[index], [], []
        for start in range(0, count, self.batch_size or max(count, 1)):
            size = min(self.batch_size or count, count - start)
            # A free batch is rounded up: every new size costs a new plan of memory.
            padded = self.batch_size or 1 << (size - 1).bit_length()
            rows = {
                name: _padded(value[start : start + size], padded)
                for name, value in tensors.items()
            }
            logits.append(program.run(rows)[:size])
            made.append({name: value[:size] for name, value in program.rest().items()})
        if not made:
            shape = (0, self.num_classes)
            tensors.update(dict.fromkeys(self.live[index], np.zeros(shape)))
            return np.zeros(shape, np.float32)
        for name in made[0]:
            tensors[name] = np.concatenate([part[name] for part in made])
        return np.concatenate(logits)


class CascadeDriver:
    """One file that decides itself, one sample at a time."""

    def __init__(self, manifest: Manifest):
        if manifest.cascade is None:
            raise ValueError("The manifest names no cascade.")
        self.program = open_program(manifest, manifest.cascade, "exit")
        self.num_classes = manifest.data["num_classes"]
        self.criteria = [CRITERIA[row.criterion] for row in manifest.exits[:-1]]
        self.patience = manifest.data["patience"]

    def predict(
        self, samples: Samples, count: int, thresholds: np.ndarray
    ) -> list[np.ndarray]:
        answers = _blank(count, self.num_classes)
        for index in range(count):
            tensors = _one(samples, index)
            tensors["thresholds"] = thresholds
            answers[2][index] = self.program.run(tensors)[0]
            rest = self.program.rest()
            answers[0][index] = rest["label"][0]
            answers[1][index] = rest["probabilities"][0]
            answers[3][index] = rest["score"][0]
        return answers

    def every_exit(self, samples: Samples, count: int) -> list[np.ndarray]:
        if self.patience is not None:
            raise ValueError(
                "A cascade with patience does not show what its later exits say: samples "
                "leave before, at any threshold. Received: a cascade with patience="
                f"{self.patience}. Export with layout='stages' for this."
            )
        never = np.array([criterion.never for criterion in self.criteria], np.float32)
        rows = []
        for index in range(len(self.criteria) + 1):
            thresholds = never.copy()
            thresholds[index : index + 1] *= -1.0  # always
            labels, probabilities, _, scores = self.predict(samples, count, thresholds)
            rows.append((scores, labels, probabilities))
        return [np.stack(parts) for parts in zip(*rows, strict=True)]


def _one(samples: Samples, index: int) -> Samples:
    """The rows [1, …] of one sample."""
    return {name: value[index : index + 1] for name, value in samples.items()}


def _blank(count: int, classes: int) -> list[np.ndarray]:
    """labels, probabilities, exits, scores, to be filled in."""
    return [
        np.zeros(count, np.int64),
        np.zeros((count, classes), np.float32),
        np.zeros(count, np.int64),
        np.zeros(count, np.float32),
    ]


def _padded(value: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(value)
    return (
        value if not missing else np.concatenate([value, np.repeat(value[-1:], missing, 0)])
    )
