# SPDX-License-Identifier: Apache-2.0
"""B-AlexNet, the two-branch AlexNet of BranchyNet (arXiv 1709.01686), for CIFAR-10."""

from __future__ import annotations

from typing import Any

import keras
from keras.layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D, ReLU

from keras_branchy.branchy_model import BranchyModel
from keras_branchy.exit_branch import ExitBranch
from keras_branchy.layers import LocalResponseNormalization

__all__ = ["b_alexnet"]


def b_alexnet(
    num_classes: int = 10,
    *,
    branch1_convs: int = 2,
    backbone_only: bool = False,
    light_exits: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds B-AlexNet: an AlexNet for small images with exits at `conv2` and `conv3`.

    The layers are those that the authors' code ran (kunglab/branchynet). The main path has
    544,074 parameters and 28.25 M multiply-accumulates, the branches 32,842 and 28,970
    parameters. Both branches read a convolution before its activation, and decide by the
    entropy of their softmax. Pooling rounds up, as Chainer's does. Kernels in front of a
    ReLU start He-normal, where Chainer's have half that variance.

    `light_exits` puts other exits on the same trunk, not the published ones. Those read a
    convolution that takes half of the network's time, and pool and normalise it a second
    time; on a CPU the first costs 0.6 of the whole network. The light ones read what the
    trunk has pooled:

    | exit | tap | head | parameters | MACs, trunk and head, of the whole |
    |---|---|---|---|---|
    | 1 | `pool1` | two 3x3 convolutions to 64, strides of 2 | 65,674 | 15 % |
    | 2 | `norm2` | `Dense(64)` | 262,858 | 62 % |

    They were chosen by time: `benchmarks/exit_costs.py` has the candidates.

    The published accuracies are on CIFAR-10 that was whitened (ZCA) and then scaled image
    by image to [0, 1]; the Chainer version takes it as it is, divided by 255.

    Args:
        num_classes: Number of classes.
        branch1_convs: Convolutions in the first branch, 0 to 4; the published network has
            2, and BranchyNet's Figure 5 and the Chainer version vary it.
        backbone_only: True for the plain AlexNet, without the exits.
        light_exits: True for exits that were chosen by their time on a CPU.
        name: Name of the model.

    Input shape:
        [B, 32, 32, 3], float32 in [0, 1].

    Output shape:
        `{"exit_1": [B, num_classes], "exit_2": …, "exit_3": …}`, probabilities; with
        `backbone_only`, [B, num_classes].

    Returns:
        A `BranchyModel`, or a plain functional `keras.Model` with `backbone_only`.

    Raises:
        ValueError: If `branch1_convs` is not 0, 1, 2, 3 or 4, or is given with
            `light_exits`.

    Example:

    ```python
    from keras_branchy import networks

    model = networks.b_alexnet(branch1_convs=3)
    model.compile("adam", "sparse_categorical_crossentropy", loss_weights=[1.0, 1.0, 1.0])
    assert model.exit_names == ["exit_1", "exit_2", "exit_3"]
    ```
    """
    if branch1_convs not in range(5):
        raise ValueError(
            "`branch1_convs` must be 0, 1, 2, 3 or 4 convolutions. Received: "
            f"branch1_convs={branch1_convs!r}."
        )
    if light_exits and branch1_convs != 2:
        raise ValueError(
            "`branch1_convs` belongs to the published first branch. Received: "
            f"branch1_convs={branch1_convs} with light_exits=True. Leave one of them out."
        )
    if backbone_only:
        return _alexnet(num_classes, name or "alexnet")
    exits = (
        _light_exits(num_classes)
        if light_exits
        else {
            "conv2": ExitBranch(num_classes, layers=_branch(1, branch1_convs)),
            "conv3": ExitBranch(num_classes, layers=_branch(2, 1)),
        }
    )
    return BranchyModel(_alexnet(num_classes, None), exits, name=name or "b_alexnet")


def _alexnet(num_classes: int, name: str | None) -> keras.Model:
    inputs = keras.Input((32, 32, 3), name="image")
    x = _conv(32, 5, "conv1")(inputs)
    x = _relu_pool_norm(x, "1")  # [B, 16, 16, 32]
    x = _conv(64, 5, "conv2")(x)
    x = _relu_pool_norm(x, "2")  # [B, 8, 8, 64]
    x = _conv(96, 3, "conv3")(x)
    x = ReLU(name="relu3")(x)
    x = _conv(96, 3, "conv4")(x)
    x = ReLU(name="relu4")(x)
    x = _conv(64, 3, "conv5")(x)
    x = ReLU(name="relu5")(x)
    x = MaxPooling2D(3, 2, padding="same", name="pool5")(x)
    x = Flatten(name="flatten")(x)  # [B, 4, 4, 64] -> [B, 1024]
    for index, units in ((1, 256), (2, 128)):
        x = Dense(units, kernel_initializer="he_normal", name=f"fc{index}")(x)
        x = ReLU(name=f"fc{index}_relu")(x)
        x = Dropout(0.5, name=f"drop{index}")(x)
    outputs = Dense(num_classes, activation="softmax", name="fc3")(x)
    return keras.Model(inputs, outputs, name=name)


def _relu_pool_norm(x: Any, suffix: str) -> Any:
    for layer in _head(suffix):
        x = layer(x)
    return x


def _head(suffix: str) -> list[keras.layers.Layer]:
    return [
        ReLU(name=f"relu{suffix}"),
        MaxPooling2D(3, 2, padding="same", name=f"pool{suffix}"),
        LocalResponseNormalization(name=f"norm{suffix}"),
    ]


def _conv(filters: int, size: int, name: str, strides: int = 1) -> Conv2D:
    return Conv2D(
        filters,
        size,
        strides,
        padding="same",
        kernel_initializer="he_normal",
        name=name,
    )


def _branch(index: int, convs: int) -> list[keras.layers.Layer]:
    """What stands before the logits: as published 512 features in branch 1, 128 in 2."""
    layers = _head(f"_branch{index}")
    for number in range(1, convs + 1):
        layers += [
            _conv(32, 3, f"branch{index}_conv{number}"),
            ReLU(name=f"branch{index}_relu{number}"),
        ]
    return [*layers, MaxPooling2D(3, 2, padding="same", name=f"branch{index}_pool")]


def _light_exits(num_classes: int) -> dict[str, ExitBranch]:
    convolved = [
        _conv(64, 3, "branch1_conv1", strides=2),  # [B, 8, 8, 64]
        ReLU(name="branch1_relu1"),
        _conv(64, 3, "branch1_conv2", strides=2),  # [B, 4, 4, 64]
        ReLU(name="branch1_relu2"),
    ]
    dense = [
        Flatten(name="branch2_flatten"),  # [B, 8, 8, 64] -> [B, 4096]
        Dense(64, kernel_initializer="he_normal", name="branch2_fc"),
        ReLU(name="branch2_relu"),
    ]
    return {
        "pool1": ExitBranch(num_classes, layers=convolved),
        "norm2": ExitBranch(num_classes, layers=dense),
    }
