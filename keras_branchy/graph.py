# SPDX-License-Identifier: Apache-2.0
"""Functional graphs: walking their calls, calling them again, and inlining nested models.

Keras keeps one node for each call of an operation; a tensor's `_keras_history` names the
node that made it. Everything here works node by node, so that a layer that is called
several times is followed call by call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_branchy.masks import AttachMask, mask_of
from keras_branchy.names import keep_unique

__all__ = [
    "Graph",
    "inline",
    "is_graph",
    "is_stock",
    "nodes_for",
    "operations",
    "producer",
    "replay",
    "rowless",
    "tensors_read",
]

Tensors = dict[int, Any]  # id of a tensor of one graph -> its counterpart in another

# Sizes at which shapes are worked out: a batch that no axis is as long as by chance, and
# lengths that are enough for any stack of windows and strides.
BATCH = 89
FREE_SIZE = 256


def producer(tensor: Any) -> Any:
    """The node whose call made `tensor`."""
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index]


def tensors_read(node: Any) -> list[Any]:
    """What a call reads: its arguments, and their masks.

    Attention and custom layers take the mask off the tensor, where no edge of the graph
    shows it.
    """
    masks = [mask_of(tensor) for tensor in node.input_tensors]
    return [*node.input_tensors, *(mask for mask in masks if mask is not None)]


def nodes_for(tensors: Iterable[Any], known: set[int]) -> list[Any]:
    """The calls that make `tensors` from those whose ids are `known`, in call order.

    The ids of what these calls make are added to `known`, so that the next call with the
    same set gives what is still missing.
    """
    ordered: list[Any] = []
    pending = [(tensor, False) for tensor in reversed(list(tensors))]
    while pending:
        tensor, ready = pending.pop()
        if id(tensor) in known:
            continue
        node = producer(tensor)
        if ready:
            ordered.append(node)
            known.update(id(output) for output in node.outputs)
            continue
        pending.append((tensor, True))
        pending.extend((needed, False) for needed in reversed(tensors_read(node)))
    return ordered


def operations(inputs: Iterable[Any], outputs: Iterable[Any]) -> list[Any]:
    """The operations of a graph, as often as they are called, its inputs among them."""
    inputs = list(inputs)
    nodes = nodes_for(outputs, {id(tensor) for tensor in inputs})
    return [node.operation for node in [*map(producer, inputs), *nodes]]


def replay(node: Any, tensors: Tensors, instead: Tensors | None = None) -> list[Any]:
    """Calls the operation of `node` again, on the counterparts of its arguments.

    Counterparts in `instead` are for this call alone.
    """
    args, kwargs = _arguments(node, {**tensors, **instead} if instead else tensors)
    outputs = keras.tree.flatten(node.operation(*args, **kwargs))
    tensors.update(zip(map(id, node.outputs), outputs, strict=True))
    return outputs


def _arguments(node: Any, tensors: Tensors) -> tuple[Any, Any]:
    def counterpart(value: Any) -> Any:
        return tensors[id(value)] if keras.backend.is_keras_tensor(value) else value

    return node.arguments.convert(counterpart)


def rowless(inputs: Iterable[Any], outputs: Iterable[Any]) -> set[int]:
    """Ids of what the calls behind `outputs` make without one row for each sample.

    Position indices, tables and folded axes are such: there is no taking a sample out of
    them. Shapes are worked out for a batch of a size that nothing else has.
    """
    specs = {id(x): _spec(x.shape, x.dtype) for x in inputs}
    nodes = nodes_for(outputs, set(specs))
    for node in nodes:
        specs.update(zip(map(id, node.outputs), _specs(node, specs), strict=True))
    made = {id(output) for node in nodes for output in node.outputs}
    # Some layers leave their sizes open.
    return {key for key in made if specs[key].shape[:1] not in ((BATCH,), (None,))}


def _spec(shape: Any, dtype: Any) -> Any:
    sizes = [FREE_SIZE if size is None else size for size in shape[1:]]
    return keras.KerasTensor((BATCH, *sizes), dtype)


def _specs(node: Any, specs: Tensors) -> list[Any]:
    """What a call makes of tensors of other sizes, or else what it made in the graph."""
    args, kwargs = _arguments(node, specs)
    try:
        made = keras.tree.flatten(node.operation.compute_output_spec(*args, **kwargs))
    except Exception:  # whatever a layer raises that cannot do with these sizes
        return [
            _spec(x.shape, x.dtype) if x.shape[:1] == (None,) else x for x in node.outputs
        ]
    # New objects, since some layers return the very tensor that they were given.
    return [keras.KerasTensor(x.shape, x.dtype) for x in made]


@dataclass
class Graph:
    """A functional graph in which no nested model is left.

    Attributes:
        inputs: The inputs of the model, in its own structure.
        output: Its one output.
        calls: Tensors made by each call, by address: `"layer"`, `"outer/layer"` inside a
            nested model, `"layer:1"` for the second call of a layer that is called
            several times.
    """

    inputs: Any
    output: Any
    calls: dict[str, list[Any]] = field(default_factory=dict)


def inline(model: keras.Model) -> Graph:
    """The graph of a functional model with one output, nested models inlined.

    Layers are shared with `model`, not copied. A layer of a nested model whose name is
    also another layer's is renamed to `outer_layer`, since names are unique in a graph.
    """
    # A Sequential model has no structure of inputs, but one input.
    inputs = getattr(model, "_inputs_struct", model.inputs[0])
    graph = Graph(inputs, model.outputs[0])
    found = operations(model.inputs, model.outputs)
    names = {operation.name: operation for operation in found}
    tensors = {id(tensor): tensor for tensor in model.inputs}
    again = any(map(is_graph, found))
    _walk(model, tensors, graph, "", names, again)
    graph.output = tensors[id(model.outputs[0])]
    return graph


def _walk(
    model: Any, tensors: Tensors, graph: Graph, prefix: str, names: dict, again: bool
) -> None:
    nodes = nodes_for(model.outputs, set(tensors))
    calls = Counter(id(node.operation) for node in nodes)
    seen: Counter = Counter()
    for node in nodes:
        operation = node.operation
        address = prefix + operation.name
        if calls[id(operation)] > 1:
            address += f":{seen[id(operation)]}"
            seen[id(operation)] += 1
        if is_graph(operation):
            _enter(node, tensors, graph, f"{address}/", names)
        elif again:
            keep_unique(operation, prefix, names)
            replay(node, tensors)
        else:
            tensors.update((id(tensor), tensor) for tensor in node.outputs)
        graph.calls[address] = [tensors[id(tensor)] for tensor in node.outputs]


def _enter(node: Any, tensors: Tensors, graph: Graph, prefix: str, names: dict) -> None:
    """Walks a nested model with the arguments of one call of it."""
    args, kwargs = _arguments(node, tensors)
    nested = node.operation
    given = _in_order(args[0] if args else kwargs["inputs"], nested)
    masks = keras.tree.flatten(kwargs.get("mask")) or [None] * len(given)
    inner = {
        id(declared): _with_mask(_as_declared(tensor, declared), mask)
        for declared, tensor, mask in zip(nested.inputs, given, masks, strict=True)
    }
    _walk(nested, inner, graph, prefix, names, True)
    for outside, inside in zip(node.outputs, nested.outputs, strict=True):
        tensors[id(outside)] = inner[id(inside)]


def _in_order(given: Any, nested: Any) -> list[Any]:
    """Arguments in the order of the nested model's inputs; a dict may go by their names."""
    declared = getattr(nested, "_inputs_struct", None)
    if isinstance(given, Mapping) and not isinstance(declared, Mapping):
        given = [given[tensor.name] for tensor in nested.inputs]
    return keras.tree.flatten(given)


def _as_declared(tensor: Any, declared: Any) -> Any:
    """Casts as the nested model's own call would."""
    if tensor.dtype == declared.dtype:
        return tensor
    return _with_mask(keras.ops.cast(tensor, declared.dtype), mask_of(tensor))


def _with_mask(tensor: Any, mask: Any) -> Any:
    """The mask that a nested model is given, on its input, where its layers look."""
    if mask is None or mask is mask_of(tensor):
        return tensor
    return AttachMask()(tensor, mask)


def is_stock(operation: Any) -> bool:
    """Whether it is Keras' own or this package's: its graph and configuration tell all."""
    return type(operation).__module__.partition(".")[0] in ("keras", "keras_branchy")


def is_graph(operation: Any) -> bool:
    """Whether a call of `operation` is a graph that can be walked.

    A subclassed model, or a functional one with a `call` of its own, is opaque.
    """
    if not isinstance(operation, keras.Model) or not getattr(operation, "inputs", None):
        return False
    call = type(operation).call
    return call is keras.Sequential.call or any(
        call is base.__dict__.get("call")
        for base in type(operation).__mro__
        if base.__name__ == "Functional" and base.__module__.startswith("keras.")
    )
