# SPDX-License-Identifier: Apache-2.0
"""Batches from whatever Keras' `predict` takes, with Keras' progress bar."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["batches_of"]


def batches_of(
    model: BranchyModel,
    data: Any,
    y: Any = None,
    batch_size: int | None = None,
    verbose: Any = "auto",
    steps: int | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Yields (inputs, labels) batch by batch.

    Args:
        model: The model that the inputs are for.
        data: Arrays or tensors in the structure of the model's inputs, a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, or an iterator of batches. A
            batch is x, (x, y) or (x, y, weights).
        y: Labels, for arrays.
        batch_size: For arrays; 32 by default.
        verbose: `"auto"` or 1 for Keras' progress bar, 2 for one line, 0 for none.
        steps: How many batches to take.

    Yields:
        x in the structure and dtypes of the model's inputs, as backend tensors, and y as
        NumPy array, or None where there is none. Arrays without a single sample give one
        empty batch.

    Raises:
        ValueError: If `data` gives no batch, an array and its labels differ in length,
            or `y` or `batch_size` come with data that is batched already.
    """
    batches: Iterator
    total: int | None
    if _is_arrays(data):
        batches, total = _slices(data, y, batch_size or 32)
    else:
        _check_alone(y, batch_size, data)
        batches, total = _stream(data)
    if steps is not None:
        batches = itertools.islice(batches, steps)
        total = steps if total is None else min(steps, total)
    verbose = 1 if verbose == "auto" else int(verbose)
    progress = keras.utils.Progbar(total, verbose=verbose) if verbose else None
    done = 0
    for x, labels in batches:
        yield _as_inputs(x, model), None if labels is None else _as_numpy(labels)
        done += 1
        if progress is not None:
            progress.update(done, finalize=done == total)
    if not done:
        raise ValueError(
            f"`data` gave no batch. Received: {type(data).__name__}. An iterator that "
            "was used before is empty now: pass the data set, not its iterator."
        )
    if progress is not None and total is None:
        progress.update(done, finalize=True)


def _is_arrays(data: Any) -> bool:
    if isinstance(data, (np.ndarray, list, tuple, dict)):
        return True
    return hasattr(data, "shape") and hasattr(data, "dtype")


def _slices(data: Any, y: Any, batch_size: int) -> tuple[Iterator, int]:
    arrays = keras.tree.map_structure(_as_numpy_or_tensor, data)
    sizes = {len(array) for array in keras.tree.flatten(arrays)}
    labels = None if y is None else _as_numpy(y)
    if labels is not None:
        sizes.add(len(labels))
    if len(sizes) != 1:
        raise ValueError(
            "All arrays must hold the same number of samples. Received: arrays of "
            f"{sorted(sizes)} samples."
        )
    size = sizes.pop()
    starts = range(0, max(size, 1), batch_size)

    def batch(start: int) -> tuple[Any, Any]:
        part = slice(start, start + batch_size)
        x = keras.tree.map_structure(lambda array: array[part], arrays)
        return x, None if labels is None else labels[part]

    return map(batch, starts), len(starts)


def _as_numpy_or_tensor(value: Any) -> Any:
    return value if hasattr(value, "shape") else np.asarray(value)


def _stream(data: Any) -> tuple[Iterator, int | None]:
    if isinstance(data, keras.utils.PyDataset):
        total = data.num_batches
        raw: Any = (data[index] for index in range(total))
    else:
        total = None
        if hasattr(data, "cardinality"):
            known = int(data.cardinality())
            total = known if known >= 0 else None
        if not hasattr(data, "__iter__"):
            raise ValueError(
                "`data` must be arrays or tensors, a tf.data.Dataset, a "
                "keras.utils.PyDataset or an iterable of batches. Received: "
                f"{type(data).__name__}."
            )
        raw = iter(data)
    return (keras.utils.unpack_x_y_sample_weight(batch)[:2] for batch in raw), total


def _check_alone(y: Any, batch_size: int | None, data: Any) -> None:
    given = [
        name for name, value in (("y", y), ("batch_size", batch_size)) if value is not None
    ]
    if given:
        raise ValueError(
            f"`{given[0]}` goes with arrays. Received: {given[0]} beside "
            f"{type(data).__name__}, which holds batches and labels itself. Leave it out."
        )


def _as_inputs(x: Any, model: BranchyModel) -> Any:
    """`x` in the structure and dtypes of the model's inputs."""
    structure = model._inputs_struct
    if isinstance(structure, dict) and isinstance(x, dict):
        missing = [name for name in structure if name not in x]
        if missing:
            raise ValueError(
                f"The model has the inputs {list(structure)}. Received: a batch with "
                f"{list(x)}, without {missing}. Pass an array for every input."
            )
        x = {name: x[name] for name in structure}
    flat = keras.tree.flatten(x)
    if len(flat) != len(model.inputs):
        raise ValueError(
            f"The model has {len(model.inputs)} inputs, "
            f"{[tensor.name for tensor in model.inputs]}. Received: {len(flat)} arrays "
            "for a batch. Pass them in the structure of the model's inputs."
        )
    tensors = [
        keras.ops.convert_to_tensor(value, dtype=declared.dtype)
        for value, declared in zip(flat, model.inputs, strict=True)
    ]
    return keras.tree.pack_sequence_as(structure, tensors)


def _as_numpy(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)
