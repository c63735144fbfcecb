# SPDX-License-Identifier: Apache-2.0
"""Masks: read off a tensor, put on one, taken off one.

Keras carries a mask as an attribute of its tensor. Some layers get it as an argument, which
the graph shows; attention and custom layers read the attribute, which it does not, and
`MultiHeadAttention` takes it off the tensors it reads.
"""

from __future__ import annotations

import threading
from typing import Any

import keras

__all__ = ["AttachMask", "mask_of", "without_mask"]


def mask_of(tensor: Any) -> Any:
    """The mask that Keras attached to `tensor`, or None."""
    return getattr(tensor, "_keras_mask", None)


def without_mask(tensor: Any) -> Any:
    """The same values as a tensor that carries no mask."""
    return tensor if mask_of(tensor) is None else keras.ops.stop_gradient(tensor)


class AttachMask(keras.layers.Layer):
    """Puts a mask on a tensor: `AttachMask()(tensor, mask)`."""

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.built = True
        self._current = threading.local()

    def call(self, inputs: Any, valid: Any) -> Any:
        self._current.mask = valid
        return inputs

    def compute_output_spec(self, inputs: Any, valid: Any) -> Any:
        self._current.mask = valid
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self._current.__dict__.pop("mask", None)
