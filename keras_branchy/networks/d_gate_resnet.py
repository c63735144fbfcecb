# SPDX-License-Identifier: Apache-2.0
"""ResNet-101 for 32x32 images with two decision gates (arXiv 1811.01476)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras.layers import Add, Dense, GlobalAveragePooling2D, ReLU

from keras_branchy.networks.d_gates import (
    batch_norm,
    check,
    convolution,
    with_d_gates,
)

__all__ = ["d_gate_resnet"]


def d_gate_resnet(
    num_classes: int = 10,
    *,
    blocks: Sequence[int] = (3, 4, 23, 3),
    width: int = 64,
    gates: str = "hinge",
    backbone_only: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds a ResNet of bottleneck blocks with decision gates after groups 1 and 2.

    The default is ResNet-101 as it is used on 32x32 images: a 3x3 stem without stride or
    pooling, 42.6 M parameters and 2.51 G multiply-accumulates, which are the 5 GFLOPs that
    the published savings are a share of. The source trains the network, freezes it, and
    trains one linear layer per gate on its features; here a gate sees them averaged to a
    grid of 4x4, which the source leaves open:

    ```python
    from keras_branchy import OneVsRestHinge, networks

    model = networks.d_gate_resnet(blocks=(1, 1, 1, 1), width=8)  # a small sibling
    for layer in model.layers:  # after the network is trained
        layer.trainable = layer in model.branches
    hinge = OneVsRestHinge()
    model.compile("adam", loss={"exit_1": hinge, "exit_2": hinge})
    # model.fit(train)
    ```

    Args:
        num_classes: Number of classes.
        blocks: Bottleneck blocks in each of four groups; (3, 4, 6, 3) is ResNet-50.
        width: Filters of the first group's 3x3 convolutions; they double by group, and a
            block gives four times as many.
        gates: `"hinge"`, decision values whose criterion is `"distance"`; or
            `"crossentropy"`, the same linear layers with a softmax and the criterion
            `"max_probability"`, to compare with.
        backbone_only: True for the plain ResNet, without the gates.
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
        ValueError: If there are not four groups, or `gates` is neither.

    Example:

    ```python
    from keras_branchy import networks

    model = networks.d_gate_resnet(blocks=(1, 1, 1, 1), width=8)
    assert model.criteria == ["distance", "distance"]
    ```
    """
    check(blocks, gates, "(3, 4, 23, 3) is ResNet-101")
    depth = 3 * sum(blocks) + 2
    if backbone_only:
        return _resnet(num_classes, blocks, width, name or f"resnet{depth}")
    taps = [f"group{group}_block{blocks[group - 1]}_out" for group in (1, 2)]
    backbone = _resnet(num_classes, blocks, width, None)
    return with_d_gates(backbone, taps, gates, name or f"d_gate_resnet{depth}")


def _resnet(
    num_classes: int, blocks: Sequence[int], width: int, name: str | None
) -> keras.Model:
    inputs = keras.Input((32, 32, 3), name="image")
    x = _conv_norm(inputs, width, 3, 1, "stem")
    x = ReLU(name="stem_relu")(x)
    for group, count in enumerate(blocks, 1):
        for block in range(1, count + 1):
            strides = 2 if block == 1 and group > 1 else 1
            x = _bottleneck(x, width << (group - 1), strides, f"group{group}_block{block}")
    x = GlobalAveragePooling2D(name="pool")(x)
    outputs = Dense(num_classes, activation="softmax", name="fc")(x)
    return keras.Model(inputs, outputs, name=name)


def _bottleneck(x: Any, filters: int, strides: int, name: str) -> Any:
    shortcut = x
    if strides != 1 or x.shape[-1] != 4 * filters:
        shortcut = _conv_norm(x, 4 * filters, 1, strides, f"{name}_shortcut")
    x = ReLU(name=f"{name}_relu1")(_conv_norm(x, filters, 1, 1, f"{name}_1"))
    x = ReLU(name=f"{name}_relu2")(_conv_norm(x, filters, 3, strides, f"{name}_2"))
    x = _conv_norm(x, 4 * filters, 1, 1, f"{name}_3")
    return ReLU(name=f"{name}_out")(Add(name=f"{name}_add")([x, shortcut]))


def _conv_norm(x: Any, filters: int, size: int, strides: int, name: str) -> Any:
    x = convolution(x, filters, size, f"{name}_conv", strides)
    return batch_norm(x, f"{name}_bn")
