# SPDX-License-Identifier: Apache-2.0
"""What a head and the trunk begin with alike is computed once, and only that."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_branchy import BranchyModel, ExitBranch, networks


def pool(size=2, **given):
    return layers.MaxPooling2D(size, padding="same", **given)


def squared(x):
    return x * x


def fresh_squared():
    """Another function of the same name."""

    def squared(x):
        return x * x * x

    return squared


def model(trunk, head, skip=False, second=None):
    """A convolution, an exit behind it, and how the trunk goes on."""
    inputs = keras.Input((12, 12, 2), name="image")
    tapped = x = layers.Conv2D(3, 3, padding="same", name="conv")(inputs)
    for layer in trunk:
        x = layer(x)
    if skip:
        x = layers.Concatenate(name="join")([x, tapped])
    x = layers.GlobalAveragePooling2D(name="average")(x)
    outputs = layers.Dense(4, activation="softmax", name="last")(x)
    exits = {"conv": ExitBranch(4, layers=head), **(second or {})}
    made = BranchyModel(keras.Model(inputs, outputs), exits)
    for weight in made.weights:
        weight.assign(np.random.default_rng(weight.shape[-1]).normal(size=weight.shape))
    return made


def carried(made):
    return [stage.live for stage in made.stages()]


def agree(made, rng):
    """Stages one after another say what the model says as a whole."""
    x = rng.random((5, 12, 12, 2), np.float32)
    whole, tensors = made(x), {"image": x}
    for stage in made.stages():
        done = stage(tensors)
        given = keras.ops.softmax(done.pop("logits"))
        tensors.update(done)
        np.testing.assert_allclose(given, whole[stage.exit_name], rtol=1e-5, atol=1e-6)


def test_all_that_a_head_and_the_trunk_begin_with_is_shared(rng):
    trunk = [
        pool(name="pool"),
        layers.ReLU(name="relu"),
        layers.ReLU(0.5, name="last_relu"),
    ]
    made = model(trunk, [pool(), layers.ReLU(), layers.ReLU(1.0)])
    assert carried(made) == [("relu",), ()]
    first, second = made.stages()
    kinds = [type(layer).__name__ for layer in first.model.layers]
    assert kinds.count("MaxPooling2D") == 1
    assert not any(isinstance(x, layers.MaxPooling2D) for x in second.model.layers)
    agree(made, rng)


@pytest.mark.parametrize(
    ("trunk", "head"),
    [
        ([pool(2)], [pool(3)]),
        ([pool()], [layers.AveragePooling2D(2, padding="same")]),
        ([layers.ReLU()], [layers.ReLU(max_value=1.0)]),
        ([pool()], []),
        ([pool()], [layers.ReLU(), pool()]),
        ([layers.Conv2D(3, 1)], [layers.Conv2D(3, 1)]),
        ([layers.BatchNormalization()], [layers.BatchNormalization()]),
        ([layers.Dropout(0.5)], [layers.Dropout(0.5)]),
        ([layers.Activation(squared)], [layers.Activation(fresh_squared())]),
        ([pool(dtype="mixed_bfloat16")], [pool()]),
    ],
    ids=lambda given: "+".join(type(x).__name__ for x in given) or "none",
)
def test_what_differs_or_has_a_state_is_not_shared(trunk, head, rng):
    made = model(trunk, head)
    assert carried(made) == [("conv",), ()]
    if not any(layer.dtype_policy.name == "mixed_bfloat16" for layer in trunk):
        agree(made, rng)


def test_a_function_that_is_the_same_is_shared(rng):
    made = model([layers.Activation(squared, name="square")], [layers.Activation(squared)])
    assert carried(made) == [("square",), ()]
    agree(made, rng)


def test_a_tensor_that_others_read_is_carried_as_it_is(rng):
    made = model([layers.ReLU(name="relu")], [layers.ReLU()], skip=True)
    assert carried(made) == [("conv",), ()]
    agree(made, rng)


def test_sharing_ends_where_the_next_exit_begins(rng):
    second = {"pool": ExitBranch(4, layers=[])}
    trunk = [pool(name="pool"), layers.ReLU(name="relu")]
    made = model(trunk, [pool(), layers.ReLU()], second=second)
    assert carried(made) == [("pool",), ("pool",), ()]
    agree(made, rng)


def test_a_masked_tensor_stays_where_it_is(rng):
    inputs = keras.Input((6,), dtype="int32", name="words")
    x = layers.Embedding(9, 4, mask_zero=True, name="embed")(inputs)
    x = layers.ReLU(name="relu")(x)
    x = layers.GlobalAveragePooling1D(name="average")(x)
    outputs = layers.Dense(3, activation="softmax", name="last")(x)
    head = [layers.ReLU(), layers.GlobalAveragePooling1D()]
    made = BranchyModel(keras.Model(inputs, outputs), {"embed": ExitBranch(3, head)})
    assert "embed" in made.stages()[0].live
    words = rng.integers(0, 9, (7, 6))
    made.thresholds = [0.5]
    early = made.predict_early(words, verbose=0)
    whole = made.predict(words, verbose=0)
    for row, index in enumerate(early.exits):
        expected = whole[made.exit_names[index]][row]
        np.testing.assert_allclose(early.probabilities[row], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (networks.b_lenet, [("relu1",), ()]),
        (networks.b_alexnet, [("norm2",), ("relu3",), ()]),
    ],
)
def test_published_networks_carry_what_is_pooled(build, names):
    assert carried(build()) == names
