# SPDX-License-Identifier: Apache-2.0
"""What a caller passes as samples, as arrays by input name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_branchy.runner.manifest import Tensor

__all__ = ["SampleReader"]


class SampleReader:
    """From what a caller passes to arrays by input name, and how many samples they are."""

    def __init__(self, inputs: Sequence[Tensor]):
        self._inputs = inputs
        self._name = inputs[0].name if len(inputs) == 1 else None
        self._dtype = np.dtype(inputs[0].dtype)
        self._shape = inputs[0].shape[1:]

    def __call__(self, x: Any) -> tuple[dict[str, np.ndarray], int]:
        """Arrays in the dtypes that the files read.

        Raises:
            ValueError: If an input is missing, or its shape or kind of number is another.
        """
        # The common case first: the checks below cost a fifth of a small stage.
        if (
            self._name is not None
            and isinstance(x, np.ndarray)
            and x.dtype is self._dtype
            and x.shape[1:] == self._shape
        ):
            return {self._name: x}, len(x)
        return _as_samples(x, self._inputs)


def _as_samples(x: Any, inputs: Sequence[Tensor]) -> tuple[dict[str, np.ndarray], int]:
    if len(inputs) == 1 and not isinstance(x, (Mapping, list, tuple)):
        samples = {inputs[0].name: _as_array(x, inputs[0])}
    else:
        given = _by_name(x, inputs)
        samples = {tensor.name: _as_array(given[tensor.name], tensor) for tensor in inputs}
    counts = {len(array) for array in samples.values()}
    if len(counts) != 1:
        raise ValueError(
            "Every input must hold the same number of samples. Received: "
            f"{ {name: len(array) for name, array in samples.items()} }. Pass one row per "
            "sample in each."
        )
    return samples, counts.pop()


def _by_name(x: Any, inputs: Sequence[Tensor]) -> Mapping[str, Any]:
    names = [tensor.name for tensor in inputs]
    if isinstance(x, Mapping):
        missing = [name for name in names if name not in x]
        if missing:
            raise ValueError(
                f"The model reads the inputs {names}. Received: a dict of {sorted(x)}. "
                f"Add {missing}."
            )
        return x
    if len(inputs) == 1:
        return {names[0]: x}
    if not isinstance(x, (list, tuple)) or len(x) != len(names):
        received = f"{len(x)} arrays" if isinstance(x, (list, tuple)) else type(x).__name__
        raise ValueError(
            f"The model reads the inputs {names}. Received: {received}. Pass a dict by "
            "name, or a list in that order."
        )
    return dict(zip(names, x, strict=True))


def _remedy(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    """How to make samples of this shape those that are wanted, `wanted` each."""
    if shape == wanted:
        return "Add a first dimension for a single sample: x[None]."
    if (*shape[1:], 1) == wanted:
        return "Add the last dimension: x[..., None]."
    return "Pass a NumPy array with a row per sample, each as in training."


def _as_array(value: Any, tensor: Tensor) -> np.ndarray:
    array = np.asarray(value)
    wanted = tensor.shape[1:]
    if array.shape[1:] != wanted or array.ndim != len(tensor.shape):
        shown = ", ".join(["samples", *map(str, wanted)])
        received = f"shape {array.shape}" if array.ndim else type(value).__name__
        raise ValueError(
            f"The input '{tensor.name}' must have the shape [{shown}]. Received: "
            f"{received}. {_remedy(array.shape, wanted)}"
        )
    if array.dtype == tensor.dtype:
        return array
    if not np.can_cast(array.dtype, tensor.dtype, "same_kind"):
        raise ValueError(
            f"The input '{tensor.name}' must hold {tensor.dtype}. Received: "
            f"{array.dtype}. Convert it as it was for training, with x.astype("
            f"'{tensor.dtype}') after the scaling."
        )
    return array.astype(tensor.dtype)
