# SPDX-License-Identifier: Apache-2.0
"""Exported stages as the engine of a walk: chunks of samples through LiteRT files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from keras_branchy.batch_gate import Gate
from keras_branchy.runner.engines import opener
from keras_branchy.runner.manifest import Call, Manifest
from keras_branchy.runner.thread_choice import Computation, with_threads
from keras_branchy.walk import Rest, Rules

__all__ = ["StageEngine", "rules_of", "told"]

# Samples at a time, for each thread. An image takes as long among many as alone, and half
# as long again once the largest activation no longer fits the cores' own caches; more at a
# time are fewer calls, of which small networks are made.
MOST = 256
CACHE = 5 << 18  # bytes
FEW = 32  # samples


class StageEngine:
    """The stages of an export, for one caller at a time.

    Args:
        manifest: Of an export in stages, whose batch size is not 1.
        threads: Threads within each call to LiteRT, at most.
    """

    def __init__(self, manifest: Manifest, threads: int = 1):
        fixed = manifest.data["batch_size"]
        self.num_classes: int = manifest.data["num_classes"]
        calls = [stage.call for stage in manifest.stages if stage.call is not None]
        self._stages = [_Sizes(manifest, call, fixed, threads) for call in calls]
        self.chunks: list[int] = [stage.chunk for stage in self._stages]
        self._gates = rules_of(manifest).gates()

    def run(
        self, stage: int, tensors: Mapping[str, Any], count: int
    ) -> tuple[np.ndarray, Rest]:
        """Logits of a chunk, and what gives the rest; see `walk.Engine`."""
        program, size = self._stages[stage].fitting(count)
        if size == count:
            return program.run(tensors), program.views
        return program.run(_padded(tensors, size - count))[:count], program.views

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


class _Sizes:
    """A stage's file, which is resized from call to call.

    That takes some 10 us of LiteRT's, and an interpreter for each size its memory again.
    """

    def __init__(self, manifest: Manifest, call: Call, fixed: int | None, threads: int):
        self._fixed, self._threads = fixed, threads
        self._opened = cache(opener(manifest, call, "logits"))
        self.chunk = fixed or _chunk(self._opened(threads).largest_row, threads)
        # By the binary digits of a number of samples: twice as many take twice as long.
        self._chosen: dict[int, Computation] = {}

    def fitting(self, count: int) -> tuple[Computation, int]:
        """What computes `count` samples, and how many it takes."""
        count = self._fixed or count
        size = count.bit_length()
        chosen = self._chosen.get(size)
        if chosen is None:
            settle = partial(self._chosen.__setitem__, size)
            chosen = with_threads(self._opened, self._threads, settle)
            self._chosen[size] = chosen
        return chosen, count


def _chunk(row: int, threads: int) -> int:
    """So many samples a thread as fit, where each has `row` bytes at most.

    The nearest power of two; of more than `FEW` the one below, as calls cost little then.
    """
    fitting = max(0.0, math.log2(CACHE / max(row, 1)))
    digits = round(fitting) if fitting < math.log2(FEW) else math.floor(fitting)
    return threads * min(MOST, 1 << digits)


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


def _padded(tensors: Mapping[str, Any], missing: int) -> Mapping[str, Any]:
    return {
        name: np.concatenate([value, np.repeat(value[-1:], missing, 0)])
        for name, value in tensors.items()
    }
