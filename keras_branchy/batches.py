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

__all__ = ["batches_of", "is_arrays", "is_batch"]


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
        x in the structure and dtypes of the model's inputs, as NumPy arrays or backend
        tensors, and y as NumPy array, or None where there is none. Arrays without a single
        sample give one empty batch.

    Raises:
        ValueError: If `data` gives no batch or does not fit the inputs, an array and its
            labels differ in length, or `y` or `batch_size` come with data that is batched
            already.
    """
    batches: Iterator
    total: int | None
    if is_arrays(data):
        batches, total = _slices(data, y, 32 if batch_size is None else batch_size)
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
    if progress is not None and done != total:
        progress.update(done, finalize=True)


def is_arrays(data: Any) -> bool:
    """Whether `data` is samples, and not batches of them."""
    return isinstance(data, (list, tuple, dict)) or hasattr(data, "shape")


def is_batch(model: BranchyModel, data: Any, batch_size: int | None) -> bool:
    """Whether `data` is the one batch that `batches_of` would make of it, as it is."""
    return (
        isinstance(data, np.ndarray)
        and batch_size is not None
        and len(model.inputs) == 1
        and not isinstance(model._inputs_struct, dict)
        and _is_input(data, model.inputs[0])
        and 0 < len(data) <= batch_size
    )


def _slices(data: Any, y: Any, batch_size: int) -> tuple[Iterator, int]:
    if batch_size < 1:
        raise ValueError(
            "`batch_size` must be an integer of at least 1. Received: "
            f"batch_size={batch_size}."
        )
    arrays = keras.tree.map_structure(_as_array, data)
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


def _as_array(value: Any) -> Any:
    array = value if hasattr(value, "shape") else np.asarray(value)
    if not len(array.shape):
        raise ValueError(
            "An input must be an array or a tensor with a row per sample. Received: "
            f"{value!r} in a list, tuple or dict, which holds one array for each input. "
            "Pass numpy.array(…) of lists of numbers."
        )
    return array if hasattr(array, "dtype") else np.asarray(array)


def _stream(data: Any) -> tuple[Iterator, int | None]:
    if isinstance(data, keras.utils.PyDataset):
        total = data.num_batches
        indices = itertools.count() if total is None else range(total)
        raw: Any = (data[index] for index in indices)
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
    flat = keras.tree.flatten(_by_name(x, model) if isinstance(x, dict) else x)
    if len(flat) != len(model.inputs):
        raise ValueError(
            f"The model has {len(model.inputs)} inputs, "
            f"{[tensor.name for tensor in model.inputs]}. Received: {len(flat)} arrays "
            "for a batch. Pass them in the structure of the model's inputs, and labels "
            "apart, as y=."
        )
    tensors = [_as_input(*pair) for pair in zip(flat, model.inputs, strict=True)]
    return keras.tree.pack_sequence_as(model._inputs_struct, tensors)


def _by_name(x: dict[str, Any], model: BranchyModel) -> Any:
    """What a dict holds for each input, by its key in the model or else by its name."""
    keyed = isinstance(model._inputs_struct, dict)
    names = list(model._inputs_struct) if keyed else [y.name for y in model.inputs]
    missing = [name for name in names if name not in x]
    if missing:
        raise ValueError(
            f"The model has the inputs {names}. Received: a batch with {list(x)}, without "
            f"{missing}. Pass an array for every input."
        )
    return {name: x[name] for name in names} if keyed else [x[name] for name in names]


def _as_input(value: Any, declared: Any) -> Any:
    """One input; a last axis of size 1 is added or left out as in `predict`."""
    if isinstance(value, np.ndarray) and _is_input(value, declared):
        # What is computed from it converts it in a third of the time.
        return value
    tensor = keras.ops.convert_to_tensor(value, dtype=declared.dtype)
    wanted, received = tuple(declared.shape), tuple(tensor.shape)
    if len(received) == len(wanted) - 1 and wanted[-1] == 1:
        tensor = keras.ops.expand_dims(tensor, -1)
    elif len(received) == len(wanted) + 1 and received[-1] == 1:
        tensor = keras.ops.squeeze(tensor, -1)
    if not _fits(tensor.shape, wanted):
        single = received in (wanted[1:], wanted[1:-1] if wanted[-1] == 1 else None)
        raise ValueError(
            f"The input '{declared.name}' takes arrays of shape {wanted}. Received: shape "
            f"{received}. "
            + (
                "Add a first dimension for a single sample: x[None]."
                if single
                else "Pass a batch of samples, and see `model.input_shape`."
            )
        )
    return tensor


def _is_input(array: np.ndarray, declared: Any) -> bool:
    """Whether an array needs nothing done to it."""
    return array.dtype.name == declared.dtype and _fits(array.shape, declared.shape)


def _fits(shape: Any, declared: Any) -> bool:
    return len(shape) == len(declared) and all(
        size in (None, got) for size, got in zip(declared[1:], shape[1:], strict=True)
    )


def _as_numpy(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)
