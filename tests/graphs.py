# SPDX-License-Identifier: Apache-2.0
"""Kinds of graph that cutting has to get right, each with its taps and its samples."""

import keras
import numpy as np
from keras import layers, ops

CLASSES = 4
KINDS = {}


def kind(*taps, samples):
    def register(make):
        KINDS[make.__name__] = make, taps, samples
        return make

    return register


def images(count, rng):
    return rng.normal(size=(count, 8, 8, 2)).astype(np.float32)


def steps(count, rng):
    return rng.normal(size=(count, 7, 3)).astype(np.float32)


def rows(count, rng):
    return rng.normal(size=(count, 6)).astype(np.float32)


def clips(count, rng):
    return rng.normal(size=(count, 3, 8, 8, 2)).astype(np.float32)


def tokens(count, rng):
    ids = rng.integers(1, 12, (count, 7))
    ids[np.arange(7) >= rng.integers(1, 8, count)[:, None]] = 0
    return ids.astype(np.int32)


def conv(name, filters=3):
    return layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)


def tanh(name):
    return layers.Dense(5, activation="tanh", name=name)


def scores(x):
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D()(x)
    return layers.Dense(CLASSES, activation="softmax")(x)


@kind("base/conv", "base/norm", samples=images)
def transfer_learning():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(conv("conv")(inputs))
    base = keras.Model(inputs, layers.Add()([x, inputs]), name="base")
    base.trainable = False
    inputs = keras.Input((8, 8, 2))
    x = base(layers.Conv2D(3, 1)(inputs), training=False)
    return keras.Model(inputs, scores(layers.Dropout(0.5)(x)))


@kind("inner:0/a", "inner:0", "inner:1/a", samples=images)
def nested_called_twice():
    inputs = keras.Input((8, 8, 3))
    inner = keras.Model(inputs, layers.Add()([conv("a")(inputs), inputs]), name="inner")
    inputs = keras.Input((8, 8, 2))
    return keras.Model(inputs, scores(inner(inner(layers.Conv2D(3, 1)(inputs)))))


@kind("outer/mid/deep/a", "outer/mid/b", samples=images)
def nested_in_nested():
    model = None
    for name, layer in (("deep", "a"), ("mid", "b"), ("outer", "c")):
        inputs = keras.Input((8, 8, 2))
        below = inputs if model is None else model(inputs)
        x = layers.Concatenate()([below, conv(layer)(below)])
        model = keras.Model(inputs, x, name=name)
    inputs = keras.Input((8, 8, 2))
    return keras.Model(inputs, scores(model(inputs)))


@kind("seq/a", "seq/inside/b", samples=images)
def nested_sequential():
    inside = keras.Sequential([conv("b"), layers.ReLU()], name="inside")
    outer = keras.Sequential([keras.Input((8, 8, 2)), conv("a"), inside], name="seq")
    inputs = keras.Input((8, 8, 2))
    return keras.Model(inputs, scores(outer(inputs)))


class Pyramid(keras.Model):
    """A functional model behind a constructor of its own, as in KerasHub."""

    def __init__(self, **kwargs):
        inputs = keras.Input((8, 8, 2))
        low = conv("low")(inputs)
        super().__init__(inputs, {"P1": low, "P2": conv("high")(low)}, **kwargs)


@kind("pyramid/low", "late", samples=images)
def functional_subclass():
    inputs = keras.Input((8, 8, 2))
    levels = Pyramid(name="pyramid")(inputs)
    x = conv("late")(layers.Concatenate()([levels["P1"], levels["P2"]]))
    return keras.Model(inputs, scores(x))


@kind("inner/d", samples=rows)
def nested_inputs_by_name():
    """Keras takes a dict by name, in the order that the nested model lists them."""
    a, b = keras.Input((6,), name="q"), keras.Input((6,), name="p")
    x = layers.Subtract()([a, layers.Dense(6)(b)])
    inner = keras.Model([a, b], tanh("d")(x), name="inner")
    inputs = keras.Input((6,))
    return keras.Model(inputs, scores(inner({"p": inputs, "q": layers.Dense(6)(inputs)})))


