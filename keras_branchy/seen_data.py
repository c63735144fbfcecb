# SPDX-License-Identifier: Apache-2.0
"""What `fit` was given, remembered cheaply, so that `calibrate` can warn of it.

Of arrays a key of 8 bytes is kept for each sample, from at most 64 of its numbers: a copy,
a shuffle or a part of the array is known again. Of datasets the objects are remembered: a
`tf.data.Dataset` is known again behind `map`, `batch`, `shuffle` and the like, before or
after. Nothing is iterated, and no sample is kept.

What is not noticed: an array that `fit` had as a dataset, and the reverse; values changed
before they are handed over; a dataset built a second time; training before the model was
saved and loaded, or of the backbone alone. Where more than 1 % of the training samples are
copies of others, arrays say nothing, since held-out samples would be copies, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

__all__ = ["SeenData"]

NUMBERS = 64  # of each sample, evenly spread
ROWS = 4096  # at a time
COPIES = 0.01
# Of tf.data's steps those behind which every sample of their input is still there.
KEEPS_ALL = (
    *("batch", "cache", "map", "options", "prefetch"),
    *("ragged", "rebatch", "repeat", "shuffle", "unbatch"),
)


class SeenData:
    """Remembers data that a model was trained on."""

    def __init__(self) -> None:
        self._keys = np.zeros(0, np.uint64)  # sorted, of all arrays
        self._objects: list[weakref.ref] = []

    def add(self, data: Any, validation_split: float | None = None) -> None:
        """Remembers what `fit` is given as x; the share that it holds out is left out."""
        keys = _keys(data)
        if keys is None:
            known = {id(ref()) for ref in self._objects}
            new = (part for part in _all_of(data) if id(part) not in known)
            self._objects += [ref for part in new if (ref := _reference(part))]
            return
        used = keys[: int(len(keys) * (1 - (validation_split or 0.0)))]
        distinct = np.unique(used)
        copies = len(used) - len(distinct)
        if len(used) and copies <= COPIES * len(used):
            self._keys = np.union1d(self._keys, distinct)

    def share(self, data: Any) -> float:
        """The share of samples in `data` that was seen, as far as can be told."""
        keys = _keys(data)
        if keys is None:
            known = [ref() for ref in self._objects]
            return float(any(part is seen for part in _parts(data) for seen in known))
        return float(np.isin(keys, self._keys).mean()) if len(keys) else 0.0


def _keys(data: Any) -> np.ndarray | None:
    """A uint64 key [n] of each sample of an array, by its values; None for other data."""
    arrays = [leaf for leaf in keras.tree.flatten(data) if hasattr(leaf, "shape")]
    if not arrays or len(np.shape(arrays[0])) < 1:
        return None
    values = np.asarray(keras.ops.convert_to_numpy(arrays[0]))
    if not (values.size and values.dtype.kind in "biuf"):
        return np.zeros(0, np.uint64)
    width = values[0].size
    places = np.linspace(0, width - 1, min(width, NUMBERS)).astype(np.intp)
    factors = np.random.default_rng(0).integers(0, 2**63, len(places), np.uint64)
    chunks = []
    for start in range(0, len(values), ROWS):
        rows = values[start : start + ROWS]
        # In one number format, and -0 as 0.
        picked = rows.reshape(len(rows), -1)[:, places].astype(np.float32) + np.float32(0)
        bits = picked.view(np.uint32).astype(np.uint64)
        mixed = (bits + np.uint64(1)) * (factors | np.uint64(1))
        chunks.append((mixed ^ (mixed >> np.uint64(29))).sum(axis=1, dtype=np.uint64))
    return np.concatenate(chunks)


def _reference(data: Any) -> weakref.ref | None:
    try:
        return weakref.ref(data)
    except TypeError:
        return None  # a list or a tuple of batches


def _inputs(data: Any) -> list[Any]:
    """What a `tf.data.Dataset` is made from; nothing for other objects."""
    inputs = getattr(data, "_inputs", None)
    return list(inputs()) if callable(inputs) and hasattr(data, "element_spec") else []


def _parts(data: Any) -> Iterator[Any]:
    """`data` and all that it is made from."""
    yield data
    for part in _inputs(data):
        yield from _parts(part)


def _all_of(data: Any) -> Iterator[Any]:
    """`data`, and what it is made from as long as every sample is in it."""
    yield data
    step = type(data).__name__.lower()
    if any(word in step for word in KEEPS_ALL):
        for part in _inputs(data):
            yield from _all_of(part)
