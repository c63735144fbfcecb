# SPDX-License-Identifier: Apache-2.0
"""Layers with which a head begins, and the trunk goes on, alike: computed once.

Published branches start before an activation or a pooling that the trunk has as well.
A stage that computes it for both hands on the smaller tensor, and the next stage begins
behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_branchy.graph import is_stock
from keras_branchy.masks import mask_of

__all__ = ["shared_layers"]


def shared_layers(
    features: Any, head: Sequence[keras.layers.Layer], trunk: Sequence[Any]
) -> tuple[Any, int]:
    """How far a head computes what the trunk computes as well.

    Only layers of Keras and of this package count that have no weights and no mask, are
    configured alike, and alone go on from where they start: where others read the tensor
    too, it is carried anyway.

    Args:
        features: The tensor that an exit is attached to.
        head: The layers of the exit's head, each reading the one before.
        trunk: The nodes of the trunk, whatever reads its tensors among them.

    Returns:
        The tensor of the trunk behind these layers, and how many of `head` they are.
    """
    count = 0
    for layer in head:
        readers = [
            node
            for node in trunk
            if any(tensor is features for tensor in node.input_tensors)
        ]
        if len(readers) != 1 or not _are_alike(layer, readers[0]):
            break
        features = readers[0].outputs[0]
        count += 1
    return features, count


def _are_alike(layer: keras.layers.Layer, node: Any) -> bool:
    twin = node.operation
    if type(twin) is not type(layer) or not _is_function(layer):
        return False
    tensors = [*node.input_tensors, *node.outputs]
    options = node.arguments.kwargs.values()
    alone = len(node.arguments.args) == 1 and all(value is None for value in options)
    if len(tensors) != 2 or not alone or any(mask_of(x) is not None for x in tensors):
        return False
    if getattr(layer, "activation", None) is not getattr(twin, "activation", None):
        return False  # functions of one name may differ
    return _settings(layer) == _settings(twin)


def _is_function(layer: keras.layers.Layer) -> bool:
    """Whether its configuration says all that it does."""
    opaque = layer.variables or isinstance(layer, keras.layers.Lambda)
    return is_stock(layer) and not opaque


def _settings(layer: keras.layers.Layer) -> dict[str, Any]:
    config = layer.get_config()
    return {key: value for key, value in config.items() if key not in ("name", "trainable")}
