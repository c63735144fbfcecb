# SPDX-License-Identifier: Apache-2.0
"""Samples for calibration and checks, as arrays by input name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_branchy.batches import batches_of
from keras_branchy.graph import producer
from keras_branchy.scoring import all_logits

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["Data", "as_model_inputs", "input_names"]

_RANDOM_SAMPLES = 32


@dataclass(frozen=True)
class Data:
    """Samples, and what Keras says of them.

    Attributes:
        arrays: By input name, [n, …].
        logits: Of every exit, [N, n, C].
        labels: [n] int64, or None.
        random: True where the samples are noise.
    """

    arrays: dict[str, np.ndarray]
    logits: np.ndarray
    labels: np.ndarray | None
    random: bool

    @classmethod
    def of(cls, model: BranchyModel, given: Any) -> Data:
        """From `representative_data`, or noise where there is none.

        Raises:
            ValueError: If it holds no sample.
        """
        x, y = _split(model, given) if given is not None else (_noise(model), None)
        parts, labels = [], []
        for batch, answers in batches_of(model, x, y, verbose=0):
            parts.append([np.asarray(value) for value in keras.tree.flatten(batch)])
            if answers is not None:
                labels.append(answers)
        flat = [np.concatenate(values) for values in zip(*parts, strict=True)]
        if not len(flat[0]):
            raise ValueError(
                "`representative_data` must hold samples. Received: none. Pass a few "
                "hundred that the model was not trained on."
            )
        arrays = dict(zip(input_names(model), flat, strict=True))
        known = np.concatenate(labels) if labels else None
        inputs = as_model_inputs(model, arrays)
        logits, classes = all_logits(model, inputs, known, verbose=0)
        return cls(arrays, np.stack(logits), classes, random=given is None)

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(next(iter(self.arrays.values())))

    def first(self, count: int) -> dict[str, np.ndarray]:
        """The arrays of the first samples."""
        return {name: value[:count] for name, value in self.arrays.items()}


def input_names(model: BranchyModel) -> list[str]:
    """Names of the model's inputs, in order, as stages call them."""
    return [producer(tensor).operation.name for tensor in model.inputs]


def as_model_inputs(model: BranchyModel, tensors: dict[str, Any]) -> Any:
    """Tensors by name in the structure of the model's inputs."""
    flat = [tensors[name] for name in input_names(model)]
    return keras.tree.pack_sequence_as(model._inputs_struct, flat)


def _split(model: BranchyModel, given: Any) -> tuple[Any, Any]:
    """Arrays and their labels, from (x, y); everything else holds its labels itself."""
    pair = isinstance(given, tuple) and len(given) == 2
    several = isinstance(model._inputs_struct, (list, tuple)) and len(model.inputs) == 2
    if pair and (not several or isinstance(given[0], (list, tuple, dict))):
        return given
    return given, None


def _noise(model: BranchyModel) -> Any:
    """Values that any layer takes: between 0 and 1, and 0 or 1 for integers."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, tensor in zip(input_names(model), model.inputs, strict=True):
        shape = (_RANDOM_SAMPLES, *tensor.shape[1:])
        if None in shape:
            raise ValueError(
                "An exported file has fixed shapes, but for the batch. Received: "
                f"the input '{name}' of shape {tuple(tensor.shape)}. Build the backbone "
                "with every size of its inputs given, load the weights into it, and "
                "export that."
            )
        whole = keras.backend.is_int_dtype(tensor.dtype) or tensor.dtype == "bool"
        values = rng.integers(0, 2, shape) if whole else rng.random(shape)
        arrays[name] = values.astype(tensor.dtype)
    return as_model_inputs(model, arrays)
