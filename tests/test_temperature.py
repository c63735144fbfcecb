# SPDX-License-Identifier: Apache-2.0
"""Temperatures: the best one by search, what they do to stages, and what is refused."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import exits, gates, images, residual
from exports import exported
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_branchy import BranchyModel, StageRunner
from keras_branchy.scoring import all_logits
from keras_branchy.temperature import (
    TemperatureReport,
    calibration_error,
    check_temperatures,
    fit_temperature,
    negative_log_likelihood,
)


def likelihood(logits, labels, temperature):
    """The mean negative log-likelihood, by sums of logarithms."""
    z = np.asarray(logits, np.float64) / temperature
    own = z[np.arange(len(z)), labels]
    return math.fsum(np.logaddexp.reduce(z, axis=-1) - own) / len(z)


def searched(logits, labels, low=1e-4, high=1e4):
    """The best temperature by golden section of its logarithm."""
    low, high, ratio = math.log(low), math.log(high), (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        one, other = high - ratio * (high - low), low + ratio * (high - low)
        if likelihood(logits, labels, math.exp(one)) < likelihood(
            logits, labels, math.exp(other)
        ):
            high = other
        else:
            low = one
    return math.exp((low + high) / 2)


def drawn(rng, count, classes, scale, temperature):
    """Logits, and labels that are drawn from softmax(logits / temperature)."""
    logits = rng.normal(0, scale, (count, classes))
    z = logits / temperature
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return logits, (p.cumsum(-1) > rng.random((count, 1))).argmax(-1)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(20, 60),
    classes=st.integers(2, 8),
    scale=st.floats(0.5, 4),
    temperature=st.floats(0.3, 4),
)
def test_it_is_the_one_that_a_search_finds(seed, count, classes, scale, temperature):
    rng = np.random.default_rng(seed)
    logits, labels = drawn(rng, count, classes, scale, temperature)
    try:
        found = fit_temperature(logits, labels)
    except ValueError:
        labels[: count // 2] = logits[: count // 2].argmax(-1)
        labels[-1] = logits[-1].argmin()
        labels[0] = (labels[-1] + 1) % classes
        found = fit_temperature(logits, labels)
    # the likelihood is flat at its top: half of float64's digits are in it
    assert found == pytest.approx(searched(logits, labels), rel=1e-5)


def test_it_finds_the_temperature_that_labels_were_drawn_at(rng):
    for temperature in (0.25, 1.0, 3.0):
        logits, labels = drawn(rng, 40_000, 10, 3 * temperature, temperature)
        # the standard error is about 1 % of it at 40,000 samples
        assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_it_scales_with_the_logits(rng, scale):
    logits, labels = drawn(rng, 400, 5, 2.0, 1.0)
    once = fit_temperature(logits, labels)
    assert fit_temperature(logits * scale + 7 * scale, labels) == pytest.approx(
        once * scale, rel=1e-6
    )


def test_classes_that_are_ruled_out_count_as_absent(rng):
    logits, labels = drawn(rng, 300, 4, 2.0, 1.5)
    wider = np.concatenate([logits, np.full((300, 2), -np.inf)], -1)
    assert fit_temperature(wider, labels) == pytest.approx(fit_temperature(logits, labels))


def test_many_classes_are_taken_in_parts(rng, monkeypatch):
    logits, labels = drawn(rng, 333, 5, 2.0, 1.5)
    whole = (
        fit_temperature(logits, labels),
        negative_log_likelihood(logits, labels, 2.0),
        calibration_error(logits, labels, 2.0),
    )
    monkeypatch.setattr("keras_branchy.temperature.CHUNK", 60)
    parts = (
        fit_temperature(logits, labels),
        negative_log_likelihood(logits, labels, 2.0),
        calibration_error(logits, labels, 2.0),
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-12)  # sums in another order


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_likelihood_and_calibration_error_are_their_definitions(rng, temperature):
    logits, labels = drawn(rng, 500, 4, 2.0, 1.0)
    got = negative_log_likelihood(logits, labels, temperature)
    assert got == pytest.approx(likelihood(logits, labels, temperature), rel=1e-12)
    z = logits / temperature
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    error = 0.0
    for low in range(15):
        inside = (p.max(-1) > low / 15) & (p.max(-1) <= (low + 1) / 15)
        if inside.any():
            right = (p.argmax(-1) == labels)[inside].mean()
            error += inside.mean() * abs(right - p.max(-1)[inside].mean())
    assert calibration_error(logits, labels, temperature) == pytest.approx(error)


SURE = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])

REFUSED = [
    (np.zeros((0, 3)), [], r"logits of shape \(0, 3\), labels of shape \(0,\). Pass held-"),
    (SURE, [0, 1], r"logits of shape \(3, 2\), labels of shape \(2,\)"),
    (np.where(SURE > 3, np.nan, SURE), [0, 1, 0], "NaN or infinite ones in 3 of 3"),
    (np.where(SURE > 3, np.inf, SURE), [0, 1, 0], "first in number 0. Leave these"),
    (np.where(SURE > 3, -np.inf, SURE), [1, 1, 0], "infinite ones in 2 of 3"),
    (SURE, [1, 1, 1], "several classes. Received: 3 samples, all of class 1. Pass held"),
    (SURE, [0, 1, 0], "right on all 3 samples, and the sharper.*Pass more held-out"),
    (SURE, [1, 0, 1], "no more of the labels than chance. Received: 3 samples.*Check that"),
    (np.ones((4, 2)), [0, 1, 1, 0], "right on all 4 samples"),  # every logit is a largest
]


@pytest.mark.parametrize("logits, labels, said", REFUSED)
def test_what_has_no_best_temperature_is_refused(logits, labels, said):
    with pytest.raises(ValueError, match=said):
        fit_temperature(np.asarray(logits), np.asarray(labels, int))


WRONG = [
    (2.0, "must be a list in exit order. Received: temperatures=2.0. Expected 3 floats"),
    ({1.0, 2.0, 3.0}, "must be a list in exit order"),
    ([[1.0, 1.0, 1.0]], "must be a list in exit order"),
    ([1.0, 1.0], "the last included. Received: 2 entries. Expected 3, for"),
    ([1.0, 0.0, 1.0], r"between 1e-06 and 1e\+06. Received: \[1.0, 0.0, 1.0\]. 1 leaves"),
    ([1.0, float("nan"), 1.0], r"Received: \[1.0, nan, 1.0\]"),
    ([1.0, -2.0, 1.0], r"Received: \[1.0, -2.0, 1.0\]"),
    ([1.0, None, 1.0], "holds floats. Received: None in it. Use 1.0"),
]


@pytest.mark.parametrize("temperatures, said", WRONG)
def test_temperatures_are_checked(temperatures, said):
    with pytest.raises(ValueError, match=said):
        check_temperatures(temperatures, ["exit_1", "exit_2", "exit_3"])


@pytest.fixture
def model(rng):
    model = BranchyModel(residual(), exits("stem", "join"))
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.6, weight.shape))
    return model


def labelled(model, rng, count=300):
    """Images, and labels drawn from what the exits say together."""
    x = images(count, rng)
    p = np.mean([value.astype(float) for value in model.predict(x, verbose=0).values()], 0)
    return x, (p.cumsum(-1) > rng.random((count, 1)) * 0.999).argmax(-1)


def test_fitting_sets_what_it_reports(model, rng):
    x, y = labelled(model, rng)
    before, _ = all_logits(model, x, verbose=0)
    report = model.fit_temperatures(x, y, verbose=0)
    assert model.temperatures == report.temperatures != [1.0, 1.0, 1.0]
    assert report.samples == 300 and report.exit_names == model.exit_names
    after, _ = all_logits(model, x, verbose=0)
    for index, temperature in enumerate(report.temperatures):
        assert temperature == pytest.approx(searched(before[index], y), rel=1e-5)
        np.testing.assert_allclose(after[index], before[index] / temperature, rtol=1e-6)
        assert report.nll_before[index] == pytest.approx(likelihood(before[index], y, 1))
        got = likelihood(before[index], y, temperature)
        assert report.nll_after[index] == pytest.approx(got)
        assert got < report.nll_before[index]
        assert report.ece_before[index] == pytest.approx(
            calibration_error(before[index], y)
        )
        # of the logits that stages give, in float32
        assert report.ece_after[index] == pytest.approx(
            calibration_error(after[index], y), abs=1e-3
        )
    again = model.fit_temperatures(x, np.eye(4)[y], verbose=0)  # from divided logits
    np.testing.assert_allclose(again.temperatures, report.temperatures, rtol=1e-5)
    np.testing.assert_allclose(again.nll_before, report.nll_before, rtol=1e-5)


def test_the_report_is_a_table():
    report = TemperatureReport(
        ["exit_1", "exit_2"], 1200, [1.5, 0.123456], [0.5, 1.0], [0.4, 0.9], [0.1, 0.2],
        [0.012, 0.0],
    )  # fmt: skip
    lines = str(report).splitlines()
    assert lines[0] == "Temperatures from 1,200 samples:"
    assert lines[1].split("  ")[0] == "exit" and lines[1].endswith("    ECE")
    assert lines[2].split() == ["exit_1", "1.5", "0.5000", "0.4000", "10.00%", "1.20%"]
    assert lines[3].split()[1] == "0.1235"
    assert report.to_json()["temperatures"] == [1.5, 0.123456]


def test_an_exit_that_cannot_be_fitted_is_named(model, rng):
    x = images(40, rng)
    y = model.predict(x, verbose=0)["exit_2"].argmax(-1)
    with pytest.raises(ValueError, match="Exit 'exit_2': No temperature is best: the exit"):
        model.fit_temperatures(x, y, verbose=0)
    assert model.temperatures == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="`fit_temperatures` compares answers with labels"):
        model.fit_temperatures(x, verbose=0)


def test_new_temperatures_make_new_stages_of_the_same_cut(model, rng):
    x = images(20, rng)
    plain = model.stages()
    logits, _ = all_logits(model, x, verbose=0)
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    for temperatures in ([2.0, 1.0, 0.5], [3.0, 1.0, 1.0], [1.0, 1.0, 4.0]):
        model.temperatures = temperatures
        stages = model.stages()
        assert model.stages() is stages
        got, _ = all_logits(model, x, verbose=0)
        for values, want, temperature in zip(got, logits, temperatures, strict=True):
            np.testing.assert_allclose(values, want / temperature, rtol=1e-6)
        for stage, other, temperature in zip(stages, plain, temperatures, strict=True):
            # at 1 nothing is added, not even a layer
            assert (stage.model is other.model) == (temperature == 1.0)
            assert stage.model.name == other.model.name and stage.live == other.live
            assert stage.input_names == other.input_names
        assert stages[0].model is not plain[0].model or temperatures[0] == 1.0
        # what was given before still holds the old ones
        again = plain[0]({plain[0].input_names[0]: tf.constant(x)})["logits"]
        np.testing.assert_allclose(again, logits[0], rtol=1e-5, atol=1e-6)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    model.temperatures = None
    assert [s.model for s in model.stages()] == [s.model for s in plain]


def test_temperatures_hold_stock_layers_only(model):
    model.temperatures = [2.0, 3.0, 4.0]
    for stage in model.stages():
        added = stage.model.get_layer(f"{stage.exit_name}_scaled")
        assert type(added) is keras.layers.Rescaling and added.dtype == "float32"


def test_staged_inference_follows_and_is_traced_once_for_each(model, rng):
    x = images(30, rng)
    for temperatures in ([1.0, 1.0, 1.0], [2.0, 0.5, 3.0]):
        model.temperatures = temperatures
        model.thresholds = [None, None]
        answer = model.predict_early(x, verbose=0)
        output = model.predict(x, verbose=0)["exit_3"].astype(np.float64)
        want = output ** (1 / temperatures[2])
        want /= want.sum(-1, keepdims=True)
        np.testing.assert_allclose(answer.probabilities, want, rtol=1e-4, atol=1e-6)
        run, call = model.early_exit, model._settings.early_exit_call
        model.temperatures = list(temperatures)  # no others: nothing is dropped
        assert model.early_exit is run and model.thresholds == [None, None]
        model.predict_early(x, verbose=0)
        assert model._settings.early_exit_call is call is not None
        assert run.get_concrete_function() is run.get_concrete_function()
        assert run.experimental_get_tracing_count() == 1


def test_thresholds_of_other_temperatures_are_dropped(model, rng):
    x, y = labelled(model, rng)
    model.calibrate(x, y, exit_shares=[0.3, 0.3], verbose=0)
    model.temperatures = [2.0, 2.0, 2.0]
    assert model.thresholds is None
    with pytest.raises(ValueError, match="no thresholds yet.*model.calibrate"):
        model.predict_early(x, verbose=0)
    report = model.calibrate(x, y, exit_shares=[0.3, 0.3], verbose=0)
    answer = model.predict_early(x, verbose=0)
    shares = np.bincount(answer.exits, minlength=3) / 300
    np.testing.assert_array_equal(shares, report.shares)


def test_training_and_predict_see_the_exits_as_they_are(model, rng):
    x, y = labelled(model, rng, 60)
    model.compile("adam", "sparse_categorical_crossentropy")
    before = model.predict(x, verbose=0), model.evaluate(x, y, verbose=0)
    model.temperatures = [5.0, 5.0, 5.0]
    after = model.predict(x, verbose=0), model.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(before[0]["exit_1"], after[0]["exit_1"])
    assert before[1] == after[1]


def test_a_confidence_asks_for_other_samples_than_temperatures_were_fitted_to(model, rng):
    x, y = labelled(model, rng, 400)
    model.fit_temperatures(x[:200], y[:200], verbose=0)
    asked = {"max_disagreement": 0.9, "confidence": 0.9, "verbose": 0}
    said = "fitted to 50 % of the samples that `calibrate` is given.*Pass others than to"
    with pytest.warns(UserWarning, match=said):
        model.calibrate(x, y, **asked)
    model.calibrate(x[200:], y[200:], **asked)  # a warning would be an error here
    model.calibrate(x, y, exit_shares=[0.3, 0.3], verbose=0)
    model.temperatures = [2.0, 2.0, 2.0]  # by hand
    model.calibrate(x, y, **asked)


def test_samples_that_fit_saw_are_told_of(model, rng):
    x, y = labelled(model, rng, 200)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, verbose=0)
    said = "`fit` saw 100 % of the samples that `fit_temperatures` is given.*are too low"
    with pytest.warns(UserWarning, match=said):
        model.fit_temperatures(x, y, verbose=0)


def test_gates_have_temperatures_too(rng):
    model = BranchyModel(residual(), gates("stem", "join"), temperatures=[2.0, 1.0, 1.0])
    x = images(10, rng)
    model.thresholds = [-1e9, None]
    values = model.predict(x, verbose=0)["exit_1"]
    scores = model.predict_early(x, verbose=0).scores
    np.testing.assert_allclose(scores, values.max(-1) / 2, rtol=1e-5, atol=1e-6)


def test_stages_with_temperatures_follow_further_training(model, rng):
    x, y = labelled(model, rng, 60)
    model.temperatures = [2.0, 2.0, 2.0]
    all_logits(model, x, verbose=0)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, verbose=0)
    logits, _ = all_logits(model, x, verbose=0)
    outputs = model.predict(x, verbose=0)
    for values, output in zip(logits, outputs.values(), strict=True):
        z = values * 2.0
        p = np.exp(z - z.max(-1, keepdims=True))
        np.testing.assert_allclose(p / p.sum(-1, keepdims=True), output, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [dict(layout="cascade"), dict(format="saved_model"), dict(format="onnx")]
)
def test_files_hold_the_divided_logits(options):
    export = exported("temperatures", **options)
    check = export.manifest["self_check"]
    assert check["exits_differ"] == check["labels_differ"] == 0
    if "layout" in options:
        answer = StageRunner(export.folder).predict(export.x)
        np.testing.assert_array_equal(answer.exits, export.answer.exits)
        want = export.answer.probabilities
        np.testing.assert_allclose(answer.probabilities, want, atol=1e-5)
