# SPDX-License-Identifier: Apache-2.0
"""How a backbone ends; test_attach has what is made of it."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import layers

from keras_branchy.last_exit import LinearCall, find_ending

FEATURES = keras.Input((6,), name="features")
SCORES = layers.Dense(4, name="scores")(FEATURES)


@pytest.mark.parametrize(
    "end",
    [
        layers.Softmax(),
        layers.Softmax(axis=1),
        layers.Activation("softmax"),
        layers.Activation(keras.activations.softmax, dtype="float32"),
        keras.ops.softmax,
        lambda x: layers.Identity()(layers.Softmax()(x)),
        lambda x: layers.Activation("linear")(layers.Identity()(layers.Softmax()(x))),
    ],
)
def test_a_softmax_by_itself_gives_away_its_logits(end):
    ending = find_ending(end(SCORES))
    assert ending.source is SCORES and ending.softmax and ending.peeled is None


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dense(4, activation="softmax"),
        layers.Dense(4, activation=keras.activations.softmax),
        layers.EinsumDense("ab,bc->ac", 4, activation="softmax"),
    ],
)
def test_a_softmax_inside_a_layer_is_to_be_peeled(layer):
    for after in (lambda x: x, layers.Identity(), layers.Activation("linear")):
        ending = find_ending(after(layer(FEATURES)))
        assert ending.source is FEATURES and ending.softmax
        assert ending.peeled is layer


@pytest.mark.parametrize(
    "layer", [layers.Dense(4), layers.EinsumDense("ab,bc->ac", 4, activation="linear")]
)
def test_a_linear_end_is_logits(layer):
    logits = layer(FEATURES)
    for after in (lambda x: x, layers.Identity(), layers.Activation("linear")):
        ending = find_ending(after(logits))
        assert ending.source is logits
        assert not ending.softmax and ending.peeled is None


def test_only_the_last_of_two_softmaxes_counts():
    once = layers.Softmax()(SCORES)
    assert find_ending(layers.Softmax()(once)).source is once


@pytest.mark.parametrize(
    "end",
    [
        layers.ReLU(),
        layers.Dense(4, activation="relu"),
        layers.Dense(4, activation="log_softmax"),
        layers.Activation("log_softmax"),
        layers.Activation(lambda x: keras.activations.softmax(x)),
        layers.Lambda(keras.activations.softmax),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.Softmax(axis=0),  # over the batch
        lambda x: layers.Average()([layers.Softmax()(x), layers.Softmax()(x)]),
        lambda x: 2.0 * x,
    ],
)
def test_other_ends_are_not_guessed(end):
    assert find_ending(end(SCORES)) is None


@pytest.mark.parametrize(
    "end, message",
    [
        (layers.Dense(4, "sigmoid", name="tags"), r"ends in a sigmoid, 'tags', which"),
        (layers.Activation("sigmoid", name="tags"), r"ends in a sigmoid, 'tags'"),
        (keras.ops.sigmoid, r"softmax over classes, or in logits. Received.*a sigmoid"),
        (keras.ops.log_sigmoid, r"ends in a sigmoid"),
        (
            lambda x: layers.Identity()(layers.Dense(4, "sigmoid", name="tags")(x)),
            r"ends in a sigmoid, 'tags'",
        ),
        (
            layers.Dense(1, name="yes"),
            r"at least two classes. Received.*\(None, 1\), from 'yes'.*Dense\(2",
        ),
        (layers.RepeatVector(3), r"not for each place of a sequence: end the backbone"),
        (
            layers.Reshape((2, 2, 1), name="map"),
            r"\(None, 2, 2, 1\) from 'map'.*each place of a spatial map: end.*pooling",
        ),
        (layers.Reshape((1, 2, 2, 1)), r"not for each place of a tensor"),
        (
            lambda x: layers.Reshape(())(layers.Dense(1)(x)),
            r"one row of class scores per sample, \[batch, classes\]",
        ),
    ],
)
def test_ends_that_are_no_scores_over_classes(end, message):
    with pytest.raises(ValueError, match=message):
        find_ending(end(SCORES))


def test_an_unknown_number_of_classes():
    with pytest.raises(ValueError, match=r"with a known number of classes.*Dense\(classes"):
        find_ending(keras.ops.softmax(keras.Input((None,))))


@pytest.fixture
def softmax_layer():
    layer = layers.Dense(4, activation="softmax", name="scores")
    layer.build((None, 6))
    return layer


def test_a_linear_call_is_the_layer_before_its_softmax(softmax_layer, rng):
    call = LinearCall(softmax_layer)
    x = rng.normal(size=(5, 6)).astype(np.float32)
    kernel, bias = softmax_layer.get_weights()
    # float32 sums of six terms
    np.testing.assert_allclose(call(x), x @ kernel + bias, rtol=1e-5, atol=1e-6)
    assert call.name == "scores_logits" and call.dtype_policy == softmax_layer.dtype_policy
    assert [id(w) for w in call.weights] == [id(w) for w in softmax_layer.weights]
    np.testing.assert_allclose(softmax_layer(x).numpy().sum(-1), 1, rtol=1e-6)


def test_the_softmax_comes_back_after_an_error(softmax_layer):
    with pytest.raises(ValueError, match="incompatible with the layer"):
        LinearCall(softmax_layer)(np.ones((5, 7), np.float32))
    assert softmax_layer.activation is keras.activations.softmax


def test_linear_calls_in_several_threads(softmax_layer, rng):
    x = rng.normal(size=(5, 6)).astype(np.float32)
    calls = [LinearCall(softmax_layer) for _ in range(8)]
    want = calls[0](x).numpy()
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda index: calls[index % 8](x).numpy(), range(200)):
            np.testing.assert_array_equal(got, want)
    assert softmax_layer.activation is keras.activations.softmax
