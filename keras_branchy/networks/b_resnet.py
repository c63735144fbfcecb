# SPDX-License-Identifier: Apache-2.0
"""B-ResNet, the two-branch ResNet of BranchyNet (arXiv 1709.01686), for CIFAR-10."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
from keras.layers import AveragePooling2D, Conv2D, Dense, Flatten, ReLU

from keras_branchy.branchy_model import BranchyModel
from keras_branchy.exit_branch import ExitBranch
from keras_branchy.layers import LocalResponseNormalization, ResidualBlock
from keras_branchy.layers.residual_block import batch_norm
from keras_branchy.layers.stochastic_depth import survival_rates
from keras_branchy.networks.residual_block import residual_block

__all__ = ["b_resnet"]

GROUPS = ((16, 1), (32, 2), (64, 2))  # filters, and strides of the first block
VARIANTS = ("branchynet", "chainer")


def b_resnet(
    depth: int = 110,
    num_classes: int = 10,
    *,
    variant: str = "branchynet",
    stochastic_depth: float | None = None,
    backbone_only: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds B-ResNet: a ResNet for small images with two exits.

    Three groups of residual blocks, of 16, 32 and 64 filters, on shortcuts without
    parameters. There are two published variants:

    | | `"branchynet"`, the authors' | `"chainer"`, BranchyNet_chainer |
    |---|---|---|
    | first convolution | no padding, 30x30 | padded, 32x32 |
    | exit 1 reads | its activation | the first group |
    | exit 1 | 5x5x64, normalization, two of 3x3x32 | a block of 16 |
    | exit 2 reads | the first group | the second group |
    | exit 2 | a block of 16 | 3x3x32 |

    With depth 110 the trunk has 1,745,226 parameters in both. The authors' has 232.4 M
    multiply-accumulates, and exit 1 a head of 48.2 M on a trunk of 0.4 M: an image that
    leaves there has cost a fifth of the whole. The Chainer version has 252.9 M; what it
    calls ResNet-110 runs with a depth of 20.

    Args:
        depth: Layers, 6n + 2: 20, 32, 44, 56 or 110 are usual.
        num_classes: Number of classes.
        variant: `"branchynet"` or `"chainer"`.
        stochastic_depth: Survival of the last block in training, such as 0.5; earlier
            blocks survive more often, see `StochasticDepth`. None keeps all.
        backbone_only: True for the plain ResNet, without the exits.
        name: Name of the model.

    Input shape:
        [B, 32, 32, 3], float32 in [0, 1].

    Output shape:
        `{"exit_1": [B, num_classes], "exit_2": …, "exit_3": …}`, probabilities; with
        `backbone_only`, [B, num_classes].

    Returns:
        A `BranchyModel`, or a plain functional `keras.Model` with `backbone_only`.

    Raises:
        ValueError: If there is no ResNet of this depth, no such variant, or
            `stochastic_depth` is no probability.

    Example:

    ```python
    from keras_branchy import networks

    model = networks.b_resnet(20, stochastic_depth=0.5)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    assert model.exit_names == ["exit_1", "exit_2", "exit_3"]
    ```
    """
    if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
        raise ValueError(
            "`depth` must be 6n + 2 layers, n blocks in each of three groups: 20, 32, 44, "
            f"56, 110. Received: depth={depth!r}."
        )
    if variant not in VARIANTS:
        raise ValueError(
            "`variant` must be 'branchynet', the authors', or 'chainer', that of "
            f"BranchyNet_chainer. Received: variant={variant!r}."
        )
    blocks = (depth - 2) // 6
    survival = _survival(blocks, stochastic_depth)
    if backbone_only:
        return _resnet(blocks, num_classes, variant, survival, name or f"resnet{depth}")
    exits = (_authors_exits if variant == "branchynet" else _chainer_exits)(
        blocks, num_classes
    )
    backbone = _resnet(blocks, num_classes, variant, survival, None)
    return BranchyModel(backbone, exits, name=name or f"b_resnet{depth}")


def _survival(blocks: int, last: float | None) -> Iterator[float | None]:
    total = blocks * len(GROUPS)
    return iter([None] * total if last is None else survival_rates(total, last))


def _resnet(
    blocks: int,
    num_classes: int,
    variant: str,
    survival: Iterator[float | None],
    name: str | None,
) -> keras.Model:
    inputs = keras.Input((32, 32, 3), name="image")
    padding = "valid" if variant == "branchynet" else "same"
    x = _conv(16, 3, "conv1", padding)(inputs)
    x = batch_norm("bn1")(x)
    x = ReLU(name="relu1")(x)
    for group, (filters, strides) in enumerate(GROUPS, 1):
        for block in range(1, blocks + 1):
            x = residual_block(
                x,
                filters,
                f"group{group}_block{block}",
                strides if block == 1 else 1,
                next(survival),
            )
    x = AveragePooling2D(6, 1, name="pool")(x)  # [B, 8, 8, 64] -> [B, 3, 3, 64]
    x = Flatten(name="flatten")(x)
    outputs = Dense(num_classes, activation="softmax", name="fc")(x)
    return keras.Model(inputs, outputs, name=name)


def _authors_exits(blocks: int, num_classes: int) -> dict[str, ExitBranch]:
    first: list[Any] = [
        _conv(64, 5, "branch1_conv1"),
        ReLU(name="branch1_relu1"),
        LocalResponseNormalization(name="branch1_norm"),
        _conv(32, 3, "branch1_conv2"),
        ReLU(name="branch1_relu2"),
        _conv(32, 3, "branch1_conv3"),
        ReLU(name="branch1_relu3"),
    ]
    second: list[Any] = [ResidualBlock(16, name="branch2_block")]
    return {
        "relu1": ExitBranch(num_classes, layers=first),
        f"group1_block{blocks}_out": ExitBranch(num_classes, layers=second),
    }


def _chainer_exits(blocks: int, num_classes: int) -> dict[str, ExitBranch]:
    first: list[Any] = [ResidualBlock(16, name="branch1_block")]
    second: list[Any] = [_conv(32, 3, "branch2_conv"), ReLU(name="branch2_relu")]
    return {
        f"group1_block{blocks}_out": ExitBranch(num_classes, layers=first),
        f"group2_block{blocks}_out": ExitBranch(num_classes, layers=second),
    }


def _conv(filters: int, size: int, name: str, padding: str = "same") -> Conv2D:
    return Conv2D(filters, size, padding=padding, kernel_initializer="he_normal", name=name)
