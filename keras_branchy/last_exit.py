# SPDX-License-Identifier: Apache-2.0
"""How a backbone ends: finding the logits behind its own output, which is the last exit."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import keras

from keras_branchy.graph import producer

__all__ = ["Ending", "LinearCall", "find_ending"]


@dataclass(frozen=True)
class Ending:
    """Where the logits of a backbone come from.

    Attributes:
        source: The tensor that the logits are, or that `peeled` turns into them.
        peeled: The last layer, to be called without its softmax, or None.
        softmax: Whether the output is already a softmax of the logits.
    """

    source: Any
    peeled: keras.layers.Layer | None
    softmax: bool


def find_ending(output: Any) -> Ending | None:
    """Recognises logits or a softmax over them, or returns None.

    Args:
        output: The output tensor of a graph without nested models.

    Raises:
        ValueError: If the output is no set of scores over classes: sigmoid, one unit, a
            spatial map or a sequence.
    """
    _check_shape(output)
    node = producer(output)
    operation = node.operation
    name = type(operation).__name__
    activation = getattr(operation, "activation", None)
    if activation is keras.activations.sigmoid or name in ("Sigmoid", "LogSigmoid"):
        raise ValueError(
            "The backbone must end in a softmax over classes, or in logits. Received: "
            f"a backbone that ends in a sigmoid, '{operation.name}', which scores each "
            "label by itself. Exits decide between classes that exclude each other: for "
            "those, replace the sigmoid by a softmax."
        )
    single = len(node.input_tensors) == 1
    source = node.input_tensors[0] if single else None
    if single and _is_softmax_call(operation, name, activation):
        return Ending(source, None, softmax=True)
    if single and _passes_through(operation, activation):
        return find_ending(source)
    if single and isinstance(operation, (keras.layers.Dense, keras.layers.EinsumDense)):
        if activation is keras.activations.softmax:
            return Ending(source, operation, softmax=True)
        if activation is keras.activations.linear:
            return Ending(output, None, softmax=False)
    return None


def _check_shape(output: Any) -> None:
    shape, layer = tuple(output.shape), producer(output).operation.name
    received = f"Received: an output of shape {shape} from '{layer}'. "
    if len(shape) > 2:
        kind = {3: "a sequence", 4: "a spatial map"}.get(len(shape), "a tensor")
        raise ValueError(
            "The backbone must give one row of class scores per sample, [batch, "
            f"classes]. {received}An exit decides for a whole sample, not for each place "
            f"of {kind}: end the backbone with a pooling or Flatten layer before its "
            "class scores."
        )
    if len(shape) != 2 or shape[-1] is None:
        raise ValueError(
            "The backbone must give one row of class scores per sample, [batch, "
            f"classes], with a known number of classes. {received}End it with "
            "keras.layers.Dense(classes, activation='softmax')."
        )
    if shape[-1] == 1:
        raise ValueError(
            "The backbone must score at least two classes. Received: an output of one "
            f"unit, shape {shape}, from '{layer}'. For a yes-or-no answer use "
            "keras.layers.Dense(2, activation='softmax') and labels 0 and 1."
        )


def _is_softmax_call(operation: Any, name: str, activation: Any) -> bool:
    if name == "Softmax" and type(operation).__module__.startswith("keras."):
        return operation.axis in (-1, 1)
    return (
        isinstance(operation, keras.layers.Activation)
        and activation is keras.activations.softmax
    )


def _passes_through(operation: Any, activation: Any) -> bool:
    return isinstance(operation, keras.layers.Identity) or (
        isinstance(operation, keras.layers.Activation)
        and activation is keras.activations.linear
    )


class LinearCall(keras.layers.Layer):
    """Calls another layer with its softmax taken off, and shares its variables.

    The logits of `Dense(10, activation="softmax")` are then its own arithmetic, where a
    logarithm of its probabilities would lose near-ties.
    """

    _swap = threading.RLock()

    def __init__(self, layer: keras.layers.Layer):
        super().__init__(name=f"{layer.name}_logits", dtype=layer.dtype_policy)
        self.layer = layer
        self.built = True

    def call(self, inputs: Any) -> Any:
        with self._swap:
            softmax = self.layer.activation
            self.layer.activation = keras.activations.linear
            try:
                return self.layer(inputs)
            finally:
                self.layer.activation = softmax

    def compute_output_spec(self, inputs: Any) -> Any:
        return self.layer.compute_output_spec(inputs)
