# SPDX-License-Identifier: Apache-2.0
"""The layers that the published networks bring, against NumPy and TensorFlow."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from published import Weights, batch_norm, conv, lrn, randomize, relu, shortcut

from keras_branchy import cost
from keras_branchy.networks import (
    LocalResponseNormalization,
    ResidualBlock,
    StochasticDepth,
    ZeroPaddedShortcut,
)

MAKE = {
    "normalization": lambda **options: LocalResponseNormalization(
        2, bias=1.5, alpha=0.3, beta=0.6, **options
    ),
    "block": lambda **options: ResidualBlock(6, **options),
    "depth": lambda **options: StochasticDepth(0.7, seed=3, **options),
    "shortcut": lambda **options: ZeroPaddedShortcut(9, **options),
}
every_layer = pytest.mark.parametrize("name", list(MAKE))


@pytest.fixture
def features(rng):
    return rng.normal(size=(4, 7, 5, 6)).astype(np.float32)


def first(x):
    """Channels first, float64."""
    return np.asarray(x, np.float64).transpose(0, 3, 1, 2)


# ---- Laws ----------------------------------------------------------------------------
@every_layer
def test_a_config_makes_the_same_layer(name, features):
    layer = MAKE[name](name="own")
    layer(features)
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    again(features)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(features), layer(features))


@every_layer
def test_a_file_holds_it(name, features, tmp_path):
    inputs = keras.Input(features.shape[1:])
    model = keras.Model(inputs, MAKE[name]()(inputs))
    model.save(tmp_path / "layer.keras")
    again = keras.models.load_model(tmp_path / "layer.keras")
    np.testing.assert_array_equal(again(features), model(features))


@every_layer
def test_a_function_takes_any_batch(name, features):
    layer = MAKE[name]()
    expected = layer(features)
    spec = tf.TensorSpec([None, *features.shape[1:]], tf.float32)
    run = tf.function(layer, input_signature=[spec])
    for count in (4, 1):
        # float32, in a graph that fuses what is called one by one outside
        np.testing.assert_allclose(
            run(features[:count]), expected[:count], rtol=1e-5, atol=1e-5
        )
    assert layer.compute_output_shape((None, 7, 5, 6)) == (None, *expected.shape[1:])


@every_layer
@pytest.mark.parametrize("dtype, step", [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_half_precision_keeps_to_its_type(name, dtype, step, features):
    layer, wide = MAKE[name](dtype=f"mixed_{dtype}"), MAKE[name]()
    given = wide(features)
    made = layer(features)
    layer.set_weights(wide.get_weights())
    made = layer(features)
    assert keras.backend.standardize_dtype(made.dtype) == dtype
    assert all(weight.dtype == "float32" for weight in layer.weights)
    # A few roundings, of values up to the largest.
    np.testing.assert_allclose(
        np.asarray(made, np.float32), given, atol=4 * step * np.abs(given).max()
    )


@every_layer
def test_its_cost_is_known(name):
    inputs = keras.Input((7, 5, 6))
    macs = cost.count_macs(keras.Model(inputs, MAKE[name]()(inputs)))
    assert macs == (2 * 7 * 5 * 6 * 6 * 9 if name == "block" else 0)


# ---- LocalResponseNormalization ------------------------------------------------------
@pytest.mark.parametrize("beta", [0.5, 0.75, 1.0, 0.6])
@pytest.mark.parametrize("radius", [0, 1, 2, 9])
def test_normalization_is_the_formula(radius, beta, features):
    layer = LocalResponseNormalization(radius, bias=1.25, alpha=0.4, beta=beta)
    given = np.asarray(layer(features))
    expected = lrn(first(features), 2 * radius + 1, 1.25, 0.4, beta).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(given, expected, rtol=2e-6, atol=1e-7)  # float32
    right = tf.nn.local_response_normalization(features, radius, 1.25, 0.4, beta)
    np.testing.assert_allclose(given, right, rtol=2e-6, atol=1e-7)


def test_normalization_is_as_published_by_default(features):
    x = 200 * features  # where the sum weighs as much as the bias
    expected = lrn(first(x)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(LocalResponseNormalization()(x), expected, rtol=2e-6)


def test_normalization_works_on_vectors(features):
    rows = features[:, 0, 0]
    expected = lrn(first(rows[:, None, None]), 3, 1.0, 1.0)[:, :, 0, 0]
    layer = LocalResponseNormalization(bias=1.0, alpha=1.0)
    np.testing.assert_allclose(layer(rows), expected, rtol=2e-6)


@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_normalization_has_the_gradient_of_tensorflows(beta, features):
    x = tf.constant(features)
    layer = LocalResponseNormalization(1, bias=1.0, alpha=0.5, beta=beta)
    gradients = []
    for function in (
        layer,
        lambda x: tf.nn.local_response_normalization(x, 1, 1.0, 0.5, beta),
    ):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(function(x) ** 3)
        gradients.append(tape.gradient(loss, x))
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)  # float32


def test_normalization_survives_squares_beyond_float16():
    x = np.full((1, 2, 2, 3), 1000.0, np.float16)  # whose square is inf in float16
    made = LocalResponseNormalization(dtype="mixed_float16")(x)
    expected = lrn(first(x)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(np.asarray(made, float), expected, rtol=2**-10)


@pytest.mark.parametrize("radius", [-1, 0.5])
def test_normalization_refuses_such_a_radius(radius):
    with pytest.raises(ValueError, match=f"whole number of .* depth_radius={radius}"):
        LocalResponseNormalization(radius)


@pytest.mark.parametrize("bias, alpha", [(0.0, 1.0), (-1.0, 1.0), (1.0, -0.1)])
def test_normalization_refuses_what_may_divide_by_0(bias, alpha):
    with pytest.raises(ValueError, match=f"must be positive .* bias={bias}, alpha={alpha}"):
        LocalResponseNormalization(bias=bias, alpha=alpha)


# ---- Residual blocks -----------------------------------------------------------------
def test_a_block_is_the_formula(features, rng):
    layer = ResidualBlock(6)
    layer.build(features.shape)
    randomize(layer, rng)
    w, x = Weights(layer), first(features)
    y = relu(batch_norm(conv(x, w.conv("conv1"), 1), w.norm("bn1")))
    y = relu(batch_norm(conv(y, w.conv("conv2"), 1), w.norm("bn2")) + x)
    np.testing.assert_allclose(first(layer(features)), y, atol=1e-5)  # float32, 54 terms


def test_a_block_moves_its_statistics_in_training_only(features):
    layer = ResidualBlock(6)
    layer(features)
    before = [weight.numpy() for weight in layer.non_trainable_weights]
    layer(features, training=False)
    for weight, value in zip(layer.non_trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    layer(features, training=True)
    for weight, value in zip(layer.non_trainable_weights, before, strict=True):
        assert np.abs(weight.numpy() - value).max() > 1e-3


def test_a_block_refuses_other_channels(features):
    with pytest.raises(ValueError, match=r"number of channels that arrive.*filters=4 and"):
        ResidualBlock(4)(features)


@pytest.mark.parametrize("strides", [1, 2, 3])
def test_the_shortcut_takes_pixels_behind_zeros(strides, features):
    made = ZeroPaddedShortcut(9, strides)(features)
    expected = shortcut(first(features), 9, strides)
    np.testing.assert_array_equal(first(made), expected)


def test_the_shortcut_refuses_fewer_channels(features):
    with pytest.raises(ValueError, match=r"at least the number of channels.*filters=5 and"):
        ZeroPaddedShortcut(5)(features)
