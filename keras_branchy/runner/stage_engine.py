# SPDX-License-Identifier: Apache-2.0
"""Exported stages as the engine of a walk: chunks of samples through LiteRT files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_branchy.batch_gate import Gate
from keras_branchy.runner.engines import Program, open_program
from keras_branchy.runner.manifest import Call, Manifest
from keras_branchy.walk import Rest, Rules

__all__ = ["Sizes", "StageEngine", "rules_of", "told"]

# Samples at a time, for each thread. An image takes as long among many as alone, and half
# as long again once the largest activation no longer fits the cores' own caches; more at a
# time are fewer calls, of which small networks are made.
MOST = 256
CACHE = 5 << 18  # bytes
# Bytes of a stage's files that are opened for other numbers of samples.
BESIDES = 1 << 21


class StageEngine:
    """The stages of an export, for one caller at a time.

    Args:
        manifest: Of an export in stages, whose batch size is not 1.
        threads: Threads within each call to LiteRT.
    """

    def __init__(self, manifest: Manifest, threads: int = 1):
        fixed = manifest.data["batch_size"]
        self.num_classes: int = manifest.data["num_classes"]
        calls = [stage.call for stage in manifest.stages if stage.call is not None]
        self._stages = [Sizes(manifest, call, fixed, threads) for call in calls]
        self.chunks: list[int] = [stage.chunk for stage in self._stages]
        self._gates = rules_of(manifest).gates()

    def run(
        self, stage: int, tensors: Mapping[str, Any], count: int
    ) -> tuple[np.ndarray, Rest]:
        """Logits of a chunk, and what gives the rest; see `walk.Engine`."""
        program, size = self._stages[stage].fitting(count)
        return program.run(_padded(tensors, size, count))[:count], program.views

    def every_exit(self, samples: dict[str, np.ndarray], count: int) -> list[np.ndarray]:
        """Scores [N, B], labels [N, B], probabilities [N, B, C]."""
        return told(self.logits(samples, count), self._gates)

    def logits(self, samples: dict[str, np.ndarray], count: int) -> np.ndarray:
        """The logits of every exit, [N, B, C]."""
        logits = np.empty((len(self._stages), count, self.num_classes), np.float32)
        chunk = min(self.chunks)
        for start in range(0, count, chunk):
            stop = min(start + chunk, count)
            tensors = {name: value[start:stop] for name, value in samples.items()}
            size = stop - start
            for stage, rows in enumerate(logits):
                rows[start:stop], rest = self.run(stage, tensors, size)
                tensors.update({name: x[:size].copy() for name, x in rest().items()})
        return logits


class Sizes:
    """A stage's file, opened for whole chunks, and for the numbers of samples met of late.

    To resize a program takes as long as to run it for one or two samples, so a small file
    is opened several times.

    Args:
        manifest: Of the export.
        call: Of the stage.
        fixed: The one number of samples that the file takes, or None for any.
        threads: Threads within a call.
    """

    def __init__(
        self, manifest: Manifest, call: Call, fixed: int | None = None, threads: int = 1
    ):
        self._open = lambda: open_program(manifest, call, "logits", threads)
        self._fixed = fixed
        self._whole = self._open()
        self._others: dict[int, Program] = {}  # the one met longest ago comes first
        self._most = max(1, BESIDES // self._whole.file_bytes)
        self.chunk = fixed or _chunk(self._whole.largest_row, threads)

    def fitting(self, count: int) -> tuple[Program, int]:
        """A program for `count` samples, and how many it takes."""
        if self._fixed or count == self.chunk:
            return self._whole, self.chunk
        program = self._others.pop(count, None)
        if program is None and len(self._others) >= self._most:
            program = self._others.pop(next(iter(self._others)))
        if program is None:
            program = self._open()
        self._others[count] = program
        return program, count


def _chunk(row: int, threads: int) -> int:
    """A power of two of samples a thread, whose largest activation has `row` bytes each."""
    fitting = max(1, CACHE // max(row, 1))
    return threads * min(MOST, 1 << (fitting.bit_length() - 1))


def rules_of(manifest: Manifest) -> Rules:
    """Who leaves where, as the manifest says."""
    return Rules(
        criteria=[row.criterion for row in manifest.exits],
        coefficients=[row.gate for row in manifest.exits],
        live=[stage.live for stage in manifest.stages],
        num_classes=manifest.data["num_classes"],
        patience=manifest.data["patience"],
    )


def told(logits: np.ndarray, gates: Sequence[Gate]) -> list[np.ndarray]:
    """Scores [N, B], labels [N, B], probabilities [N, B, C] of logits [N, B, C]."""
    rows = [gate(values) for gate, values in zip(gates, logits, strict=True)]
    return [np.stack(part) for part in zip(*rows, strict=True)]


def _padded(tensors: Mapping[str, Any], size: int, count: int) -> Mapping[str, Any]:
    if size == count:
        return tensors
    missing = size - count
    return {
        name: np.concatenate([value, np.repeat(value[-1:], missing, 0)])
        for name, value in tensors.items()
    }
