# SPDX-License-Identifier: Apache-2.0
"""Every call of a functional graph, with the shapes that one sample has there."""

from __future__ import annotations

import inspect
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import keras
import numpy as np

from keras_branchy.cost.counters import contracted_shape
from keras_branchy.cost.registry import LAYERS, Shape, counts, macs_of
from keras_branchy.graph import nodes_for, tensors_read

__all__ = ["Call", "bytes_of", "input_specs", "walk"]

Specs = dict[int, Any]  # id of a tensor of the graph -> its shape and dtype for one sample


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation, for a batch of one.

    Attributes:
        address: Name of the layer, `"outer/inner"` inside a nested model, `"layer:1"`
            for the second call of a layer: what `BranchyModel` takes as a tap.
        operation: The layer or operation.
        arguments: Tensors and arrays that it is given, in the order of its signature.
        reads: Symbolic tensors that it reads, their masks included.
        outputs: Symbolic tensors that it makes.
    """

    address: str
    operation: Any
    arguments: list[Any]
    reads: list[Any]
    outputs: list[Any]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of this call."""
        given = [tensor.shape for tensor in self.arguments]
        return macs_of(self.operation, given, [out.shape for out in self.outputs])


def input_specs(model: Any, input_shape: Any = None) -> Specs:
    """One sample at the inputs of `model`.

    Args:
        model: A functional or built Sequential model.
        input_shape: Sizes without the batch, for inputs that leave some open: a tuple
            for one input, a list of tuples or a dict by input name for several.

    Raises:
        ValueError: If the model has no graph, or the shapes do not fit its inputs.
    """
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(
            "Costs are counted on the graph of a functional or built Sequential model. "
            f"Received: {model!r}, which has none. Rebuild it from keras.Input, or build "
            "it first."
        )
    shapes = _shapes_by_input(model.inputs, input_shape)
    return {
        id(tensor): keras.KerasTensor((1, *shape), tensor.dtype)
        for tensor, shape in zip(model.inputs, shapes, strict=True)
    }


def _shapes_by_input(inputs: Sequence[Any], given: Any) -> list[Shape]:
    declared = [tuple(tensor.shape[1:]) for tensor in inputs]
    if given is None:
        return declared
    if isinstance(given, Mapping):
        names = [tensor._keras_history.operation.name for tensor in inputs]
        unknown = sorted(set(given) - set(names))
        shapes = [
            tuple(given.get(name, d)) for name, d in zip(names, declared, strict=True)
        ]
    else:
        unknown = []
        one = all(size is None or isinstance(size, int) for size in given)
        shapes = [tuple(given)] if one else [tuple(shape) for shape in given]
    if unknown or not _fit(shapes, declared):
        raise ValueError(
            "`input_shape` does not fit the model. Received: "
            f"input_shape={given!r}. Expected the sizes without the batch of inputs of "
            f"shapes {declared}: a tuple for one input, a list or a dict by input name "
            "for several."
        )
    return shapes


def _fit(shapes: Sequence[Shape], declared: Sequence[Shape]) -> bool:
    return [len(shape) for shape in shapes] == [len(d) for d in declared] and all(
        open_size in (None, size)
        for shape, d in zip(shapes, declared, strict=True)
        for size, open_size in zip(shape, d, strict=True)
    )


def walk(model: Any, specs: Specs) -> list[Call]:
    """All calls that the outputs of `model` need, in order, nested models inlined.

    Nothing is added to the graph of `model`: shapes go through `compute_output_spec`.
    What each tensor of the graph becomes for one sample is added to `specs`.
    """
    return _walk(model, specs, "")


def _walk(model: Any, specs: Specs, prefix: str) -> list[Call]:
    nodes = nodes_for(model.outputs, set(specs))
    times = Tally(id(node.operation) for node in nodes)
    seen: Tally = Tally()
    calls: list[Call] = []
    for node in nodes:
        operation = node.operation
        address = prefix + operation.name
        if times[id(operation)] > 1:
            address += f":{seen[id(operation)]}"
            seen[id(operation)] += 1
        if _is_nested(operation):
            calls += _enter(node, specs, f"{address}/")
        else:
            calls.append(_call(node, specs, address))
    return calls


def _call(node: Any, specs: Specs, address: str) -> Call:
    args, kwargs = _arguments(node, specs)
    made = _output_spec(node.operation, args, kwargs)
    # New objects, since some layers return the very tensor that they were given.
    outputs = [keras.KerasTensor(x.shape, x.dtype) for x in keras.tree.flatten(made)]
    specs.update(zip(map(id, node.outputs), outputs, strict=True))
    reads = [specs[id(tensor)] for tensor in tensors_read(node)]
    given = _in_order(node.operation, args, kwargs)
    return Call(address, node.operation, given, reads, outputs)


def _output_spec(operation: Any, args: Any, kwargs: Any) -> Any:
    made = operation.compute_output_spec(*args, **kwargs)
    if isinstance(operation, keras.layers.EinsumDense):
        # It gives what its `output_shape` leaves open as unknown, even where it is known.
        shapes = [_first(args, kwargs).shape, tuple(operation.kernel.shape)]
        made = keras.KerasTensor(contracted_shape(operation.equation, shapes), made.dtype)
    return made


def _enter(node: Any, specs: Specs, prefix: str) -> list[Call]:
    args, kwargs = _arguments(node, specs)
    nested = node.operation
    given = keras.tree.flatten(_first(args, kwargs))
    inner = dict(zip(map(id, nested.inputs), given, strict=True))
    calls = _walk(nested, inner, prefix)
    for outside, inside in zip(node.outputs, nested.outputs, strict=True):
        specs[id(outside)] = inner[id(inside)]
    return calls


def _first(args: Any, kwargs: Any) -> Any:
    return args[0] if args else kwargs["inputs"]


def _arguments(node: Any, specs: Specs) -> tuple[Any, Any]:
    def for_one_sample(value: Any) -> Any:
        return specs[id(value)] if keras.backend.is_keras_tensor(value) else value

    return node.arguments.convert(for_one_sample)


def _in_order(operation: Any, args: Any, kwargs: Any) -> list[Any]:
    """What has a shape among the arguments, in the order of the signature of `call`."""
    try:
        bound = inspect.signature(operation.call).bind(*args, **kwargs).arguments
    except TypeError:  # a `call` that takes less than its layer does
        bound = {"args": args, "kwargs": kwargs}
    return [x for x in keras.tree.flatten(list(bound.values())) if hasattr(x, "shape")]


def _is_nested(operation: Any) -> bool:
    return isinstance(operation, keras.Model) and bool(getattr(operation, "inputs", None))


@counts("Functional", "Model", "Sequential", table=LAYERS)
def _whole_model(model: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    """A model inside a wrapper, such as `TimeDistributed`."""
    specs = input_specs(model, [shape[1:] for shape in inputs])
    return sum(call.macs for call in walk(model, specs))


def bytes_of(spec: Any) -> int:
    """Bytes of one sample of a tensor.

    Raises:
        ValueError: If a size is not known.
    """
    if None in spec.shape:
        raise ValueError(
            f"The size of '{spec.name}' is not known. Received: shape {spec.shape}. Pass "
            "`input_shape=`, without the batch and with every size given, such as "
            "(224, 224, 3)."
        )
    return prod(spec.shape) * np.dtype(spec.dtype).itemsize
