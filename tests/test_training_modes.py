# SPDX-License-Identifier: Apache-2.0
"""The ways to train, by what moves: the lines are those of README's "Ways to train"."""

import keras
import numpy as np
import pytest
from cases import images
from keras import layers

from keras_branchy import BranchyModel, ExitBranch

CROSSENTROPY = "sparse_categorical_crossentropy"


def trunk():
    """A backbone in three parts, each with batch statistics."""
    inputs = x = keras.Input((8, 8, 2))
    for part in ("early", "middle", "late"):
        x = layers.Conv2D(3, 3, padding="same", name=part)(x)
        x = layers.BatchNormalization(name=f"{part}_norm")(x)
        x = layers.ReLU(name=f"{part}_out")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="scores")(x))


def with_exits(backbone, **options):
    taps = ("early_out", "middle_out")
    return BranchyModel(backbone, {tap: ExitBranch(4, **options) for tap in taps})


class Watch:
    """Which layers of a model move between two looks: weights, and batch statistics."""

    def __init__(self, model):
        self.model = model
        self.before = self.look()

    def look(self):
        weights = [v for layer in self.model.layers for v in layer.weights]
        return {v.path: v.numpy().copy() for v in weights}

    def moved(self):
        after = self.look()
        paths = [p for p, old in self.before.items() if not np.array_equal(old, after[p])]
        return {path.split("/")[0] for path in paths if "moving" not in path}

    def statistics_moved(self):
        after = self.look()
        return any(
            not np.array_equal(old, after[path])
            for path, old in self.before.items()
            if "moving" in path
        )


@pytest.fixture
def data(rng):
    return images(32, rng), rng.integers(0, 4, 32)


def fit(model, data, **options):
    model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY, **options)
    watch = Watch(model)
    model.fit(*data, epochs=1, batch_size=16, verbose=0)
    return watch


TRUNK = {"early", "early_norm", "middle", "middle_norm", "late", "late_norm", "scores"}
HEADS = {"exit_1", "exit_2"}


def test_joint_training_moves_everything(data):
    watch = fit(with_exits(trunk()), data)
    assert watch.moved() == TRUNK | HEADS and watch.statistics_moved()


def test_joint_gradients_are_the_weighted_sum_of_those_of_each_exit(data):
    """One SGD step of Σ wₙ·lossₙ is the sum of the steps of each loss alone."""
    factors = {"exit_1": 1.0, "exit_2": 0.5, "exit_3": 0.25}
    start = with_exits(trunk()).get_weights()
    steps = []
    for weights in (
        factors,
        *({**dict.fromkeys(factors, 0.0), n: w} for n, w in factors.items()),
    ):
        model = with_exits(trunk())
        model.set_weights(start)
        model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY, loss_weights=weights)
        model.train_on_batch(*data)
        steps.append([v.numpy() for v in model.trainable_variables])
    first = with_exits(trunk())
    first.set_weights(start)
    origin = [v.numpy() for v in first.trainable_variables]
    for at, joint, *alone in zip(origin, *steps, strict=True):
        # float32 rounding of gradients of order 0.1
        np.testing.assert_allclose(joint - at, sum(a - at for a in alone), atol=2e-6)


def test_trunk_first_then_joint(data):
    backbone = trunk()
    model = with_exits(backbone)
    backbone.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    watch = Watch(model)
    backbone.fit(*data, verbose=0)
    assert watch.moved() == TRUNK  # the model with exits shares the trunk
    assert fit(model, data).moved() == TRUNK | HEADS


def test_heads_only_on_a_frozen_trunk(data):
    backbone = trunk()
    backbone.trainable = False
    watch = fit(with_exits(backbone), data)
    assert watch.moved() == HEADS and not watch.statistics_moved()


def test_a_trunk_frozen_after_the_exits_were_added(data):
    backbone = trunk()
    model = with_exits(backbone)
    backbone.trainable = False
    watch = fit(model, data)
    assert watch.moved() == HEADS and not watch.statistics_moved()
    backbone.trainable = True
    assert fit(model, data).moved() == TRUNK | HEADS


# Keras warns of variables that nothing trains: here that is the point.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_detached_heads_beside_a_trunk_that_trains(data):
    model = with_exits(trunk(), stop_gradient=True)
    watch = fit(model, data)
    assert watch.moved() == TRUNK | HEADS
    heads_alone = with_exits(trunk(), stop_gradient=True)
    watch = fit(heads_alone, data, loss_weights=[1.0, 1.0, 0.0])
    assert watch.moved() == HEADS


def test_detached_heads_leave_the_trunk_as_it_trains_alone(data):
    backbone = trunk()
    start = backbone.get_weights()
    backbone.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    backbone.fit(*data, batch_size=16, shuffle=False, verbose=0)
    other = trunk()
    other.set_weights(start)
    model = with_exits(other, stop_gradient=True)
    model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    model.fit(*data, batch_size=16, shuffle=False, verbose=0)
    for alone, beside in zip(backbone.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(alone, beside, rtol=1e-5, atol=1e-6)


def test_heads_one_after_another(data):
    backbone = trunk()
    backbone.trainable = False
    model = with_exits(backbone)
    for branch in model.branches:
        for other in model.branches:
            other.trainable = other is branch
        assert fit(model, data).moved() == {branch.name}


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_self_distillation_teaches_the_early_exits_only(data):
    model = with_exits(trunk(), stop_gradient=True)
    watch = fit(model, data, loss_weights=[0.0, 0.0, 0.0], distillation_weight=1.0)
    assert watch.moved() == HEADS


def test_self_distillation_reaches_the_trunk_through_the_early_exits(data):
    watch = fit(
        with_exits(trunk()), data, loss_weights=[0.0, 0.0, 0.0], distillation_weight=1.0
    )
    # the last exit's own layers are the teacher, and are left alone
    assert watch.moved() == {"early", "early_norm", "middle", "middle_norm"} | HEADS
