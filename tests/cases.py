# SPDX-License-Identifier: Apache-2.0
"""One table of small models, one for each kind of graph; every law holds for all."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_branchy import BranchyModel, ExitBranch, networks

CLASSES = 4

# Of a learned gate: bias, and weights of the largest probability, the entropy, the margin.
LEARNED = [-0.5, 1.5, -0.75, 0.5]


def coefficients(criterion):
    """What a criterion needs beside the logits."""
    return LEARNED if criterion == "learned" else None


@dataclass(frozen=True)
class Case:
    """A model by name: how it is made, and samples for it."""

    name: str
    make: Any
    samples: Any  # number of samples, generator -> arrays in the structure of the inputs
    wide: bool = True  # whether weights may be drawn wide: in a deep network all saturates


def images(count, rng):
    return rng.normal(size=(count, 8, 8, 2)).astype(np.float32)


def pictures(count, rng):
    return rng.random((count, 32, 32, 3), np.float32)


def digits(count, rng):
    return rng.random((count, 28, 28, 1), np.float32)


def tokens(count, rng):
    ids = rng.integers(1, 12, (count, 7))
    ids[np.arange(7) >= rng.integers(1, 8, count)[:, None]] = 0
    return ids.astype(np.int32)


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(3, 3, name="conv"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def linear_ending():
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(3, 3, activation="relu", name="conv")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(x)))


def softmax_layer_ending():
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(CLASSES, 3, name="conv")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Activation("softmax")(x))


def residual():
    inputs = keras.Input((8, 8, 2))
    x = skip = layers.Conv2D(3, 3, padding="same", name="stem")(inputs)
    x = layers.Conv2D(3, 3, padding="same", activation="relu", name="inside")(x)
    x = layers.Add(name="join")([layers.Conv2D(3, 3, padding="same")(x), skip])
    x = layers.Concatenate()([layers.Conv2D(3, 3, padding="same", name="late")(x), inputs])
    return keras.Model(inputs, layers.Dense(CLASSES, "softmax")(layers.Flatten()(x)))


def nested():
    inner_in = keras.Input((8, 8, 3))
    y = layers.Conv2D(3, 3, padding="same", activation="relu", name="first")(inner_in)
    y = layers.Add()([y, inner_in])
    inner = keras.Model(inner_in, layers.Conv2D(3, 3, name="second")(y), name="inner")
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(3, 1, name="first")(inputs)  # the name of a layer of `inner` too
    x = layers.GlobalAveragePooling2D()(inner(x, training=False))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def shared():
    block = layers.Conv2D(2, 3, padding="same", activation="tanh", name="block")
    inputs = keras.Input((8, 8, 2))
    x = first = block(inputs)
    x = layers.Average()([block(block(x)), first])
    return keras.Model(inputs, layers.Dense(CLASSES, "softmax")(layers.Flatten()(x)))


def masked():
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(12, 6, mask_zero=True)(inputs)
    x = layers.LSTM(5, return_sequences=True, name="lstm")(x)
    x = layers.Dense(5, activation="tanh", name="dense")(x)
    x = layers.LSTM(5, name="last")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def attention():
    """MultiHeadAttention takes the mask off what it reads, for every later reader."""
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(12, 6, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="lstm")(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, name="attention")(x, x)])
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def two_inputs():
    image, vector = keras.Input((8, 8, 2), name="image"), keras.Input((3,), name="vector")
    x = layers.Flatten()(layers.Conv2D(3, 3, activation="relu", name="conv")(image))
    x = layers.Concatenate()([layers.Dense(6, activation="relu", name="mixed")(x), vector])
    inputs = {"image": image, "vector": vector}
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def several_outputs():
    inputs = keras.Input((7, 3))
    x, state, _ = layers.LSTM(5, return_sequences=True, return_state=True)(inputs)
    x = layers.Conv1D(5, 3, padding="same", name="conv")(x)
    x = layers.Concatenate()([layers.GlobalAveragePooling1D()(x), state])
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def exits(*taps, **options):
    return {tap: ExitBranch(CLASSES, **options) for tap in taps}


def gates(*taps):
    return exits(*taps, layers=[], activation=None, criterion="distance")


def mixed_criteria():
    return {
        "stem": ExitBranch(CLASSES, criterion="margin"),
        "join": ExitBranch(CLASSES, criterion="max_probability", stop_gradient=True),
    }


def learned_criteria():
    return {
        "stem": ExitBranch(CLASSES, criterion="learned"),
        "inside": ExitBranch(CLASSES),
        "join": ExitBranch(CLASSES, criterion="learned"),
    }


MODELS = [
    Case("sequential", lambda: BranchyModel(sequential(), exits("conv")), images),
    Case("linear_ending", lambda: BranchyModel(linear_ending(), exits("conv")), images),
    Case(
        "softmax_layer", lambda: BranchyModel(softmax_layer_ending(), exits("conv")), images
    ),
    Case("residual", lambda: BranchyModel(residual(), exits("inside", "late")), images),
    Case("criteria", lambda: BranchyModel(residual(), mixed_criteria()), images),
    Case("gates", lambda: BranchyModel(residual(), gates("stem", "join")), images),
    Case(
        "patience",
        lambda: BranchyModel(residual(), exits("stem", "inside", "late"), patience=2),
        images,
    ),
    Case(
        "temperatures",
        lambda: BranchyModel(residual(), mixed_criteria(), temperatures=[2.5, 0.4, 1.7]),
        images,
    ),
    Case(
        "learned",
        lambda: BranchyModel(
            residual(), learned_criteria(), gates=[LEARNED, None, [0.1, -1.0, -2.0, 0.4]]
        ),
        images,
    ),
    Case(
        "ensemble",
        lambda: BranchyModel(residual(), exits("stem", "inside", "join"), ensemble=True),
        images,
    ),
    Case(
        "every_setting",
        lambda: BranchyModel(
            residual(),
            learned_criteria(),
            patience=3,
            ensemble=True,
            temperatures=[1.5, 0.5, 1.0, 2.0],
            gates=[LEARNED, None, [0.1, -1.0, -2.0, 0.4]],
        ),
        images,
    ),
    Case("nested", lambda: BranchyModel(nested(), exits("first", "inner/first")), images),
    Case("shared", lambda: BranchyModel(shared(), exits("block:0", "block:1")), images),
    Case("masked", lambda: BranchyModel(masked(), exits("lstm", "dense")), tokens),
    Case(
        "attention",
        lambda: BranchyModel(attention(), exits("lstm", "attention", "norm")),
        tokens,
    ),
    Case(
        "two_inputs",
        lambda: BranchyModel(two_inputs(), exits("image", "conv", "mixed")),
        lambda count, rng: {
            "image": images(count, rng),
            "vector": rng.normal(size=(count, 3)).astype(np.float32),
        },
    ),
    Case(
        "several_outputs",
        lambda: BranchyModel(several_outputs(), exits("conv")),
        lambda count, rng: rng.normal(size=(count, 7, 3)).astype(np.float32),
    ),
]

SMALL = {"num_classes": CLASSES, "blocks": (1, 1, 1, 1)}

# The published networks, which take longer.
NETWORKS = [
    Case("b_lenet", lambda: networks.b_lenet(CLASSES), digits, wide=False),
    Case("cdl_lenet", lambda: networks.cdl_lenet(CLASSES), digits, wide=False),
    Case("b_alexnet", lambda: networks.b_alexnet(CLASSES), pictures, wide=False),
    Case(
        "b_resnet",
        lambda: networks.b_resnet(8, CLASSES, stochastic_depth=0.8),
        pictures,
        wide=False,
    ),
    Case(
        "d_gate_resnet",
        lambda: networks.d_gate_resnet(**SMALL, width=4),
        pictures,
        wide=False,
    ),
    Case(
        "d_gate_densenet",
        lambda: networks.d_gate_densenet(**SMALL, growth=4, gates="crossentropy"),
        pictures,
        wide=False,
    ),
]
