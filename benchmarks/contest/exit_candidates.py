# SPDX-License-Identifier: Apache-2.0
"""The candidates of `exit_costs.py`: taps and heads, trained together, then each alone."""

from dataclasses import dataclass

import keras
from keras import layers

from benchmarks.reproduction.training import copy_weights
from keras_branchy import BranchyModel, ExitBranch

EPOCHS = {"b_lenet": 12, "b_alexnet": 4}


def conv(filters, size, strides=1, padding="same"):
    return layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding=padding,
        activation="relu",
        kernel_initializer="he_normal",
    )


def dense(units):
    return [
        layers.Flatten(),
        layers.Dense(units, activation="relu", kernel_initializer="he_normal"),
    ]


def pool():
    return layers.MaxPooling2D(2, padding="same")


# Name: tap, and a function that makes the head's layers.
CANDIDATES = {
    "b_lenet": {
        "image_dense": ("image", lambda: dense(64)),
        "image_strided": ("image", lambda: [conv(16, 6, 4)]),
        "image_strided_dense": ("image", lambda: [conv(16, 6, 4), *dense(32)]),
        "image_two": ("image", lambda: [conv(16, 6, 4), conv(32, 3, padding="valid")]),
        "image_two_dense": (
            "image",
            lambda: [conv(16, 6, 4), conv(32, 3, padding="valid"), *dense(32)],
        ),
        "image_two_wide": (
            "image",
            lambda: [conv(32, 6, 4), conv(32, 3, padding="valid")],
        ),
        "relu1_strided": ("relu1", lambda: [conv(10, 3, 2)]),
    },
    "b_alexnet": {
        "image_two": ("image", lambda: [conv(32, 5, 2), conv(64, 3, 2)]),
        "pool1_conv_dense": ("pool1", lambda: [conv(64, 3, 2), pool(), *dense(64)]),
        "pool1_two": ("pool1", lambda: [conv(64, 3, 2), conv(64, 3, 2)]),
        "norm2_conv": ("norm2", lambda: [conv(64, 3, 2)]),
        "norm2_dense": ("norm2", lambda: dense(64)),
        "relu3_conv": ("relu3", lambda: [conv(64, 3, 2)]),
    },
}


def together(plain, tried):
    """Every candidate on one plain network: probabilities [B, candidates, classes]."""
    places = {layer.name: layer.output for layer in plain.layers}
    found = [
        ExitBranch(10, layers=make(), stop_gradient=True, name=name)(places[tap])
        for name, (tap, make) in tried.items()
    ]
    return keras.Model(plain.input, keras.ops.stack(found, 1))


def frozen(copy):
    """For `start=`: copies, and lets only the heads train."""

    def start(model):
        copy(model)
        for layer in model.layers:
            layer.trainable = isinstance(layer, ExitBranch)

    return start


@dataclass(frozen=True)
class LossOfAll:
    """The sum over the candidates, none of which sees another's gradient.

    An object for its name, which `Trainer` keeps.
    """

    def __call__(self, labels, probabilities):
        ones = keras.ops.ones_like(probabilities[..., 0], dtype="int32")
        each = keras.ops.cast(keras.ops.reshape(labels, (-1, 1)), "int32") * ones
        losses = keras.losses.sparse_categorical_crossentropy(each, probabilities)
        return keras.ops.sum(losses, -1)


def alone(recipe, plain, tap, make, branch):
    """The plain network with one of the trained candidates."""
    backbone = recipe.make(backbone_only=True)
    copy_weights(plain)(backbone)
    model = BranchyModel(backbone, {tap: ExitBranch(10, layers=make())})
    model.branches[0].set_weights(branch.get_weights())
    return model
