# SPDX-License-Identifier: Apache-2.0
"""What exported files answer; runs in the child process only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_branchy.runner.drivers import open_driver
from keras_branchy.runner.manifest import Call, Manifest

__all__ = ["measure"]

Samples = dict[str, np.ndarray]


def measure(
    folder: str,
    samples: str,
    output: str,
    thresholds: list[float] | None,
    say: Callable[[str], None],
) -> None:
    """Runs the files in `folder` on samples and writes what they answer.

    Args:
        folder: The exported folder with its manifest.
        samples: `.npz` of arrays by input name.
        output: `.npz` to write: `logits` [N, B, C], or for a cascade `labels`,
            `probabilities`, `exits` and `scores`; without thresholds for a cascade,
            `scores` [N, B] and `labels` [N, B] of every exit.
        thresholds: As the gate takes them, for a cascade.
        say: Takes a line of progress.
    """
    manifest = Manifest.load(folder)
    with np.load(samples) as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    subject: dict[str, Any] = {
        "litert": _LiteRT,
        "saved_model": _SavedModel,
        "onnx": _Onnx,
    }
    answers = subject[manifest.data["format"]](manifest).answers(rows, thresholds)
    np.savez(output, **answers)
    count = len(next(iter(rows.values())))
    say(f"checked the files on {count} samples")


class _LiteRT:
    def __init__(self, manifest: Manifest):
        self.cascade = manifest.data["layout"] == "cascade"
        self.driver: Any = open_driver(manifest)

    def answers(self, rows: Samples, thresholds: list[float] | None) -> Samples:
        count = len(next(iter(rows.values())))
        if not self.cascade:
            return {"logits": self.driver.logits(rows, count)}
        if thresholds is None:
            scores, labels, _ = self.driver.every_exit(rows, count)
            return {"scores": scores, "labels": labels}
        limits = np.array(thresholds, np.float32)
        labels, probabilities, exits, scores = self.driver.predict(rows, count, limits)
        return {
            "labels": labels,
            "probabilities": probabilities,
            "exits": exits,
            "scores": scores,
        }


class _Staged(ABC):
    """Stages one after another, each called with and giving tensors by name."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self.calls = [
            self.open(stage.call) for stage in manifest.stages if stage.call is not None
        ]

    @abstractmethod
    def open(self, call: Call) -> Callable[[Samples], Samples]:
        """A function from a stage's inputs to its outputs, by name."""

    def answers(self, rows: Samples, thresholds: list[float] | None) -> Samples:
        size = self.manifest.data["batch_size"] or len(next(iter(rows.values())))
        count = len(next(iter(rows.values()))) // size * size
        parts = [
            self._logits({name: value[at : at + size] for name, value in rows.items()})
            for at in range(0, count, size)
        ]
        return {"logits": np.concatenate(parts, axis=1)}

    def _logits(self, tensors: Samples) -> np.ndarray:
        logits = []
        for stage, call in zip(self.manifest.stages, self.calls, strict=True):
            inputs = [tensor.name for tensor in stage.call.inputs]  # type: ignore[union-attr]
            made = call({name: tensors[name] for name in inputs})
            logits.append(made.pop("logits"))
            tensors = {**tensors, **made}
        return np.stack(logits)


class _SavedModel(_Staged):
    def __init__(self, manifest: Manifest):
        import tensorflow as tf

        name = manifest.stages[0].call.file  # type: ignore[union-attr]
        self.loaded = tf.saved_model.load(str(manifest.folder / name))
        super().__init__(manifest)

    def open(self, call: Call) -> Callable[[Samples], Samples]:
        import tensorflow as tf

        signature = self.loaded.signatures[call.signature]

        def run(tensors: Samples) -> Samples:
            given = {name: tf.constant(value) for name, value in tensors.items()}
            return {name: value.numpy() for name, value in signature(**given).items()}

        return run

    def answers(self, rows: Samples, thresholds: list[float] | None) -> Samples:
        found = super().answers(rows, thresholds)
        if thresholds is not None:
            cascade = self.open(self.manifest.cascade)  # type: ignore[arg-type]
            made = cascade({**rows, "thresholds": np.array(thresholds, np.float32)})
            found |= {
                "labels": made["label"],
                "probabilities": made["probabilities"],
                "exits": made["exit"],
                "scores": made["score"],
            }
        return found


class _Onnx(_Staged):
    def open(self, call: Call) -> Callable[[Samples], Samples]:
        import onnxruntime

        path = Path(self.manifest.folder) / call.file
        session = onnxruntime.InferenceSession(
            path.read_bytes(), providers=["CPUExecutionProvider"]
        )
        names = [tensor.name for tensor in call.outputs]
        return lambda tensors: dict(zip(names, session.run(names, tensors), strict=True))
