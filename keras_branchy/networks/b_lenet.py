# SPDX-License-Identifier: Apache-2.0
"""B-LeNet, the one-branch LeNet of BranchyNet (arXiv 1709.01686), for MNIST."""

from __future__ import annotations

import keras
from keras.layers import (
    Conv2D,
    Dense,
    Flatten,
    MaxPooling2D,
    ReLU,
    ZeroPadding2D,
)

from keras_branchy.branchy_model import BranchyModel
from keras_branchy.exit_branch import ExitBranch

__all__ = ["b_lenet"]


def b_lenet(
    num_classes: int = 10,
    *,
    backbone_only: bool = False,
    light_exit: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds B-LeNet: a LeNet with one exit after its first convolution.

    The layers are those that the authors' code ran (kunglab/branchynet), not those of the
    paper's figure. The main path has 67,824 parameters and 1.140 M multiply-accumulates,
    the branch 6,870 parameters and 0.108 M. The first exit reads `conv1`, before its
    pooling, and its decision is the entropy of its softmax.

    Weights of the published network are channels-first, `[out, in, rows, columns]` for a
    convolution and `[out, in]` for a fully connected layer, and are set layer by layer:

    | `get_layer(…)` | shapes here | kernel here, from the published `W` |
    |---|---|---|
    | `"conv1"` | (5, 5, 1, 5), (5,) | `W.transpose(2, 3, 1, 0)` |
    | `"conv2"` | (5, 5, 5, 10), (10,) | `W.transpose(2, 3, 1, 0)` |
    | `"conv3"` | (5, 5, 10, 20), (20,) | `W.transpose(2, 3, 1, 0)` |
    | `"fc1"` | (720, 84), (84,) | `W.reshape(84, 20, 6, 6).transpose(2, 3, 1, 0).reshape(720, 84)` |
    | `"fc2"` | (84, 10), (10,) | `W.T` |
    | `"exit_1"`, weights 0 and 1 | (3, 3, 5, 10), (10,) | `W.transpose(2, 3, 1, 0)` |
    | `"exit_1"`, weights 2 and 3 | (640, 10), (10,) | `W.reshape(10, 10, 8, 8).transpose(2, 3, 1, 0).reshape(640, 10)` |

    `"fc1"` and the last layer of `"exit_1"` follow a flattening, which orders the features
    `[channels, rows, columns]` there and `[rows, columns, channels]` here. The pooling
    layers round up, as Chainer's do, and biases are taken as they are.

    `light_exit` puts another first exit under the same trunk, not the published one: it
    reads the image itself with two strided convolutions, 0.151 M multiply-accumulates, and
    nothing of the trunk is computed for an image that leaves. On a CPU, where `conv1` costs
    more than that, it is the faster one: `benchmarks/exit_costs.py` has the candidates, and
    `benchmarks/litert.py` compares the files. It shares nothing with the trunk, and may be
    trained under a plain network as it is.

    Args:
        num_classes: Number of classes.
        backbone_only: True for the plain LeNet, without the exit.
        light_exit: True for a first exit that reads the image.
        name: Name of the model.

    Input shape:
        [B, 28, 28, 1], float32 in [0, 1]: bytes divided by 255, and nothing else.

    Output shape:
        `{"exit_1": [B, num_classes], "exit_2": [B, num_classes]}`, probabilities; with
        `backbone_only`, [B, num_classes].

    Returns:
        A `BranchyModel`, or a plain functional `keras.Model` with `backbone_only`.

    Example:

    ```python
    from keras_branchy import networks

    model = networks.b_lenet()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    assert model.exit_names == ["exit_1", "exit_2"]
    ```
    """  # noqa: E501 (a table cannot be broken)
    if backbone_only:
        return _lenet(num_classes, name or "lenet")
    if light_exit:
        exits = {"image": ExitBranch(num_classes, layers=_light_branch())}
    else:
        exits = {"conv1": ExitBranch(num_classes, layers=_branch())}
    return BranchyModel(_lenet(num_classes, None), exits, name=name or "b_lenet")


def _lenet(num_classes: int, name: str | None) -> keras.Model:
    inputs = keras.Input((28, 28, 1), name="image")
    x = ZeroPadding2D(3, name="pad1")(inputs)
    x = Conv2D(5, 5, name="conv1")(x)  # [B, 30, 30, 5]
    x = MaxPooling2D(2, padding="same", name="pool1")(x)
    x = ReLU(name="relu1")(x)
    x = ZeroPadding2D(3, name="pad2")(x)
    x = Conv2D(10, 5, name="conv2")(x)  # [B, 17, 17, 10]
    x = MaxPooling2D(2, padding="same", name="pool2")(x)
    x = ReLU(name="relu2")(x)
    x = ZeroPadding2D(3, name="pad3")(x)
    x = Conv2D(20, 5, name="conv3")(x)  # [B, 11, 11, 20]
    x = MaxPooling2D(2, padding="same", name="pool3")(x)
    x = ReLU(name="relu3")(x)
    x = Flatten(name="flatten")(x)  # [B, 6, 6, 20] -> [B, 720]
    x = Dense(84, name="fc1")(x)
    outputs = Dense(num_classes, activation="softmax", name="fc2")(x)
    return keras.Model(inputs, outputs, name=name)


def _branch() -> list[keras.layers.Layer]:
    return [
        MaxPooling2D(2, padding="same", name="branch1_pool1"),  # [B, 15, 15, 5]
        ReLU(name="branch1_relu1"),
        Conv2D(10, 3, padding="same", name="branch1_conv1"),
        MaxPooling2D(2, padding="same", name="branch1_pool2"),  # [B, 8, 8, 10]
        ReLU(name="branch1_relu2"),
    ]


def _light_branch() -> list[keras.layers.Layer]:
    return [
        # [B, 7, 7, 16]
        Conv2D(16, 6, strides=4, padding="same", activation="relu", name="branch1_conv1"),
        Conv2D(32, 3, activation="relu", name="branch1_conv2"),  # [B, 5, 5, 32]
    ]
