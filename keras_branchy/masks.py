# SPDX-License-Identifier: Apache-2.0
"""Masks: read off a tensor, put on one, taken off one.

Keras carries a mask as an attribute of its tensor. Some layers get it as an argument, which
the graph shows; attention and custom layers read the attribute, which it does not, and
`MultiHeadAttention` takes it off the tensors it reads.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import keras

__all__ = ["AttachMask", "MaskUse", "mask_of", "masks_seen", "readers", "without_mask"]


def mask_of(tensor: Any) -> Any:
    """The mask that Keras attached to `tensor`, or None."""
    if hasattr(tensor, "_keras_mask"):
        return tensor._keras_mask
    if keras.backend.is_keras_tensor(tensor) or keras.backend.backend() == "tensorflow":
        return None
    # JAX arrays take no attributes: Keras keeps their masks in a table of its own, and
    # tells a layer what it finds there.
    probe = _MaskProbe()
    probe(tensor)
    return probe.found


def without_mask(tensor: Any) -> Any:
    """The same values as a tensor that carries no mask."""
    return tensor if mask_of(tensor) is None else keras.ops.copy(tensor)


def masks_seen(model: keras.Model) -> dict[tuple[int, int], bool]:
    """Which calls find which tensors with their mask on when the model runs.

    The symbolic graph does not tell: `MultiHeadAttention` takes the mask off a tensor for
    every call after its own. One sample of zeros is run, call by call, in Keras' order.

    Returns:
        Pairs of the id of a node and the id of a symbolic tensor on which it finds a
        mask, and whether it takes that mask off.
    """
    values = {id(tensor): _zeros(tensor) for tensor in model.inputs}
    seen = {}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            masked = [x for x in node.input_tensors if mask_of(values[id(x)]) is not None]
            args, kwargs = node.arguments.fill_in(values)
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            for tensor in masked:
                seen[id(node), id(tensor)] = mask_of(values[id(tensor)]) is None
            values.update(zip(map(id, node.outputs), outputs, strict=True))
    return seen


class MaskUse:
    """Gives each call of a part of a model the masks that it finds in the whole.

    Calls of a part run in an order of their own, so a mask that one of them takes off
    must not be missed by another, nor be found by one that comes after it in the whole.
    """

    def __init__(self, model: keras.Model):
        self.model = model

    @functools.cached_property
    def seen(self) -> dict[tuple[int, int], bool]:
        return masks_seen(self.model)

    def finds(self, node: Any, tensor: Any) -> bool:
        """Whether a call finds a mask on a tensor that it reads."""
        return (id(node), id(tensor)) in self.seen

    def as_found(
        self, node: Any, nodes: Sequence[Any], tensors: dict[int, Any]
    ) -> dict[int, Any]:
        """Counterparts for one of `nodes`, where those in `tensors` would not do."""
        found = {}
        for tensor in node.input_tensors:
            here, mask = tensors[id(tensor)], mask_of(tensor)
            if mask is None or mask_of(here) is None:
                continue
            takes = self.seen.get((id(node), id(tensor)))
            if takes is None:
                found[id(tensor)] = keras.ops.copy(here)
            elif takes and len(readers(nodes, tensor)) > 1:
                found[id(tensor)] = AttachMask()(here, tensors[id(mask)])
        return found


def readers(nodes: Sequence[Any], tensor: Any) -> list[Any]:
    """The calls among `nodes` that read `tensor`."""
    return [node for node in nodes if any(tensor is read for read in node.input_tensors)]


def _zeros(tensor: Any) -> Any:
    # Lengths that are free are taken long enough for a few windows and strides.
    sizes = (32 if size is None else size for size in tensor.shape[1:])
    shape = [tensor.shape[0] or 1, *sizes]
    return keras.ops.zeros(shape, dtype=tensor.dtype)


class AttachMask(keras.layers.Layer):
    """Puts a mask on a tensor: `AttachMask()(tensor, mask)`."""

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.built = True
        self._current = threading.local()

    def call(self, inputs: Any, valid: Any) -> Any:
        self._current.mask = valid
        # A tensor of its own: a mask put on the input would reach its other readers.
        return keras.ops.copy(inputs)

    def compute_output_spec(self, inputs: Any, valid: Any) -> Any:
        self._current.mask = valid
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self._current.__dict__.pop("mask", None)


class _MaskProbe(keras.layers.Layer):
    def __init__(self) -> None:
        super().__init__(autocast=False)
        self.supports_masking = True
        self.built = True
        self.found: Any = None

    def call(self, inputs: Any) -> Any:
        return keras.ops.copy(inputs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        self.found = previous_mask
