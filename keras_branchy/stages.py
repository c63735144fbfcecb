# SPDX-License-Identifier: Apache-2.0
"""Stages: a model cut at its exits into models that run one after another.

Stage k computes what exit k needs and no earlier stage has computed, and gives the logits
of exit k and every tensor that a later stage reads: skip connections, and masks beside
their tensors. What an exit's head and the trunk both begin with is computed once, and the
next stage begins behind it (`shared_layers`). Stages hold stock layers and share the
model's variables.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from keras_branchy.graph import (
    is_stock,
    nodes_for,
    operations,
    producer,
    replay,
    rowless,
    tensors_read,
)
from keras_branchy.last_exit import LinearCall, find_ending
from keras_branchy.masks import AttachMask, MaskUse, mask_of, readers, without_mask
from keras_branchy.names import rename_new
from keras_branchy.shared_layers import shared_layers

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["Stage", "cut"]

LOGITS = "logits"


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        index: Position of the stage and its exit, from 0.
        exit_name: Name of the exit, as in `BranchyModel.exit_names`.
        model: A functional model from a dict of tensors by name to a dict of `"logits"`
            [B, C] float32 and the tensors that it adds for later stages.
        live: Names of all tensors that later stages read, in the order in which they are
            made; inputs of the model among them stay with whoever runs the stages.
        logits_sum: Name of the sum of logits that it hands on, where exits answer together.
    """

    index: int
    exit_name: str
    model: keras.Model
    live: tuple[str, ...]
    logits_sum: str | None = None

    @property
    def input_names(self) -> list[str]:
        """Names of the tensors that the stage reads."""
        return list(self.model.input)

    @property
    def output_names(self) -> list[str]:
        """Names of the tensors that the stage makes for later ones, without `logits`."""
        return [name for name in self.model.output if name != LOGITS]

    def __call__(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Runs the stage on a dict of tensors that holds at least its inputs."""
        read = {name: without_mask(tensors[name]) for name in self.input_names}
        return dict(self.model(read, training=False))


def cut(model: BranchyModel) -> tuple[Stage, ...]:
    """Cuts `model` at its exits."""
    return _Cutter(model).stages()


class _Cutter:
    """The plan of a cut: which calls belong to which stage, what crosses, and its name."""

    def __init__(self, model: BranchyModel):
        self.model = model
        last = model.output[model.exit_names[-1]]
        ending = find_ending(last)
        if ending is None:
            raise ValueError(
                "The model's last output is not recognised as a softmax over classes. "
                f"Received: '{last.name}'. Build the model as BranchyModel(backbone, "
                "exits), which appends the softmax."
            )
        self.peeled = ending.peeled
        self.masks = MaskUse(model)
        # What each exit reads: features and, at a masked tap, the mask.
        self.targets, self.shared = self._read_by_heads()
        self.targets.append([ending.source])
        self.nodes = self._plan({id(tensor) for tensor in model.inputs})
        self.reads = [
            _crossing(nodes, targets)
            for nodes, targets in zip(self.nodes, self.targets, strict=True)
        ]
        self.names = _names(model, self.reads, self.nodes)
        self._check_masks()

    def _read_by_heads(self) -> tuple[list[list[Any]], list[int]]:
        """What each head reads, and how many of its layers the trunk computes for it."""
        model, targets, shared = self.model, [], []
        calls = nodes_for(model.outputs, {id(tensor) for tensor in model.inputs})
        hidden = not all(is_stock(call.operation) for call in calls)
        for branch, node in zip(model.branches, model._branch_nodes, strict=True):
            features, mask = node.input_tensors[0], node.arguments.kwargs.get("mask")
            count = 0
            if mask is None and not (hidden and self.masks.finds(node, features)):
                others = [call for call in calls if call is not node]
                features, count = shared_layers(features, branch.head, others)
            targets.append([features] if mask is None else [features, mask])
            shared.append(count)
        return targets, shared

    def _plan(self, known: set[int]) -> list[list[Any]]:
        """The calls of each stage, given the ids of what is there before the first.

        What has no entry per sample cannot be carried for those who stay: each stage that
        reads it makes it again.
        """
        targets = [target for targets in self.targets for target in targets]
        loose = rowless(self.model.inputs, targets)
        plan = []
        for targets in self.targets:
            plan.append(nodes_for(targets, known))
            known -= loose
        return plan

    def _check_masks(self) -> None:
        """Refuses a mask that only shows when the model runs, where it would be lost."""
        nodes = [node for stage in self.nodes for node in stage]
        if all(is_stock(node.operation) for node in nodes):
            return
        hidden = [
            tensor
            for node in nodes
            for tensor in node.input_tensors
            if mask_of(tensor) is None and self.masks.finds(node, tensor)
        ]
        crossing = {id(tensor) for reads in self.reads for tensor in reads}
        if any(id(tensor) in crossing for tensor in hidden):
            layer = producer(hidden[0]).operation
            raise ValueError(
                "A mask would be lost where the model is cut. Received: layer "
                f"'{layer.name}' ({type(layer).__name__}), whose output carries a mask "
                "when it runs, but not in the graph. Set `supports_masking = True` in "
                "it, and let its `compute_mask` return the mask."
            )

    def stages(self) -> tuple[Stage, ...]:
        return tuple(map(self._stage, range(len(self.targets))))

    def _live(self, index: int) -> list[Any]:
        """What stages after `index` read of what is there by then."""
        made = {id(tensor) for tensor in self.model.inputs}
        for nodes in self.nodes[: index + 1]:
            made.update(id(output) for node in nodes for output in node.outputs)
        later = {id(t): t for reads in self.reads[index + 1 :] for t in reads}
        return [later[key] for key in self.names if key in later and key in made]

    def _stage(self, index: int) -> Stage:
        inputs, tensors = self._inputs(index)
        for node in self.nodes[index]:
            self._attach_masks(node, index, tensors)
            replay(node, tensors, self.masks.as_found(node, self.nodes[index], tensors))
        live = self._live(index)
        made = {id(output) for node in self.nodes[index] for output in node.outputs}
        read = [tensors[id(target)] for target in self.targets[index]]
        outputs = {LOGITS: self._logits(index, *read)}
        outputs |= {
            self.names[id(tensor)]: tensors[id(tensor)]
            for tensor in live
            if id(tensor) in made
        }
        known = {id(node.operation) for nodes in self.nodes for node in nodes}
        rename_new(operations(inputs.values(), outputs.values()), known)
        name = self.model.exit_names[index]
        return Stage(
            index,
            name,
            keras.Model(inputs, outputs, name=name.replace("exit", "stage")),
            tuple(self.names[id(tensor)] for tensor in live),
        )

    def _inputs(self, index: int) -> tuple[dict[str, Any], dict[int, Any]]:
        """Fresh inputs for what the stage reads."""
        inputs, tensors = {}, {}
        for tensor in self.reads[index]:
            name = self.names[id(tensor)]
            # The batch is free even where the model's own is fixed: survivors are fewer.
            inputs[name] = keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=name)
            tensors[id(tensor)] = inputs[name]
        return inputs, tensors

    def _attach_masks(self, node: Any, index: int, tensors: dict[int, Any]) -> None:
        """Puts masks on the inputs of the stage that a call is the first to read.

        Not before: where a model was loaded, the stage may have to make the mask itself.
        """
        reads = {id(tensor) for tensor in self.reads[index]}
        for tensor in node.input_tensors:
            here, mask = tensors[id(tensor)], mask_of(tensor)
            if mask is None or mask_of(here) is not None or id(tensor) not in reads:
                continue
            if self._arrives_masked(index, tensor):
                attach = AttachMask(name=f"{self.names[id(tensor)]}_masked")
                tensors[id(tensor)] = attach(here, tensors[id(mask)])

    def _arrives_masked(self, index: int, tensor: Any) -> bool:
        """Whether a call of a stage that reads `tensor` finds its mask on it.

        Where only the head reads it, it is given the mask as an argument.
        """
        calls = readers(self.nodes[index], tensor)
        return any(self.masks.finds(node, tensor) for node in calls)

    def _logits(self, index: int, features: Any, mask: Any = None) -> Any:
        if index < len(self.model.branches):
            head = _head(self.model.branches[index], features, self.shared[index])
            return head(features, mask=mask)
        logits = features if self.peeled is None else LinearCall(self.peeled)(features)
        return logits if logits.dtype == "float32" else keras.ops.cast(logits, "float32")


def _head(branch: Any, features: Any, start: int) -> keras.Model:
    """The head of an exit up to its logits, as a model of stock layers.

    A model of its own, so that its layers' names cannot meet those of the trunk.
    """
    inputs = keras.Input(
        features.shape[1:], dtype=features.dtype, name=f"{branch.name}_features"
    )
    head = keras.Model(inputs, branch.logits(inputs, start), name=branch.name)
    head.supports_masking = True
    return head


def _crossing(nodes: list[Any], targets: list[Any]) -> list[Any]:
    """What a stage reads and does not make itself."""
    made = {id(output) for node in nodes for output in node.outputs}
    read = [tensor for node in nodes for tensor in tensors_read(node)]
    return list({id(t): t for t in [*read, *targets] if id(t) not in made}.values())


def _names(
    model: BranchyModel, reads: list[list[Any]], nodes: list[list[Any]]
) -> dict[int, str]:
    """A readable name for every tensor that crosses a cut, in the order they are made."""
    calls = list({id(node): node for stage in nodes for node in stage}.values())
    crossing = {id(tensor): tensor for stage in reads for tensor in stage}
    owners = {
        id(mask_of(tensor)): producer(tensor).operation.name
        for tensor in reversed(crossing.values())
        if mask_of(tensor) is not None
    }
    count = Counter(id(node.operation) for node in calls)
    seen: Counter = Counter()
    names = {id(tensor): producer(tensor).operation.name for tensor in model.inputs}
    taken = {LOGITS, *names.values(), *model.exit_names}
    operations = {node.operation.name for node in calls}
    for node in calls:
        operation, call = node.operation, seen[id(node.operation)]
        seen[id(operation)] += 1
        shared = count[id(operation)] > 1
        for index, output in enumerate(node.outputs):
            if id(output) not in crossing:
                continue
            parts = [f"call_{call}"] * shared + [str(index)] * (len(node.outputs) > 1)
            name = "_".join([operation.name, *parts])
            if id(output) in owners:
                name = f"{owners[id(output)]}_mask"
            # An input may not be called like a layer that the reading stage holds too.
            own = name == operation.name
            while name in taken or (name in operations and not own):
                name, own = f"{name}_out", False
            taken.add(name)
            names[id(output)] = name
    return names
