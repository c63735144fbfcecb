# SPDX-License-Identifier: Apache-2.0
"""Attaching exits to a backbone: taps are found, checked, and turned into outputs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import keras

from keras_branchy.exit_branch import ExitBranch
from keras_branchy.graph import (
    Graph,
    inline,
    is_graph,
    nodes_for,
    operations,
    producer,
    rowless,
)
from keras_branchy.last_exit import Ending, find_ending
from keras_branchy.names import rename_new

__all__ = ["attach"]


def attach(
    backbone: Any, exits: Any, from_logits: bool | None
) -> tuple[Any, dict[str, Any]]:
    """Calls each branch at its tap; returns inputs and outputs of the model with exits.

    Arguments and errors are those of `BranchyModel`.
    """
    _check_backbone(backbone)
    _check_exits(exits)
    graph = inline(backbone)
    ending = _ending(graph, from_logits)
    names = _exit_names(len(exits) + 1)
    _check_names(graph, names)
    _check_units(exits, graph.output.shape[-1])
    taps = {tap: _find(tap, graph) for tap in exits}
    _check_order(taps, graph, ending)
    _check_batch(taps, graph)
    outputs = {}
    for name, (tap, branch) in zip(names, exits.items(), strict=False):
        branch.name = name
        outputs[name] = branch(taps[tap])
    outputs[names[-1]] = _last_output(graph.output, ending, names[-1])
    known = {id(producer(made[0]).operation) for made in graph.calls.values()}
    inputs = keras.tree.flatten(graph.inputs)
    rename_new(operations(inputs, outputs.values()), known)
    return graph.inputs, outputs


def _exit_names(count: int) -> list[str]:
    # Zero-padded, because Keras goes through dict outputs in sorted order.
    digits = len(str(count))
    return [f"exit_{index:0{digits}d}" for index in range(1, count + 1)]


def _check_backbone(backbone: Any) -> None:
    if not isinstance(backbone, keras.Model):
        raise ValueError(
            "`backbone` must be a Keras model. Received: "
            f"{backbone!r} of type {type(backbone).__name__}. Expected a functional or "
            "built Sequential model."
        )
    if not getattr(backbone, "inputs", None):
        remedy = (
            "Build it first: put keras.Input(shape) at its front."
            if isinstance(backbone, keras.Sequential)
            else "Rebuild it from keras.Input with the functional API."
        )
        raise ValueError(
            "`backbone` must have a graph whose layers can be tapped. Received: "
            f"'{backbone.name}', {type(backbone).__name__}, which is subclassed or not "
            f"built. {remedy}"
        )
    if not is_graph(backbone):
        raise ValueError(
            "`backbone` must compute what its graph shows. Received: "
            f"'{backbone.name}' of type {type(backbone).__name__}, which has a `call` of "
            "its own. Put what that adds into layers, and pass "
            "keras.Model(inputs, outputs)."
        )
    if len(backbone.outputs) != 1:
        raise ValueError(
            "`backbone` must have one output, its class scores. Received: "
            f"'{backbone.name}' with {len(backbone.outputs)} outputs "
            f"{[producer(output).operation.name for output in backbone.outputs]}. Pass "
            "keras.Model(backbone.inputs, the_output_to_keep)."
        )


def _check_exits(exits: Any) -> None:
    if not isinstance(exits, Mapping) or not exits:
        raise ValueError(
            "`exits` must be a dict with at least one exit, {layer name: ExitBranch}, in "
            f"the order of the graph. Received: exits={exits!r}."
        )
    for tap, branch in exits.items():
        if not isinstance(branch, ExitBranch):
            raise ValueError(
                f"Each exit must be an ExitBranch. Received: {branch!r} at tap {tap!r}. "
                "Pass ExitBranch(classes), or ExitBranch(classes, layers=[…]) for a head "
                "of your own."
            )
    if len({id(branch) for branch in exits.values()}) < len(exits):
        raise ValueError(
            "Each exit needs an ExitBranch of its own. Received: one ExitBranch at "
            f"several of the taps {list(exits)}. Create one per tap."
        )
    used = [tap for tap, branch in exits.items() if branch.built or branch._inbound_nodes]
    if used:
        raise ValueError(
            f"The ExitBranch at {used} is already part of a model, or built. Create a "
            "new one, or ExitBranch.from_config(branch.get_config())."
        )


def _ending(graph: Graph, from_logits: bool | None) -> Ending:
    ending = find_ending(graph.output)
    last = producer(graph.output).operation
    if ending is None and from_logits is None:
        raise ValueError(
            "The backbone's output is not recognised as class scores. Received: a "
            f"backbone that ends in '{last.name}' ({type(last).__name__}). Expected it "
            "to end in a softmax, or in a Dense layer without activation. Say what it "
            "is: from_logits=True for logits, from_logits=False for probabilities that "
            "sum to 1."
        )
    if ending is None:
        ending = Ending(graph.output, None, softmax=False)
        if not from_logits:
            tiny = keras.backend.epsilon() ** 2
            logits = keras.ops.log(keras.ops.maximum(graph.output, tiny))
            ending = Ending(logits, None, softmax=False)
    elif from_logits is not None and from_logits == ending.softmax:
        raise ValueError(
            f"The backbone ends in {'a softmax' if ending.softmax else 'logits'}, at "
            f"'{last.name}'. Received: from_logits={from_logits}. Leave `from_logits` "
            "out."
        )
    return ending


def _last_output(output: Any, ending: Ending, name: str) -> Any:
    if ending.softmax:
        return output
    return keras.layers.Softmax(name=name, dtype="float32")(ending.source)


def _check_names(graph: Graph, names: list[str]) -> None:
    inputs = {tensor.name for tensor in keras.tree.flatten(graph.inputs)}
    layers = {producer(made[0]).operation.name for made in graph.calls.values()}
    taken = sorted((layers | inputs).intersection(names))
    if taken:
        raise ValueError(
            f"The names {names} are those of the exits. Received: a backbone with layers "
            f"or inputs named {taken}. Rename these."
        )
    if "logits" in inputs:
        raise ValueError(
            "Stages give their scores under the name 'logits'. Received: a backbone with "
            "an input of that name. Rename the input."
        )


def _check_units(exits: Mapping[str, ExitBranch], num_classes: int) -> None:
    wrong = {
        tap: branch.units for tap, branch in exits.items() if branch.units != num_classes
    }
    if wrong:
        raise ValueError(
            "Every exit must score the same classes. Received: a backbone with "
            f"{num_classes} classes and exits with other units, {wrong}. Expected "
            f"ExitBranch({num_classes})."
        )


def _find(tap: Any, graph: Graph) -> Any:
    """The tensor at an address, or the input of that name."""
    inputs = {
        producer(tensor).operation.name: [tensor]
        for tensor in keras.tree.flatten(graph.inputs)
    }
    made = graph.calls.get(tap, inputs.get(tap))
    if made is not None and len(made) == 1:
        return made[0]
    if made is not None:
        raise ValueError(
            f"The layer at tap {tap!r} has {len(made)} outputs, so it is not clear which "
            "to read. Put a keras.layers.Identity() on the one you mean and tap that."
        )
    several = [address for address in graph.calls if address.startswith(f"{tap}:")]
    if several:
        raise ValueError(
            f"The layer {tap!r} is called several times in the backbone. Received: tap "
            f"{tap!r}. Name the call: one of {several}."
        )
    close = difflib.get_close_matches(str(tap), graph.calls, n=3, cutoff=0.4)
    inner = [address for address in graph.calls if address.endswith(f"/{tap}")]
    hint = ", ".join(repr(name) for name in dict.fromkeys(inner + close))
    raise ValueError(
        f"The backbone has no layer {tap!r} to tap. "
        + (f"The closest names are: {hint}." if hint else "")
        + f" It has {len(graph.calls)} layers; backbone.summary(expand_nested=True) "
        "lists them."
    )


def _check_order(taps: dict[str, Any], graph: Graph, ending: Ending) -> None:
    seen: dict[int, str] = {}
    for tap, tensor in taps.items():
        if id(tensor) in seen:
            raise ValueError(
                f"Two exits are at the same place. Received: taps {seen[id(tensor)]!r} "
                f"and {tap!r}, which are one tensor. Remove one of them."
            )
        seen[id(tensor)] = tap
        if tensor is graph.output or (ending.peeled is None and tensor is ending.source):
            raise ValueError(
                f"An exit at the last layer saves nothing. Received: tap {tap!r}, which "
                "gives the backbone's own class scores. Tap an earlier layer."
            )
    inputs = {id(tensor) for tensor in keras.tree.flatten(graph.inputs)}
    known = set(inputs)
    behind: set[int] = set()
    for tap, tensor in taps.items():
        if id(tensor) in behind:
            depth = {
                name: len(nodes_for([other], set(inputs))) for name, other in taps.items()
            }
            raise ValueError(
                "`exits` must follow the order of the graph. Received: "
                f"{list(taps)}, where {tap!r} is computed before an exit that stands "
                f"ahead of it. Expected: {sorted(taps, key=depth.__getitem__)}."
            )
        if nodes_for([tensor], known):
            behind = known  # the inputs among it: only a first exit may read them


def _check_batch(taps: dict[str, Any], graph: Graph) -> None:
    loose = rowless(keras.tree.flatten(graph.inputs), [graph.output])
    if id(graph.output) in loose:
        raise ValueError(
            "The backbone must give one row of class scores per sample. Received: an "
            f"output of shape {tuple(graph.output.shape)}, whose first axis is not the "
            "batch. End the backbone with a pooling or Flatten layer before its class "
            "scores."
        )
    for tap, tensor in taps.items():
        if id(tensor) in loose:
            raise ValueError(
                "An exit must read features with one entry per sample. Received: tap "
                f"{tap!r}, of shape {tuple(tensor.shape)}, whose first axis is not the "
                "batch. Tap the layer that joins it to the samples."
            )
