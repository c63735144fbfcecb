# SPDX-License-Identifier: Apache-2.0
"""A LeNet with linear exits on frozen features: conditional deep learning."""

from __future__ import annotations

import keras

from keras_branchy.branchy_model import BranchyModel
from keras_branchy.exit_branch import ExitBranch
from keras_branchy.networks.b_lenet import b_lenet

__all__ = ["cdl_lenet"]


def cdl_lenet(num_classes: int = 10, *, name: str | None = None) -> keras.Model:
    """Builds the LeNet of `b_lenet` with linear exits at its first two poolings.

    Conditional deep learning trains the network alone, freezes it, and then trains the
    classifiers one after another, the first one first; each keeps the trunk as it is:

    ```python
    from keras_branchy import networks

    model = networks.cdl_lenet()  # after: give it the weights of a trained LeNet
    for branch in model.branches:
        for layer in model.layers:
            layer.trainable = layer is branch
        model.compile("adam", {branch.name: "sparse_categorical_crossentropy"})
        # model.fit(train)
    ```

    The exits have 11,260 and 8,110 parameters, and cost 11,250 and 8,100
    multiply-accumulates. They decide by the largest probability.

    Source: Panda, Sengupta and Roy, "Conditional Deep Learning for Energy-Efficient and
    Enhanced Pattern Recognition" (arXiv 1509.08971).

    Args:
        num_classes: Number of classes.
        name: Name of the model.

    Input shape:
        [B, 28, 28, 1], float32 in [0, 1].

    Output shape:
        `{"exit_1": [B, num_classes], "exit_2": …, "exit_3": …}`, probabilities.

    Returns:
        A `BranchyModel`; its plain network is `b_lenet(backbone_only=True)`.

    Example:

    ```python
    from keras_branchy import networks

    model = networks.cdl_lenet()
    assert model.criteria == ["max_probability", "max_probability"]
    ```
    """
    exits = {
        tap: ExitBranch(num_classes, layers=[], criterion="max_probability")
        for tap in ("relu1", "relu2")
    }
    return BranchyModel(
        b_lenet(num_classes, backbone_only=True), exits, name=name or "cdl_lenet"
    )
