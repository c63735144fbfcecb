# SPDX-License-Identifier: Apache-2.0
"""One sample at a time through an exported model: stage by stage, or in a cascade file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Protocol

import numpy as np

from keras_branchy.batch_gate import sample_gate
from keras_branchy.criteria import CRITERIA
from keras_branchy.runner.engines import open_program, opener
from keras_branchy.runner.manifest import Manifest
from keras_branchy.runner.stage_engine import StageEngine, rules_of, told
from keras_branchy.runner.thread_choice import Computation, with_threads

__all__ = ["Driver", "open_driver"]

Samples = dict[str, np.ndarray]


class Driver(Protocol):
    """What runs samples, for one caller at a time."""

    def predict(
        self, samples: Samples, count: int, thresholds: np.ndarray
    ) -> list[np.ndarray]:
        """Labels [B], probabilities [B, C], exits [B], scores [B]."""
        ...

    def every_exit(self, samples: Samples, count: int) -> list[np.ndarray]:
        """Scores [N, B], labels [N, B], probabilities [N, B, C]."""
        ...


def open_driver(manifest: Manifest, threads: int = 1) -> Driver | StageEngine:
    """Opens the files of a manifest.

    Args:
        manifest: Of an export in LiteRT's format.
        threads: Threads within each call to LiteRT.

    Returns:
        A `StageEngine` where the files take several samples at a time, else a `Driver`.

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
        return CascadeDriver(manifest, threads)
    kind = SampleDriver if manifest.data["batch_size"] == 1 else StageEngine
    return kind(manifest, threads)


class SampleDriver:
    """One sample after another, each as far as it needs to go."""

    def __init__(self, manifest: Manifest, threads: int = 1):
        criteria = [row.criterion for row in manifest.exits]
        self.num_classes = manifest.data["num_classes"]
        self.gates = [
            sample_gate(row.criterion, row.gate, self.num_classes) for row in manifest.exits
        ]
        self.below = [CRITERIA[criterion].exits_below for criterion in criteria]
        self.batch_gates = rules_of(manifest).gates()
        self.patience = manifest.data["patience"]
        self.programs: list[Computation] = []
        calls = [stage.call for stage in manifest.stages if stage.call is not None]
        for index, call in enumerate(calls):
            settle = partial(self.programs.__setitem__, index)
            opened = cache(opener(manifest, call, "logits"))
            self.programs.append(with_threads(opened, threads, settle))

    def predict(
        self, samples: Samples, count: int, thresholds: np.ndarray
    ) -> list[np.ndarray]:
        limits = thresholds.tolist()
        walk = self._walk if self.patience is None else self._walk_patiently
        if count == 1:
            (score, label, probabilities), taken = walk(dict(samples), limits)
            return _alone(label, probabilities, taken, score)
        answers = _blank(count, self.num_classes)
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

    def every_exit(self, samples: Samples, count: int) -> list[np.ndarray]:
        return told(self.logits(samples, count), self.batch_gates)

    def logits(self, samples: Samples, count: int) -> np.ndarray:
        """The logits of every exit, [N, B, C]."""
        logits = np.empty((len(self.programs), count, self.num_classes), np.float32)
        for index in range(count):
            tensors = _one(samples, index)
            for k, program in enumerate(self.programs):
                logits[k, index] = program.run(tensors)[0]
                tensors.update(program.rest())
        return logits


class CascadeDriver:
    """One file that decides itself, one sample at a time."""

    def __init__(self, manifest: Manifest, threads: int = 1):
        if manifest.cascade is None:
            raise ValueError("The manifest names no cascade.")
        self.program = open_program(manifest, manifest.cascade, "exit", threads)
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


def _alone(
    label: int, probabilities: Sequence[float] | np.ndarray, taken: int, score: float
) -> list[np.ndarray]:
    """The answer for one sample, as `_blank` would hold it."""
    return [
        np.array([label]),
        np.array([probabilities], np.float32),
        np.array([taken]),
        np.array([score], np.float32),
    ]


def _blank(count: int, classes: int) -> list[np.ndarray]:
    """labels, probabilities, exits, scores, to be filled in."""
    return [
        np.zeros(count, np.int64),
        np.zeros((count, classes), np.float32),
        np.zeros(count, np.int64),
        np.zeros(count, np.float32),
    ]
