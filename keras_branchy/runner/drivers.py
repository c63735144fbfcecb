# SPDX-License-Identifier: Apache-2.0
"""One sample at a time through an exported model: stage by stage, or in a cascade file."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Protocol

import numpy as np

from keras_branchy.batch_gate import sample_gate
from keras_branchy.criteria import CRITERIA
from keras_branchy.native_step import NativeStep
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
        rules = rules_of(manifest)
        # What a sample alone takes along stays where it is.
        self._rules = replace(rules, live=[()] * len(rules.live))
        self.num_classes = rules.num_classes
        self.gates = [
            sample_gate(row.criterion, row.gate, self.num_classes) for row in manifest.exits
        ]
        self.below = [CRITERIA[criterion].exits_below for criterion in rules.criteria]
        self.batch_gates = rules.gates()
        self.programs: list[Computation] = []
        calls = [stage.call for stage in manifest.stages if stage.call is not None]
        for index, call in enumerate(calls):
            settle = partial(self.programs.__setitem__, index)
            opened = cache(opener(manifest, call, "logits"))
            self.programs.append(with_threads(opened, threads, settle))
        self._rows = rules.answer_rows(1)
        self._thresholds: np.ndarray | None = None
        self._steps: list[NativeStep] | None = None

    def predict(
        self, samples: Samples, count: int, thresholds: np.ndarray
    ) -> list[np.ndarray]:
        if thresholds is not self._thresholds:
            self._steps = self._rules.native_steps(thresholds, self._rows.places)
            self._thresholds = thresholds
        self._rows.begin(count)
        for index in range(count):
            tensors = samples if count == 1 else _one(samples, index)
            if self._steps is None or not self._answered(self._steps, tensors, index):
                answer, taken = self._walk(dict(tensors), thresholds.tolist())
                score, label, probabilities = answer
                self._rows.write(index, label, probabilities, taken, score)
        return self._rows.copies(0, count)

    def _answered(self, steps: list[NativeStep], tensors: Samples, index: int) -> bool:
        """By compiled steps; False where logits are not finite."""
        stays = 1
        for stage, step in enumerate(steps):
            program = self.programs[stage]
            stays = step.one(program.run(tensors), index)
            if stays <= 0:
                break
            tensors = {**tensors, **program.rest()}
        return stays == 0

    def _walk(self, tensors: Samples, limits: list[float]) -> tuple:
        patience = self._rules.patience
        previous, agreed = -1, 0
        for index, limit in enumerate(limits):
            program = self.programs[index]
            answer = self.gates[index](program.run(tensors))
            score, label, _ = answer
            if score < limit if self.below[index] else score >= limit:
                return answer, index
            if patience is not None:
                known = score == score  # a broken row agrees with nobody
                agreed = agreed + 1 if known and label == previous else 1
                previous = label if known else -1
                if agreed >= patience:
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


def _blank(count: int, classes: int) -> list[np.ndarray]:
    """Labels, probabilities, exits, scores, to be filled in."""
    return [
        np.zeros(count, np.int64),
        np.zeros((count, classes), np.float32),
        np.zeros(count, np.int64),
        np.zeros(count, np.float32),
    ]