@kind("d", samples=rows)
def nested_half_precision():
    """The nested model's own input rounds to float16, whatever it is given."""
    inputs = keras.Input((5,), dtype="float16")
    inner = keras.Model(inputs, layers.Dense(5, dtype="float32")(inputs), name="inner")
    inputs = keras.Input((6,))
    return keras.Model(inputs, scores(inner(tanh("d")(inputs))))


@kind("conv", samples=steps)
def several_outputs():
    inputs = keras.Input((7, 3))
    x, state, cell = layers.LSTM(5, return_sequences=True, return_state=True)(inputs)
    x = layers.Conv1D(5, 3, padding="same", name="conv")(x)
    x = layers.Concatenate()([layers.GlobalAveragePooling1D()(x), state, cell])
    return keras.Model(inputs, scores(x))


@kind("c1", "c2", samples=images)
def raw_operations():
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, padding="same")(conv("c1")(inputs * 2.0 + 1.0))
    a, b = ops.split(x, 2, axis=-1)
    x = conv("c2")(ops.where(a > 0.1, a, b * 0.2)[:, 1:])
    x = ops.stack([x - ops.mean(x, axis=[1, 2], keepdims=True), b[:, 1:]], axis=1)
    return keras.Model(inputs, scores(ops.reshape(ops.max(x, axis=(2, 3)), (-1, 6))))


@keras.saving.register_keras_serializable("tests")
class Positions(layers.Layer):
    """A table with one row a step, and no batch, or a batch of one."""

    def __init__(self, leading=(), **kwargs):
        super().__init__(**kwargs)
        self.leading = tuple(leading)

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="normal", name="table")

    def call(self, x):
        return ops.reshape(ops.tanh(self.table), (*self.leading, *x.shape[1:]))

    def compute_output_shape(self, shape):
        return (*self.leading, *shape[1:])


def positioned(leading):
    inputs = keras.Input((7, 3))
    x = tanh("d1")(inputs)
    positions = Positions(leading)(x)
    x = tanh("d2")(x + positions)
    return keras.Model(inputs, scores(layers.Flatten()(tanh("d3")(x) + positions)))


@kind("d1", "d2", "d3", samples=steps)
def positions_without_batch():
    return positioned(())


@kind("d1", "d2", "d3", samples=steps)
def positions_of_batch_one():
    return positioned((1,))


@kind("d1", "d2", samples=steps)
def steps_folded_into_the_batch():
    inputs = keras.Input((7, 3))
    x = tanh("d1")(inputs)
    folded = tanh("folded")(ops.reshape(x, (-1, 5)))
    x = tanh("d2")(x) + ops.reshape(folded, (-1, 7, 5))
    return keras.Model(inputs, scores(layers.Flatten()(x)))


@kind("c1", "c2", samples=images)
def fixed_batch():
    inputs = keras.Input((8, 8, 2), batch_size=8)
    x = conv("c1")(inputs)
    return keras.Model(inputs, scores(x + conv("c2")(x)))


@kind("c1", "c2", samples=images)
def random_layers():
    inputs = keras.Input((8, 8, 2))
    x = layers.GaussianNoise(0.3)(layers.RandomFlip()(inputs))
    x = conv("c2")(layers.Dropout(0.4)(conv("c1")(x)))
    return keras.Model(inputs, scores(layers.SpatialDropout2D(0.3)(x)))


@kind("timed", "both", samples=tokens)
def wrappers_with_masks():
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(12, 5, mask_zero=True)(inputs)
    x = layers.TimeDistributed(layers.Dense(4, activation="tanh"), name="timed")(x)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(x)
    x = layers.TimeDistributed(layers.Dense(4, activation="tanh"))(x)
    return keras.Model(inputs, scores(layers.Bidirectional(layers.GRU(3))(x)))


@kind("frames", samples=clips)
def model_over_time():
    inputs = keras.Input((8, 8, 2))
    frame = keras.Model(inputs, layers.GlobalAveragePooling2D()(conv("a")(inputs)))
    inputs = keras.Input((3, 8, 8, 2))
    x = layers.TimeDistributed(frame, name="frames")(inputs)
    return keras.Model(inputs, scores(layers.LSTM(5)(x)))
