# SPDX-License-Identifier: Apache-2.0
"""Samples that wait before a stage, with what they carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Tensors", "Waiting"]

Tensors = Mapping[str, Any]
"""Arrays with a row per sample, by name."""


class Waiting:
    """Samples before a stage, first come, first served."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[tuple[np.ndarray, Tensors]] = []

    def add(self, who: np.ndarray, tensors: Tensors) -> None:
        """More of them, by number, with what they carry."""
        self._parts.append((who, tensors))
        self.count += len(who)

    def take(self, count: int) -> tuple[np.ndarray, Tensors]:
        """The first `count` of them, or all where there are fewer; at least one waits."""
        who, tensors = _joined(self._parts)
        count = min(count, len(who))
        self._parts = []
        if count < len(who):
            self._parts = [(who[count:], {k: v[count:] for k, v in tensors.items()})]
        self.count = len(who) - count
        return who[:count], {k: v[:count] for k, v in tensors.items()}


def _joined(parts: Sequence[tuple[np.ndarray, Tensors]]) -> tuple[np.ndarray, Tensors]:
    """Groups of samples as one."""
    if len(parts) == 1:
        return parts[0]
    names = parts[0][1]
    return np.concatenate([who for who, _ in parts]), {
        name: np.concatenate([tensors[name] for _, tensors in parts]) for name in names
    }
