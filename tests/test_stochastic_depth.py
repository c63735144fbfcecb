# SPDX-License-Identifier: Apache-2.0
"""StochasticDepth: what is dropped, how often, and what is left of it in inference."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_branchy.layers.stochastic_depth import survival_rates
from keras_branchy.networks import StochasticDepth

ONES = np.ones((5, 3), np.float32)


def draws(layer, count):
    """Whether the branch was kept, call by call."""

    @tf.function
    def run():
        return tf.map_fn(
            lambda _: layer(ONES, training=True)[0, 0],
            tf.zeros(count),
            parallel_iterations=1,
        )

    return run().numpy()


def test_inference_scales_by_the_survival():
    layer = StochasticDepth(0.7)
    np.testing.assert_array_equal(layer(ONES), np.float32(0.7) * ONES)
    np.testing.assert_array_equal(layer(ONES, training=None), np.float32(0.7) * ONES)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_training_keeps_as_often_as_it_says(rate):
    count = 2000
    kept = draws(StochasticDepth(rate, seed=11), count)
    assert set(kept) == {0.0, 1.0}  # unscaled, as in the source
    # Five standard deviations of the binomial: one seed in two million fails.
    assert abs(kept.sum() - count * rate) < 5 * np.sqrt(count * rate * (1 - rate))
    # Each draw anew: as many changes as two independent draws make.
    changes, expected = (kept[1:] != kept[:-1]).sum(), 2 * rate * (1 - rate)
    assert abs(changes / count - expected) < 5 * np.sqrt(expected / count)


def test_one_draw_decides_for_the_batch():
    layer, x = StochasticDepth(0.5, seed=1), np.ones((64, 2, 2, 3), np.float32)
    made = [np.unique(layer(x, training=True)) for _ in range(40)]
    assert all(len(values) == 1 for values in made)
    assert {float(values[0]) for values in made} == {0.0, 1.0}


def test_a_rate_of_1_drops_nothing():
    layer = StochasticDepth(1.0)
    assert draws(layer, 50).all()
    np.testing.assert_array_equal(layer(ONES), ONES)


def test_nothing_is_learned_from_what_was_dropped():
    layer, x = StochasticDepth(0.5, seed=2), tf.constant(ONES)
    seen = set()
    for _ in range(20):
        with tf.GradientTape() as tape:
            tape.watch(x)
            made = layer(x, training=True)
            loss = tf.reduce_sum(3 * made)
        gradient = tape.gradient(loss, x)
        kept = float(made[0, 0])
        np.testing.assert_array_equal(gradient, 3 * kept * ONES)
        seen.add(kept)
    assert seen == {0.0, 1.0}


def test_a_seed_repeats_its_draws_and_none_follows_keras():
    assert (draws(StochasticDepth(0.5, seed=5), 40) == draws(layer_of(5), 40)).all()
    assert (draws(layer_of(5), 40) != draws(layer_of(6), 40)).any()
    unseeded = []
    for _ in range(2):
        keras.utils.set_random_seed(9)
        unseeded.append(draws(StochasticDepth(0.5), 40))
    np.testing.assert_array_equal(*unseeded)


def layer_of(seed):
    config = StochasticDepth(0.5, seed=seed).get_config()
    return StochasticDepth.from_config(config)


def test_a_file_keeps_rate_and_seed(tmp_path):
    inputs = keras.Input((3,))
    layers = [StochasticDepth(0.6, seed=8), StochasticDepth(0.5)]
    model = keras.Model(inputs, [layer(inputs) for layer in layers])
    draws(layers[0], 7)
    model.save(tmp_path / "depth.keras")
    again = keras.models.load_model(tmp_path / "depth.keras").layers[1:]
    assert [(one.survival_rate, one.seed) for one in again] == [(0.6, 8), (0.5, None)]
    # As Keras' Dropout: what is loaded begins at its seed.
    afresh = draws(StochasticDepth(0.6, seed=8), 40)
    np.testing.assert_array_equal(draws(again[0], 40), afresh)


def test_survival_falls_linearly_with_depth():
    # Huang et al., equation 4: p_l = 1 - l / L (1 - p_L), l = 1 … L.
    rates = survival_rates(54, 0.5)
    np.testing.assert_allclose(rates, 1 - np.arange(1, 55) / 54 * 0.5, rtol=1e-12)
    assert rates[-1] == 0.5
    # "the expected number of blocks is reduced from 54 to about 40"
    assert round(sum(rates)) == 40
    assert survival_rates(3, 1.0) == [1.0] * 3


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01, float("nan")])
def test_other_rates_are_refused(rate):
    with pytest.raises(ValueError, match=rf"above 0 and at most 1. .*survival_rate={rate}"):
        StochasticDepth(rate)
