# SPDX-License-Identifier: Apache-2.0
"""Samples that wait before a stage, with what they carry."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["Tensors", "Waiting"]

Tensors = Mapping[str, np.ndarray]
"""Arrays with a row per sample, by name."""


class Waiting:
    """Samples before a stage, first come, first served, in arrays that are used again.

    Attributes:
        who: Numbers of samples, int64. Rows from `start` to `end` wait.
        tensors: What they carry, with the same rows.
    """

    def __init__(self) -> None:
        self.start = self.end = 0
        self.who = np.empty(0, np.int64)
        self.tensors: dict[str, np.ndarray] = {}
        self.moved = 0
        """How often the arrays were replaced by larger ones."""

    @property
    def count(self) -> int:
        """How many wait."""
        return self.end - self.start

    def room(self, count: int, like: Tensors) -> None:
        """Makes room behind `end` for as many more, who carry tensors like these."""
        if self.end + count <= len(self.who):
            return
        held, rows = self.count, slice(self.start, self.end)
        who, tensors = self.who, self.tensors
        if held + count > len(who):
            size = 2 * (held + count)
            self.who = np.empty(size, np.int64)
            self.tensors = {
                name: np.empty((size, *value.shape[1:]), value.dtype)
                for name, value in like.items()
            }
            self.moved += 1
        self.who[:held] = who[rows]
        for name, value in tensors.items():
            self.tensors[name][:held] = value[rows]
        self.start, self.end = 0, held

    def add(self, who: np.ndarray, tensors: Tensors, rows: np.ndarray) -> None:
        """Some rows of a chunk of samples and of what they carry."""
        self.room(len(rows), tensors)
        to = slice(self.end, self.end + len(rows))
        self.who[to] = who[rows]
        for name, value in tensors.items():
            # "clip" spares a copy; the rows are all there.
            np.take(value, rows, 0, out=self.tensors[name][to], mode="clip")
        self.end = to.stop

    def take(self, count: int) -> tuple[np.ndarray, Tensors]:
        """The first `count` of them, or all where there are fewer.

        The arrays are good until more are added.
        """
        rows = slice(self.start, min(self.start + count, self.end))
        self.start = rows.stop
        if self.start == self.end:
            self.start = self.end = 0
        return self.who[rows], {name: value[rows] for name, value in self.tensors.items()}
