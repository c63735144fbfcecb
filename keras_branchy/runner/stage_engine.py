# SPDX-License-Identifier: Apache-2.0
"""Exported stages as the engine of a walk: chunks of samples through LiteRT files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_branchy.batch_gate import Gate
from keras_branchy.runner.engines import Program, open_program
from keras_branchy.runner.manifest import Call, Manifest
from keras_branchy.walk import Keep, Rules

__all__ = ["StageEngine", "rules_of", "told"]

# Samples at a time. An image takes as long among many as alone, and half as long again once
# the largest activation no longer fits a core's own cache; more at a time are fewer calls.
MOST = 64
CACHE = 5 << 18  # bytes
# A file this small is opened once for each power of two up to the chunk, and never resized,
# which takes as long as some samples do. Weights are held once for each.
SMALL = 1 << 20  # bytes


class StageEngine:
    """The stages of an export, for one thread.

    Args:
        manifest: Of an export in stages, whose batch size is not 1.
    """

    def __init__(self, manifest: Manifest):
        fixed = manifest.data["batch_size"]
        self.num_classes: int = manifest.data["num_classes"]
        calls = [stage.call for stage in manifest.stages if stage.call is not None]
        self._stages = [_Sizes(manifest, call, fixed) for call in calls]
        self.chunks: list[int] = [stage.chunk for stage in self._stages]
        self._gates = rules_of(manifest).gates()

    def run(
        self, stage: int, tensors: Mapping[str, Any], count: int
    ) -> tuple[np.ndarray, Keep]:
        """Logits of a chunk, and what copies rows of the rest; see `walk.Engine`."""
        parts = self._stages[stage].fitting(count)
        if len(parts) == 1:
            program, size = parts[0]
            return program.run(_padded(tensors, size, count))[:count], program.rows
        logits, start = np.empty((count, self.num_classes), np.float32), 0
        for program, size in parts:
            stop = start + size
            rows = {name: value[start:stop] for name, value in tensors.items()}
            logits[start:stop] = program.run(rows)
            start = stop
        return logits, lambda rows: _rows(parts, rows)

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
            everybody = np.arange(stop - start)
            for stage, rows in enumerate(logits):
                rows[start:stop], keep = self.run(stage, tensors, stop - start)
                tensors.update(keep(everybody))
        return logits


class _Sizes:
    """A stage's file, opened for batches of several sizes, when each is first wanted."""

    def __init__(self, manifest: Manifest, call: Call, fixed: int | None):
        self._open = lambda: open_program(manifest, call, "logits")
        self._fixed = fixed
        first = self._open()
        self.chunk = fixed or _chunk(first.largest_row)
        self._programs = {self.chunk: first}
        self._small = first.size_in_bytes <= SMALL

    def fitting(self, count: int) -> list[tuple[Program, int]]:
        """Programs that take `count` samples together, each with its number of them."""
        if self._fixed:
            return [(self._program(self._fixed), self._fixed)]
        if not self._small:
            # One stays as it is for whole chunks, another is resized for the rest.
            return [(self._program(self.chunk if count == self.chunk else 0), count)]
        powers = [1 << bit for bit in range(count.bit_length() - 1, -1, -1)]
        return [(self._program(size), size) for size in powers if count & size]

    def _program(self, size: int) -> Program:
        if size not in self._programs:
            self._programs[size] = self._open()
        return self._programs[size]


def _chunk(row: int) -> int:
    """A power of two of samples, whose largest activation has `row` bytes each."""
    fitting = max(1, CACHE // max(row, 1))
    return min(MOST, 1 << (fitting.bit_length() - 1))


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


def _rows(parts: list[tuple[Program, int]], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of what several programs made, of which each has a range."""
    starts = np.cumsum([0, *(size for _, size in parts)])
    cuts = np.searchsorted(rows, starts)
    found = [
        program.rows(rows[cuts[index] : cuts[index + 1]] - starts[index])
        for index, (program, _) in enumerate(parts)
        if cuts[index] < cuts[index + 1]
    ]
    if len(found) == 1:
        return found[0]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _padded(tensors: Mapping[str, Any], size: int, count: int) -> Mapping[str, Any]:
    if size == count:
        return tensors
    missing = size - count
    return {
        name: np.concatenate([value, np.repeat(value[-1:], missing, 0)])
        for name, value in tensors.items()
    }
