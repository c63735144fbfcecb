# SPDX-License-Identifier: Apache-2.0
"""ExitBranch by itself; the laws over whole models are in test_conformance."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_branchy import ExitBranch


@pytest.mark.parametrize(
    "shape, features",
    [
        ((7,), 7),
        ((9, 6), 6),  # averaged over time
        ((16, 16, 5), 4 * 4 * 5),  # few channels keep a 4x4 grid
        ((16, 16, 64), 4 * 4 * 64),
        ((16, 16, 65), 2 * 2 * 65),
        ((16, 16, 256), 2 * 2 * 256),
        ((16, 16, 257), 257),  # averaged
        ((3, 3, 5), 2 * 2 * 5),  # smaller than 4x4
        ((1, 1, 5), 5),
        ((None, None, 5), 5),
        ((4, 4, 4, 3), 3),
    ],
)
def test_the_default_head_fits_the_features(shape, features):
    branch = ExitBranch(3)
    branch.build((None, *shape))
    assert branch.count_params() == (features + 1) * 3
    x = np.ones((2, *(size or 8 for size in shape)), np.float32)
    np.testing.assert_allclose(branch(x).numpy().sum(-1), [1, 1], rtol=1e-6)


def test_the_default_head_finds_the_grid_where_channels_come_first():
    keras.config.set_image_data_format("channels_first")
    try:
        branch = ExitBranch(3)
        branch.build((None, 65, 16, 12))
    finally:
        keras.config.set_image_data_format("channels_last")
    assert branch.count_params() == (2 * 2 * 65 + 1) * 3
    assert branch.head[0].pool_size == (8, 6)


def test_no_default_head():
    with pytest.raises(
        ValueError, match=r"No default head fits.*Pass the head as `layers=\["
    ):
        ExitBranch(3).build((None, 2, 2, 2, 2, 2))


def test_a_linear_head_flattens(rng):
    branch = ExitBranch(3, layers=[], activation=None)
    x = rng.normal(size=(5, 4, 4, 2)).astype(np.float32)
    got = branch(x).numpy()
    kernel, bias = branch.get_weights()
    # a float32 sum of 32 terms
    np.testing.assert_allclose(got, x.reshape(5, 32) @ kernel + bias, rtol=1e-5, atol=1e-6)


def test_given_layers_come_first(rng):
    branch = ExitBranch(3, layers=[layers.ReLU(), layers.GlobalMaxPooling2D()])
    x = rng.normal(size=(5, 4, 4, 2)).astype(np.float32)
    kernel, bias = (branch(x), branch.get_weights())[1]
    logits = np.maximum(x, 0).max((1, 2)) @ kernel + bias
    want = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(branch(x), want, rtol=1e-5)


def test_features_of_unknown_number():
    with pytest.raises(ValueError, match=r"known number of features.*global pooling layer"):
        ExitBranch(3, layers=[]).build((None, None, None, 4))


def described(branch):
    """The config; Keras adds the shape that a given layer was built for."""
    config = branch.get_config()
    for layer in config["layers"] or []:
        layer.pop("build_config", None)
    return config


@pytest.mark.parametrize("make", [dict, lambda: {"layers": [layers.Conv2D(2, 3)]}])
def test_config_is_the_same_before_and_after_building(make):
    branch = ExitBranch(3, criterion="margin", stop_gradient=True, **make())
    before = branch.get_config()
    branch.build((None, 8, 8, 2))
    assert described(branch) == before
    again = ExitBranch.from_config(branch.get_config())
    again.build((None, 8, 8, 2))
    assert described(again) == before
    assert [w.shape for w in again.weights] == [w.shape for w in branch.weights]


def test_a_config_needs_no_more_than_the_units():
    branch = ExitBranch.from_config({"units": 3})
    assert (branch.activation, branch.criterion) == ("softmax", "entropy")
    assert branch.head is None and not branch.stop_gradient


def test_numpy_integers_are_units():
    units = ExitBranch(np.int64(3)).get_config()["units"]
    assert units == 3 and type(units) is int


def test_a_rebuilt_branch_with_the_same_weights_answers_alike(rng):
    branch = ExitBranch(3, layers=[layers.Conv2D(2, 3), layers.BatchNormalization()])
    x = rng.normal(size=(5, 8, 8, 2)).astype(np.float32)
    want = branch(x)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(branch)
    )
    assert again.built
    again.set_weights(branch.get_weights())
    np.testing.assert_array_equal(again(x), want)


def test_a_head_trains_as_keras_layers_do(rng):
    branch = ExitBranch(3, layers=[layers.Dropout(0.9)], activation=None)
    x = rng.normal(size=(5, 6)).astype(np.float32)
    want = branch(x)
    np.testing.assert_array_equal(branch(x, training=False), want)
    assert not np.allclose(branch(x, training=True), want)


@pytest.mark.parametrize("head", [None, [], "dense"])
def test_a_half_precision_branch_answers_in_float32(head, rng):
    given = [layers.Dense(4, dtype="mixed_float16")] if head else head
    branch = ExitBranch(3, given, dtype="mixed_float16")
    x = 30 * rng.normal(size=(64, 9, 6)).astype(np.float32)
    got = branch(x)
    assert got.dtype == "float32" and branch.compute_dtype == "float16"
    # A softmax in float16 is off by 5e-4, and its rows do not sum to 1 so closely.
    np.testing.assert_allclose(np.sum(got, -1), 1, rtol=1e-6)
    assert len(np.unique(got)) > 64
    symbolic = branch(keras.Input((9, 6)))
    assert symbolic.dtype == "float32" and symbolic.shape == (None, 3)


def test_half_precision_features_give_float32_logits(rng):
    branch = ExitBranch(3, layers=[layers.Dense(4, dtype="mixed_float16")], activation=None)
    x = rng.normal(size=(4, 6)).astype(np.float16)
    got = branch(x)
    assert got.dtype == "float32"
    assert branch.classifier.compute_dtype == "float32"


# Keras warns of variables that nothing trains: here that is the point.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("detached", [True, False])
def test_stop_gradient_keeps_the_error_out_of_the_trunk(detached, rng):
    inputs = keras.Input((6,))
    trunk = layers.Dense(5, name="trunk")
    head = ExitBranch(3, stop_gradient=detached)
    model = keras.Model(inputs, head(trunk(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = [w.numpy().copy() for w in (*trunk.weights, *head.weights)]
    model.train_on_batch(rng.normal(size=(8, 6)), rng.integers(0, 3, 8))
    moved = [
        not np.array_equal(old, new)
        for old, new in zip(before, (*trunk.weights, *head.weights), strict=True)
    ]
    assert moved == [not detached, not detached, True, True]


@pytest.mark.parametrize("detached", [True, False])
def test_padded_steps_do_not_count(detached, rng):
    branch = ExitBranch(3, activation=None, stop_gradient=detached)
    x = layers.Embedding(9, 4, mask_zero=True)(np.array([[5, 2, 0, 0], [1, 1, 3, 0]]))
    got = branch(x).numpy()
    kernel, bias = branch.get_weights()
    values = x.numpy()
    pooled = np.stack([values[0, :2].mean(0), values[1, :3].mean(0)])
    np.testing.assert_allclose(got, pooled @ kernel + bias, rtol=1e-5, atol=1e-6)
    assert getattr(branch(x), "_keras_mask", None) is None


def test_a_given_head_sees_the_mask(rng):
    branch = ExitBranch(3, layers=[layers.LSTM(4)], activation=None)
    embed = layers.Embedding(9, 4, mask_zero=True)
    got = branch(embed(np.array([[5, 2, 7, 0, 0]])))
    want = branch(embed(np.array([[5, 2, 7]])))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention_first", [True, False])
def test_padded_steps_do_not_count_beside_attention_on_the_same_tensor(attention_first):
    """MultiHeadAttention takes the mask off the tensor that both read."""
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(inputs)
    branch, attention = ExitBranch(3), layers.MultiHeadAttention(2, 4)
    if attention_first:
        attended, answer = attention(x, x), branch(x)
    else:
        answer, attended = branch(x), attention(x, x)
    model = keras.Model(inputs, [answer, attended])
    padded = np.array([[5, 2, 7, 0, 0], [1, 1, 3, 0, 0]])
    # predict traces the model; called, it runs operation by operation.
    for run in (lambda ids: model.predict(ids, verbose=0), model):
        got, want = run(padded)[0], run(padded[:, :3])[0]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"units": 1}, r"at least 2. Received: units=1. For a yes-or-no answer"),
        ({"units": 2.0}, r"Received: units=2.0"),
        ({"units": True}, r"Received: units=True"),
        ({"units": None}, r"the number of classes, an integer.*units=None"),
        ({"activation": "sigmoid"}, r"'softmax', or None.*Received: activation='sigmoid'"),
        ({"criterion": "gut"}, r"Unknown criterion 'gut'"),
        ({"layers": layers.ReLU()}, r"`layers` must be a list of Keras layers"),
        ({"layers": [3]}, r"`layers` must be a list of Keras layers"),
        (
            {"layers": [layers.ReLU(name="a"), layers.ReLU(name="a")]},
            r"\['a', 'a'\], with \['a'\] more than once",
        ),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ExitBranch(**{"units": 3, **options})
