# SPDX-License-Identifier: Apache-2.0
"""Graphs through which masks go: taps, samples, and what a lost mask would change."""

import keras
from graphs import scores, steps, tanh, tokens
from keras import layers, ops

MASKED = {}


def masked(*taps, samples=tokens):
    def register(make):
        MASKED[make.__name__] = make, taps, samples
        return make

    return register


def pairs(count, rng):
    return [tokens(count, rng), tokens(count, rng)]


def embedded(width=5):
    inputs = keras.Input((7,), dtype="int32")
    return inputs, layers.Embedding(12, width, mask_zero=True)(inputs)


def pooled(inputs, *sequences):
    x = layers.Concatenate()(sequences) if len(sequences) > 1 else sequences[0]
    return keras.Model(inputs, scores(layers.GlobalAveragePooling1D(name="pool")(x)))


def deep(x, depth):
    for _ in range(depth):
        x = layers.Dense(5, activation="tanh")(x)
    return x


@keras.saving.register_keras_serializable("tests")
class ReadsMask(layers.Layer):
    """Takes the mask off its input's attribute, which no edge of the graph shows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x):
        mask = getattr(x, "_keras_mask", None)
        return x if mask is None else x * ops.cast(mask, x.dtype)[:, :, None] + 0.5


@keras.saving.register_keras_serializable("tests")
class AddsStep(layers.Layer):
    """Has a mask of its own, one step longer than the one it is given."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x, mask=None):
        return ops.concatenate([x, x[:, :1]], 1)

    def compute_mask(self, x, previous_mask=None):
        if previous_mask is None:
            return None
        return ops.concatenate([previous_mask, previous_mask[:, :1]], 1)


class Hides(layers.Layer):
    """Embeds; the mask is on what it gives, but its graph does not know."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = layers.Embedding(12, 5, mask_zero=True)

    def build(self, shape):
        self.embedding.build(shape)

    def call(self, x):
        return self.embedding(x)


class Shows(Hides):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, x, previous_mask=None):
        return self.embedding.compute_mask(x)


def hidden_mask(layer):
    inputs = keras.Input((7,), dtype="int32")
    x = layers.LSTM(5, return_sequences=True, name="lstm")(layer(name="words")(inputs))
    return pooled(inputs, x)


@masked("words", "lstm")
def mask_of_a_custom_layer():
    return hidden_mask(Shows)


@masked("d1", "d2")
def masks_of_custom_layers():
    inputs, x = embedded()
    x = AddsStep()(tanh("d1")(x))
    return pooled(inputs, layers.GRU(4, return_sequences=True)(ReadsMask()(tanh("d2")(x))))


@masked("mask", "lstm", samples=steps)
def masking_layer():
    inputs = keras.Input((7, 3))
    quiet = ops.cast(ops.abs(inputs[:, :, :1]) > 0.7, "float32")
    x = layers.Masking(name="mask")(inputs * quiet)
    return pooled(inputs, layers.LSTM(4, return_sequences=True, name="lstm")(x))


@masked("joined", samples=pairs)
def merged_masks():
    (first, a), (second, b) = embedded(), embedded()
    x = layers.Concatenate(name="joined", axis=1)([a, b])
    x, y = layers.LSTM(4)(x), layers.LSTM(4)(layers.Multiply()([a, b]))
    return keras.Model([first, second], scores(layers.Concatenate()([x, y])))


@masked("inner/lstm", "after", samples=lambda n, rng: [steps(n, rng), tokens(n, rng) > 0])
def mask_given_to_a_nested_model():
    inputs = keras.Input((7, 3))
    x = layers.LSTM(4, return_sequences=True, name="lstm")(inputs)
    inner = keras.Model(inputs, x, name="inner")
    inputs, mask = keras.Input((7, 3)), keras.Input((7,), dtype="bool")
    x = layers.LSTM(4, return_sequences=True, name="after")(inner(inputs, mask=mask))
    return pooled([inputs, mask], x)


@masked("inner/lstm")
def mask_that_enters_a_nested_model():
    inputs = keras.Input((7, 5))
    x = layers.LSTM(4, return_sequences=True, name="lstm")(inputs)
    inner = keras.Model(inputs, layers.LSTM(4, name="last")(x), name="inner")
    inputs, x = embedded()
    return keras.Model(inputs, scores(inner(x)))


@masked("inner/d", "lstm")
def mask_that_leaves_a_nested_model():
    inputs, x = embedded()
    inner = keras.Model(inputs, tanh("d")(x), name="inner")
    inputs = keras.Input((7,), dtype="int32")
    x = layers.LSTM(4, return_sequences=True, name="lstm")(inner(inputs))
    return pooled(inputs, x)


@masked("encoded", "first", "second", samples=pairs)
def attention_to_an_encoder():
    """The first decoder layer takes the encoder's mask; later ones find none."""
    (source, x), (target, y) = embedded(6), embedded(6)
    encoded = layers.Dense(6, activation="tanh", name="encoded")(x)
    for name in ("first", "second"):
        attended = layers.MultiHeadAttention(2, 4)(y, encoded)
        y = layers.Add(name=name)([y, attended])
    y = layers.MultiHeadAttention(2, 4)(y, encoded, use_causal_mask=True)
    return pooled([source, target], y)


def reader_beside_attention(tap, attention_depth, reader_depth):
    """Of two readers of one tensor the deeper runs first; attention takes the mask."""
    inputs, x = embedded()
    x = tanh("d1")(x)
    read, attended = ReadsMask(name="read")(x), layers.MultiHeadAttention(1, 4)(x, x)
    first = deep(attended if tap == "attended" else read, 2)
    joined = layers.Add(name="tap")([first, read if tap == "attended" else x])
    ends = [deep(attended, attention_depth), deep(read, reader_depth), joined]
    return pooled(inputs, *ends)


@masked("d1", "tap")
def reader_first_in_the_model_second_in_its_stage():
    return reader_beside_attention("attended", 1, 6)


@masked("tap")
def reader_first_in_the_model_all_in_one_stage():
    return reader_beside_attention("attended", 1, 6)


@masked("tap")
def attention_first_in_the_model_in_a_later_stage():
    return reader_beside_attention("read", 8, 1)
