# SPDX-License-Identifier: Apache-2.0
"""Stages: a model cut at its exits into models that run one after another.

Stage k computes what exit k needs and no earlier stage has computed, and gives the logits
of exit k and every tensor that a later stage reads: skip connections, and masks beside
their tensors. Stages hold stock layers and share the model's variables.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from keras_branchy.graph import nodes_for, producer, replay, rowless, tensors_read
from keras_branchy.last_exit import LinearCall, find_ending
from keras_branchy.masks import AttachMask, mask_of, masks_seen, without_mask

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
    """

    index: int
    exit_name: str
    model: keras.Model
    live: tuple[str, ...]

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
        # What each exit reads: features and, at a masked tap, the mask.
        self.targets = [*map(_read_by_branch, model._branch_nodes), [ending.source]]
        self.nodes = self._plan({id(tensor) for tensor in model.inputs})
        self.reads = [
            _crossing(nodes, targets)
            for nodes, targets in zip(self.nodes, self.targets, strict=True)
        ]
        self.names = _names(model, self.reads, self.nodes)

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
            replay(node, tensors)
        live = self._live(index)
        made = {id(output) for node in self.nodes[index] for output in node.outputs}
        read = [tensors[id(target)] for target in self.targets[index]]
        outputs = {LOGITS: self._logits(index, *read)}
        outputs |= {
            self.names[id(tensor)]: tensors[id(tensor)]
            for tensor in live
            if id(tensor) in made
        }
        name = self.model.exit_names[index]
        return Stage(
            index,
            name,
            keras.Model(inputs, outputs, name=name.replace("exit", "stage")),
            tuple(self.names[id(tensor)] for tensor in live),
        )

    def _inputs(self, index: int) -> tuple[dict[str, Any], dict[int, Any]]:
        """Fresh inputs for what the stage reads, masks re-attached."""
        inputs, tensors = {}, {}
        for tensor in self.reads[index]:
            name = self.names[id(tensor)]
            # The batch is free even where the model's own is fixed: survivors are fewer.
            inputs[name] = keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=name)
            tensors[id(tensor)] = inputs[name]
        for tensor in self.reads[index]:
            mask = mask_of(tensor)
            if mask is not None and self._arrives_masked(index, tensor):
                attach = AttachMask(name=f"{self.names[id(tensor)]}_masked")
                tensors[id(tensor)] = attach(tensors[id(tensor)], tensors[id(mask)])
        return inputs, tensors

    def _arrives_masked(self, index: int, tensor: Any) -> bool:
        """Whether the first call of a stage that reads `tensor` finds its mask on it."""
        for node in self.nodes[index]:
            if any(tensor is read for read in node.input_tensors):
                return (id(node), id(tensor)) in self.masks_seen
        return False  # only the head reads it, which is given the mask as an argument

    @functools.cached_property
    def masks_seen(self) -> set[tuple[int, int]]:
        return masks_seen(self.model)

    def _logits(self, index: int, features: Any, mask: Any = None) -> Any:
        if index < len(self.model.branches):
            return _head(self.model.branches[index], features)(features, mask=mask)
        logits = features if self.peeled is None else LinearCall(self.peeled)(features)
        return logits if logits.dtype == "float32" else keras.ops.cast(logits, "float32")


def _read_by_branch(node: Any) -> list[Any]:
    mask = node.arguments.kwargs.get("mask")
    return [node.input_tensors[0], *([] if mask is None else [mask])]


def _head(branch: Any, features: Any) -> keras.Model:
    """The head of an exit up to its logits, as a model of stock layers.

    A model of its own, so that its layers' names cannot meet those of the trunk.
    """
    inputs = keras.Input(
        features.shape[1:], dtype=features.dtype, name=f"{branch.name}_features"
    )
    head = keras.Model(inputs, branch.logits(inputs), name=branch.name)
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
