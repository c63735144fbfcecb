# SPDX-License-Identifier: Apache-2.0
"""Every exit on every sample, and calibrate as a user calls it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import exits, gates, images, residual, sequential

from keras_branchy import BranchyModel
from keras_branchy.drift import ExitDrift
from keras_branchy.outcome import outcome
from keras_branchy.scoring import all_logits


@pytest.fixture
def model(rng):
    model = BranchyModel(residual(), exits("stem", "join"))
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    return model


def softmax(logits):
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def test_logits_of_every_exit_in_the_order_of_the_data(model, rng):
    x, y = images(70, rng), rng.integers(0, 4, 70)
    logits, labels = all_logits(model, x, y, batch_size=32, verbose=0)
    np.testing.assert_array_equal(labels, y)
    for values, output in zip(logits, model.predict(x, verbose=0).values(), strict=True):
        assert values.dtype == np.float32
        np.testing.assert_allclose(softmax(values), output, rtol=1e-5, atol=1e-6)
    assert all_logits(model, x, verbose=0)[1] is None


def test_calibrate_sets_what_it_reports(model, rng):
    x = images(400, rng)
    outputs = list(model.predict(x, verbose=0).values())
    y = outputs[-1].argmax(-1)
    flipped = rng.random(400) < 0.1
    y[flipped] = rng.integers(0, 4, flipped.sum())
    report = model.calibrate(x, y, max_accuracy_drop=0.05, verbose=0)
    assert model.thresholds == report.thresholds
    answer = model.predict_early(x, verbose=0)
    # midpoints between scores: no sample may move
    shares = np.bincount(answer.exits, minlength=3) / 400
    np.testing.assert_array_equal(shares, report.shares)
    assert (answer.labels == y).mean() == pytest.approx(report.accuracy)
    assert report.accuracy >= report.last_accuracy - 0.05
    assert report.exit_costs[-1] == 1.0 and report.exit_costs[0] < report.exit_costs[1]


def test_calibrate_for_samples_to_come(model, rng):
    x = images(400, rng)
    outputs = [value.argmax(-1) for value in model.predict(x, verbose=0).values()]
    y = rng.integers(0, 4, 400)  # disagreement does not ask who is right
    asked = {"max_disagreement": 0.3, "confidence": 0.9}
    report = model.calibrate(x, y, **asked, verbose=0)
    assert report.guarantee.samples == 280 and report.guarantee.risks[0] < 0.3
    assert 0 < report.shares[2] < 1
    answer = model.predict_early(x, verbose=0)
    np.testing.assert_array_equal(answer.labels, np.choose(answer.exits, outputs))
    assert model.thresholds == report.thresholds


def test_costs_of_ones_own(model, rng):
    x = images(200, rng)
    y = answer_of_last(model, x)
    report = model.calibrate(x, y, max_cost=2.0, costs=[1.0, 2.5, 3.0], verbose=0)
    assert report.exit_costs == [1 / 3, 2.5 / 3, 1.0]
    taken = model.predict_early(x, verbose=0).exits
    assert report.cost * 3 == pytest.approx(np.take([1.0, 2.5, 3.0], taken).mean())
    assert 1.0 < report.cost * 3 <= 2.0
    with pytest.raises(ValueError, match=r"`costs` must be 3 numbers"):
        model.calibrate(x, y, max_cost=2.0, costs=[1.0, 2.5], verbose=0)


def test_broken_samples_stay_to_the_end(model, rng):
    x = images(60, rng)
    y = model.predict(x, verbose=0)["exit_3"].argmax(-1)
    x[::6] = np.nan
    said = r"NaN or infinity at 'exit_1' for 10 of 60 samples, the first at index 0\."
    with np.errstate(invalid="ignore"), pytest.warns(UserWarning, match=said):
        report = model.calibrate(x, y, exit_shares=[0.5, 0.5], verbose=0)
    answer = model.predict_early(x, verbose=0)
    np.testing.assert_array_equal(answer.exits[::6], 2)
    np.testing.assert_allclose(np.bincount(answer.exits, minlength=3) / 60, report.shares)


def test_gates_are_calibrated_on_their_decision_values(rng):
    model = BranchyModel(residual(), gates("stem", "join"))
    x = images(50, rng)
    logits, _ = all_logits(model, x, verbose=0)
    report = model.calibrate(x, logits[2].argmax(-1), exit_shares=[0.5, 0.5], verbose=0)
    largest = logits[0].max(-1)
    np.testing.assert_array_equal(
        model.predict_early(x, verbose=0).exits == 0, largest >= report.thresholds[0]
    )
    assert report.shares[0] == 0.5


def test_labels_may_be_classes_columns_or_one_hot(model, rng):
    x, y = images(40, rng), rng.integers(0, 4, 40)
    chosen = [
        model.calibrate(x, labels, exit_shares=[0.3, 0.3], verbose=0).to_json()
        for labels in (y, y[:, None], np.eye(4)[y], y.astype(np.float32))
    ]
    assert all(report == chosen[0] for report in chosen)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
    assert (
        model.calibrate(dataset, exit_shares=[0.3, 0.3], verbose=0).shares
        == (chosen[0]["point"]["shares"])
    )


def test_a_shuffled_data_set_keeps_samples_and_labels_together(model, rng):
    x = images(200, rng)
    y = model.predict(x, verbose=0)["exit_3"].argmax(-1)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(200, seed=1).batch(16)
    report = model.calibrate(dataset, max_accuracy_drop=0.0, verbose=0)
    assert report.last_accuracy == 1.0


@pytest.mark.parametrize(
    "labels, received",
    [
        (np.full((8, 3), 0.5), r"shape=\(8, 3\), dtype=float64\."),
        (np.zeros((8, 2, 1)), r"shape=\(8, 2, 1\)"),
        (np.full(8, 0.5), r"with a label 0\.5"),
        (np.full(8, np.nan), r"with a label nan"),
        (np.arange(1, 9) % 5, r"with a label 4"),  # classes from 1 on
        (np.full(8, -1), r"with a label -1"),
        (np.array(list("abcdabcd")), r"with a label a"),
    ],
)
def test_labels_that_are_no_classes(model, rng, labels, received):
    with pytest.raises(
        ValueError,
        match=rf"class indices \[B\] from 0 to 3, or one-hot rows \[B, 4\].*{received}",
    ):
        model.calibrate(images(8, rng), labels, max_accuracy_drop=0.1, verbose=0)


def test_without_labels(model, rng):
    with pytest.raises(
        ValueError, match=r"compares answers with labels. Received: ndarray"
    ):
        model.calibrate(images(8, rng), max_accuracy_drop=0.1, verbose=0)
    assert model.thresholds is None


def test_without_samples(model):
    with pytest.raises(ValueError, match=r"Received: 0 samples"):
        model.calibrate(
            np.zeros((0, 8, 8, 2)), np.zeros(0), max_accuracy_drop=0.1, verbose=0
        )


def test_a_layer_of_unknown_cost_is_named():
    class Odd(keras.layers.Layer):
        def call(self, inputs):
            return inputs * 2.0

    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(3, 3, name="conv")(inputs)
    x = keras.layers.Flatten()(Odd()(x))
    backbone = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x))
    model = BranchyModel(backbone, exits("conv"))
    x, y = images(20, np.random.default_rng(0)), np.zeros(20, int)
    with pytest.warns(UserWarning, match=r"counts stages, not multiplications:.*Odd"):
        report = model.calibrate(x, y, exit_shares=[0.5], verbose=0)
    assert report.exit_costs == [0.5, 1.0]


def test_progress_is_shown(rng, capsys):
    model = BranchyModel(sequential(), exits("conv"))
    x, y = images(64, rng), rng.integers(0, 4, 64)
    model.calibrate(x, y, exit_shares=[0.5], verbose=1)
    assert "2/2" in capsys.readouterr().out


def test_who_leaves_by_agreement_is_counted(model, rng):
    x = images(400, rng)
    y = answer_of_last(model, x)
    model.patience, model.thresholds = 2, [None, None]
    by_agreement = model.predict_early(x, verbose=0)
    assert set(by_agreement.exits) == {1, 2}
    report = model.calibrate(x, y, exit_shares=[0.3, 0.0], verbose=0)
    answer = model.predict_early(x, verbose=0)
    shares = np.bincount(answer.exits, minlength=3) / 400
    np.testing.assert_allclose(report.shares, shares)
    assert report.accuracy == (answer.labels == y).mean()
    found = outcome(model, all_logits(model, x, verbose=0)[0], y, model.thresholds)
    assert found.shares == report.shares and found.by_agreement[::2] == [0.0, 0.0]
    assert found.by_agreement[1] == report.shares[1] and report.thresholds[1] is None
    assert "exit_1  entropy < " in str(report) and "2 exits agree" in str(report)
    assert report.patience == 2 and shares[0] == 0.3 and shares[1] > 0
    counts = np.bincount(answer.exits, minlength=3).tolist()
    assert list(ExitDrift.from_report(report).calibration) == counts
    model.patience = None
    assert model.thresholds is None


def test_where_agreement_alone_loses_too_much(model, rng):
    x = images(400, rng)
    y = answer_of_last(model, x)
    model.patience, model.thresholds = 2, [None, None]
    lost = (model.predict_early(x, verbose=0).labels != y).mean()
    assert 0.05 < lost < 0.7
    said = "or set model.patience higher, or to None"
    for confidence in (None, 0.9):
        with pytest.raises(ValueError, match=said):
            model.calibrate(
                x, y, max_lost_answers=lost / 2, confidence=confidence, verbose=0
            )


def answer_of_last(model, x):
    return model.predict(x, verbose=0)["exit_3"].argmax(-1)


def test_what_is_no_better_than_guessing_is_said(model, rng):
    x = images(400, rng)
    y = answer_of_last(model, x)
    said = r"right on 0.0 % of 400 samples, no better than guessing among 4 classes"
    with pytest.warns(UserWarning, match=said):
        model.calibrate(x, (y + 1) % 4, max_accuracy_drop=0.1, verbose=0)
    model.calibrate(x, y, max_accuracy_drop=0.1, verbose=0)
    # So few may be wrong by bad luck.
    model.calibrate(x[:399], (y[:399] + 1) % 4, max_accuracy_drop=0.1, verbose=0)


def test_one_label_for_every_sample_is_no_better_than_the_most_frequent(model, rng):
    x = images(400, rng)
    frequent = np.bincount(answer_of_last(model, x)).argmax()
    x = x[answer_of_last(model, x) == frequent]
    x = np.concatenate([x, x, x, x])[:400]
    y = np.full(len(x), frequent)
    y[::2] = rng.integers(0, 4, len(y[::2]))
    share = f"{100 * (y == frequent).mean():.1f}"
    said = rf"right on {share} % of 400 samples, no better than the most frequent label"
    with pytest.warns(UserWarning, match=said):
        model.calibrate(x, y, max_accuracy_drop=0.1, verbose=0)


def test_samples_and_labels_may_come_as_a_pair(model, rng):
    x = images(60, rng)
    y = answer_of_last(model, x)
    asked = {"exit_shares": [0.3, 0.3], "verbose": 0}
    apart = model.calibrate(x, y, **asked)
    assert model.calibrate((x, y), **asked).to_json() == apart.to_json()
    with pytest.raises(ValueError) as one:
        model.fit_temperatures(x, (y + 1) % 4, verbose=0)
    with pytest.raises(ValueError) as other:
        model.fit_temperatures((x, (y + 1) % 4), verbose=0)
    assert str(one.value) == str(other.value) and "60 samples" in str(one.value)


def test_what_is_asked_for_wrongly_is_said_before_any_sample_is_scored(model):
    def batches():
        raise AssertionError("a sample was asked for")
        yield

    with pytest.raises(ValueError, match="takes exactly one target"):
        model.calibrate(batches(), verbose=0)
    with pytest.raises(ValueError, match="`max_accuracy_drop` is a fraction"):
        model.calibrate(batches(), max_accuracy_drop=-0.1, verbose=0)


def test_missing_labels_are_said_at_the_first_batch(model, rng):
    seen = []

    def batches():
        for _ in range(3):
            seen.append(1)
            yield images(4, rng)

    with pytest.raises(ValueError, match=r"`calibrate` compares answers with labels"):
        model.calibrate(batches(), max_accuracy_drop=0.1, verbose=0)
    assert len(seen) == 1


def test_points_are_no_fraction(model, rng):
    x = images(60, rng)
    y = answer_of_last(model, x)
    with pytest.warns(UserWarning, match=r"`max_accuracy_drop`=1 lets 100 of 100 answers"):
        model.calibrate(x, y, max_accuracy_drop=1, verbose=0)
    with pytest.warns(UserWarning, match=r"`max_lost_answers`=0.5 lets 50 of 100 answers"):
        model.calibrate(x, y, max_lost_answers=0.5, verbose=0)
    model.calibrate(x, y, min_accuracy=0.5, verbose=0)
    model.calibrate(x, y, max_accuracy_drop=0.49, verbose=0)
