# SPDX-License-Identifier: Apache-2.0
"""DenseNet-201 for 32x32 images with two decision gates (arXiv 1811.01476)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras.layers import (
    AveragePooling2D,
    Concatenate,
    Dense,
    GlobalAveragePooling2D,
    ReLU,
)

from keras_branchy.networks.d_gates import (
    batch_norm,
    check,
    convolution,
    with_d_gates,
)

__all__ = ["d_gate_densenet"]


def d_gate_densenet(
    num_classes: int = 10,
    *,
    blocks: Sequence[int] = (6, 12, 48, 32),
    growth: int = 32,
    gates: str = "hinge",
    backbone_only: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds a DenseNet with decision gates after dense blocks 1 and 2.

    The default is DenseNet-201 as it is used on 32x32 images: bottlenecks, transitions
    that halve the channels, a 3x3 stem without stride or pooling; 18.3 M parameters and
    1.36 G multiply-accumulates. How the gates are trained is said in `d_gate_resnet`.

    Args:
        num_classes: Number of classes.
        blocks: Layers in each of four dense blocks; (6, 12, 24, 16) is DenseNet-121.
        growth: Channels that a layer adds.
        gates: `"hinge"` or `"crossentropy"`, as for `d_gate_resnet`.
        backbone_only: True for the plain DenseNet, without the gates.
        name: Name of the model.

    Input shape:
        [B, 32, 32, 3], float32 in [0, 1].

    Output shape:
        `{"exit_1": [B, num_classes], "exit_2": …, "exit_3": …}`: decision values or
        probabilities of the gates, probabilities of the last; with `backbone_only`,
        [B, num_classes].

    Returns:
        A `BranchyModel`, or a plain functional `keras.Model` with `backbone_only`.

    Raises:
        ValueError: If there are not four blocks, or `gates` is neither.

    Example:

    ```python
    from keras_branchy import networks

    model = networks.d_gate_densenet(blocks=(2, 2, 2, 2), growth=4, gates="crossentropy")
    assert model.criteria == ["max_probability", "max_probability"]
    ```
    """
    check(blocks, gates, "(6, 12, 48, 32) is DenseNet-201")
    depth = 2 * sum(blocks) + 5
    if backbone_only:
        return _densenet(num_classes, blocks, growth, name or f"densenet{depth}")
    taps = [f"block{block}_layer{blocks[block - 1]}" for block in (1, 2)]
    backbone = _densenet(num_classes, blocks, growth, None)
    return with_d_gates(backbone, taps, gates, name or f"d_gate_densenet{depth}")


def _densenet(
    num_classes: int, blocks: Sequence[int], growth: int, name: str | None
) -> keras.Model:
    inputs = keras.Input((32, 32, 3), name="image")
    x = _norm_relu(convolution(inputs, 2 * growth, 3, "stem_conv"), "stem")
    for block, count in enumerate(blocks, 1):
        for layer in range(1, count + 1):
            x = _dense_layer(x, growth, f"block{block}_layer{layer}")
        if block < len(blocks):
            x = _transition(x, f"transition{block}")
    x = _norm_relu(x, "last")
    x = GlobalAveragePooling2D(name="pool")(x)
    outputs = Dense(num_classes, activation="softmax", name="fc")(x)
    return keras.Model(inputs, outputs, name=name)


def _dense_layer(x: Any, growth: int, name: str) -> Any:
    """[B, H, W, C] -> [B, H, W, C + growth]."""
    new = convolution(_norm_relu(x, f"{name}_1"), 4 * growth, 1, f"{name}_conv1")
    new = convolution(_norm_relu(new, f"{name}_2"), growth, 3, f"{name}_conv2")
    return Concatenate(name=name)([x, new])


def _transition(x: Any, name: str) -> Any:
    """[B, H, W, C] -> [B, H / 2, W / 2, C / 2]."""
    x = convolution(_norm_relu(x, name), x.shape[-1] // 2, 1, f"{name}_conv")
    return AveragePooling2D(2, name=f"{name}_pool")(x)


def _norm_relu(x: Any, name: str) -> Any:
    return ReLU(name=f"{name}_relu")(batch_norm(x, f"{name}_bn"))
