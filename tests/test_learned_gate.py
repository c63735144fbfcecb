# SPDX-License-Identifier: Apache-2.0
"""Learned gates: the fit against its definition, and their way through a model."""

import itertools

import keras
import numpy as np
import pytest
from cases import LEARNED, exits, images, learned_criteria, residual
from exports import exported
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_branchy import BranchyModel, ExitBranch, StageRunner, cost
from keras_branchy.criteria import gate_scores
from keras_branchy.learned_gate import GateReport, area_under_roc, check_gates, fit_gate
from keras_branchy.outcome import outcome
from keras_branchy.scoring import all_logits


def features(logits):
    """Largest probability, entropy and margin of each row, from its probabilities."""
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    ordered = np.sort(p, -1)
    entropy = -(p * np.log(p)).sum(-1)
    return np.stack([ordered[:, -1], entropy, ordered[:, -1] - ordered[:, -2]], -1)


def loss(coefficients, logits, right):
    """What the fit makes least: log loss, and the ridge on standardised scores."""
    bias, *weights = coefficients
    x = features(logits)
    t = np.where(right, 1.0, -1.0) * (bias + x @ weights)
    return np.log1p(np.exp(-t)).sum() + ((weights * x.std(0)) ** 2).sum() / 2


def drawn(seed, count=300, classes=4, scale=2.0):
    """Logits, and whether they are right: the likelier, the surer they are."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (count, classes))
    right = rng.random(count) < features(logits)[:, 0] ** 0.7
    return logits, right


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(10, 200),
    classes=st.integers(2, 9),
    scale=st.floats(0.3, 5),
)
def test_nothing_nearby_fits_better(seed, count, classes, scale):
    """The loss is convex, so a point that none nearby beats is the best of all."""
    logits, right = drawn(seed, count, classes, scale)
    right[:2] = True, False
    found = np.array(fit_gate(logits, right))
    least = loss(found, logits, right)
    # A score nearly without spread counts less than its ridge: `SPREAD`.
    tried = [1e-3, -1e-3, 0.1, -0.1]
    for direction, step in itertools.product(np.eye(4), tried):
        assert loss(found + step * direction, logits, right) >= least - 1e-9


def test_it_finds_the_curve_that_answers_were_drawn_from():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (60_000, 5))
    wanted = np.array([-1.0, 2.0, -0.8, 1.0])
    x = wanted[0] + features(logits) @ wanted[1:]
    right = rng.random(60_000) < 1 / (1 + np.exp(-x))
    score, _ = gate_scores(logits, "learned", fit_gate(logits, right))
    # scores nearly say the same, so the curve is known better than its coefficients
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-x)), atol=0.02)


def test_separable_answers_give_finite_coefficients():
    logits = np.array([[5.0, 0.0], [4.0, 0.0], [0.1, 0.0], [0.2, 0.0]] * 20)
    right = np.array([True, True, False, False] * 20)
    coefficients = fit_gate(logits, right)
    assert np.isfinite(coefficients).all() and np.abs(coefficients).max() < 100
    score, _ = gate_scores(logits, "learned", coefficients)
    assert score[right].min() > 0.9 and score[~right].max() < 0.1


def test_scores_that_all_agree_say_how_often_it_is_right():
    logits = np.tile([1.0, 0.0, 0.0], (100, 1))
    right = np.arange(100) < 70
    coefficients = fit_gate(logits, right)
    np.testing.assert_allclose(coefficients[1:], 0.0, atol=1e-12)
    score, _ = gate_scores(logits, "learned", coefficients)
    np.testing.assert_allclose(score, 0.7, rtol=1e-9)


def test_rows_without_a_score_teach_nothing():
    logits, right = drawn(5)
    broken = np.concatenate([[[np.nan] * 4, [np.inf, 0, 0, 0], [-np.inf] * 4], logits])
    with_them = fit_gate(broken, np.concatenate([[True, True, True], right]))
    np.testing.assert_allclose(with_them, fit_gate(logits, right), rtol=1e-9)


@pytest.mark.parametrize(
    "logits, right, said",
    [
        (np.zeros((0, 3)), [], "Received: 0 samples with a score, none of them right"),
        (np.full((3, 2), np.nan), [True, False, True], "Received: 0 samples with a score"),
        (np.zeros((3, 2)), [True] * 3, "3 samples with a score, all of them right. Pass"),
        (np.zeros((3, 2)), [False] * 3, "none of them right. Pass more held-out samples"),
    ],
)
def test_answers_that_teach_nothing_are_refused(logits, right, said):
    with pytest.raises(ValueError, match=f"learns from right and wrong answers. .*{said}"):
        fit_gate(logits, np.array(right, bool))


def test_the_area_is_the_share_of_pairs_in_order(rng):
    score = np.round(rng.random(60), 1)  # with ties
    score[::13] = np.nan
    right = rng.random(60) < 0.5
    pairs = [
        (one > other) + (one == other) / 2
        for one in score[right & ~np.isnan(score)]
        for other in score[~right & ~np.isnan(score)]
    ]
    assert area_under_roc(score, right) == pytest.approx(np.mean(pairs), rel=1e-12)


CRITERIA = ["learned", "entropy"]


@pytest.mark.parametrize(
    "gates, said",
    [
        (LEARNED, "one entry per exit but the last.*Expected 2 entries, for the criteria"),
        ("ab", "one entry per exit but the last"),
        ([LEARNED], r"Expected 2 entries, for the criteria \['learned', 'entropy'\]"),
        ([LEARNED, LEARNED], "Only the criterion 'learned' has coefficients"),
        ([[1.0], None], "four finite coefficients"),
    ],
)
def test_gates_are_checked(gates, said):
    with pytest.raises(ValueError, match=said):
        check_gates(gates, CRITERIA)


def test_gates_may_be_missing():
    assert check_gates(None, CRITERIA) == check_gates([None, None], CRITERIA)
    assert check_gates([np.array(LEARNED), None], CRITERIA) == [LEARNED, None]


@pytest.fixture
def model(rng):
    model = BranchyModel(residual(), learned_criteria())
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return model


def labelled(model, rng, count=240):
    x = images(count, rng)
    last = model.predict(x, verbose=0)["exit_4"].argmax(-1)
    return x, np.where(rng.random(count) < 0.8, last, rng.integers(0, 4, count))


def test_fitting_sets_what_it_reports(model, rng):
    x, y = labelled(model, rng)
    logits, _ = all_logits(model, x, verbose=0)
    report = model.fit_gates(x, y, verbose=0)
    assert report.exit_names == ["exit_1", "exit_3"] and report.target == "right"
    assert model.gates == [report.coefficients[0], None, report.coefficients[1]]
    for row, index in enumerate((0, 2)):
        right = logits[index].argmax(-1) == y
        assert report.coefficients[row] == fit_gate(logits[index], right)
        assert report.shares[row] == right.mean()
        score, _ = gate_scores(logits[index], "learned", report.coefficients[row])
        assert report.areas[row] == area_under_roc(score, right)
        entropy = features(logits[index])[:, 1]
        assert report.entropy_areas[row] == pytest.approx(area_under_roc(-entropy, right))


def test_without_labels_it_learns_when_an_exit_agrees(model, rng):
    x, _ = labelled(model, rng)
    logits, _ = all_logits(model, x, verbose=0)
    report = model.fit_gates(x, verbose=0)
    agrees = logits[0].argmax(-1) == logits[3].argmax(-1)
    assert report.target == "agrees" and report.shares[0] == agrees.mean()
    assert model.gates[0] == fit_gate(logits[0], agrees)


def test_the_report_is_a_table():
    report = GateReport(
        ["exit_1"], 1500, "right", [[-1.0, 2.5, 0.123456, 4.0]], [0.9], [0.875], [0.75]
    )
    first, header, row = str(report).splitlines()
    assert first == "Gates learned from 1,500 samples:"
    assert header.split("  ")[0] == "exit" and header.endswith("by entropy")
    assert row.split() == "exit_1 -1 2.5 0.1235 4 90.00% 87.50% 75.00%".split()
    assert report.to_json()["areas"] == [0.875]


def test_thresholds_are_chosen_on_learned_scores(model, rng):
    x, y = labelled(model, rng)
    with pytest.raises(ValueError, match="'learned' has no coefficients yet.*fit_gates"):
        model.calibrate(x, y, exit_shares=[0.3, 0.2, 0.2], verbose=0)
    model.fit_gates(x, y, verbose=0)
    report = model.calibrate(x, y, max_accuracy_drop=0.05, verbose=0)
    answer = model.predict_early(x, verbose=0)
    shares = np.bincount(answer.exits, minlength=4) / len(y)
    np.testing.assert_array_equal(shares, report.shares)
    logits, _ = all_logits(model, x, verbose=0)
    assert outcome(model, logits, y, model.thresholds).shares == shares.tolist()
    left = answer.exits == 0
    bias, *weights = model.gates[0]
    score = 1 / (1 + np.exp(-bias - features(logits[0]) @ weights))
    np.testing.assert_allclose(answer.scores[left], score[left], rtol=1e-4)
    assert left.any() and (score[left] >= model.thresholds[0] - 1e-6).all()


def test_samples_that_fit_or_the_gates_saw_are_told_of(model, rng):
    x, y = labelled(model, rng)
    model.fit_gates(x, y, verbose=0)
    asked = {"max_disagreement": 0.9, "confidence": 0.9, "verbose": 0}
    with pytest.warns(UserWarning, match="gates were fitted to 100 % of the samples"):
        model.calibrate(x, y, **asked)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, verbose=0)
    said = "`fit` saw 100 % of the samples that `fit_gates` is given.*are too sure of those"
    with pytest.warns(UserWarning, match=said):
        model.fit_gates(x, y, verbose=0)


def test_each_setting_unsets_what_was_chosen_on_its_scores(model, rng):
    x, y = labelled(model, rng)
    model.fit_gates(x, y, verbose=0)
    model.thresholds = [0.5, 0.5, 0.5]
    run = model.early_exit
    model.gates = model.gates
    assert model.early_exit is run and model.thresholds == [0.5, 0.5, 0.5]
    model.gates = [LEARNED, None, LEARNED]
    assert model.thresholds is None and model.early_exit is not run
    model.thresholds = [0.5, 0.5, 0.5]
    model.temperatures = [2.0, 2.0, 2.0, 2.0]
    assert model.gates == [None] * 3 and model.thresholds is None
    model.thresholds = [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="'learned' has no coefficients yet"):
        model.predict_early(x, verbose=0)


def test_a_gate_that_cannot_be_fitted_is_named(model, rng):
    x = images(50, rng)
    y = model.predict(x, verbose=0)["exit_3"].argmax(-1)
    with pytest.raises(ValueError, match="Exit 'exit_3': A gate learns.*all of them right"):
        model.fit_gates(x, y, verbose=0)
    assert model.gates == [None] * 3
    plain = BranchyModel(residual(), exits("stem"))
    with pytest.raises(
        ValueError, match=r"No exit has a learned gate.*\['entropy'\]. Buil"
    ):
        plain.fit_gates(x, y, verbose=0)


def test_the_time_of_a_gate_is_measured_before_it_has_learned(model):
    assert len(cost.profile(model, batch_size=1, repeats=1)) == 4


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        dict(layout="stages"),
        dict(layout="cascade"),
        dict(format="saved_model"),
        dict(format="onnx"),
        dict(batch_size=4),
    ],
)
def test_files_are_decided_by_the_same_scores(options):
    export = exported("learned", **options)
    check = export.manifest["self_check"]
    assert check["exits_differ"] == check["labels_differ"] == 0
    rows = export.manifest["exits"]
    assert rows[0]["criterion"] == "learned" and rows[0]["unit"] == "probability"
    assert list(rows[0]["coefficients"].values()) == export.model.gates[0]
    assert "coefficients" not in rows[1] and "coefficients" not in rows[3]
    if "format" not in options:
        answer = StageRunner(export.folder).predict(export.x)
        np.testing.assert_array_equal(answer.exits, export.answer.exits)
        np.testing.assert_allclose(answer.scores, export.answer.scores, atol=1e-5)


def test_every_exit_of_a_runner_has_its_learned_score():
    export = exported("every_setting", layout="stages")
    scores, _, _ = StageRunner(export.folder).every_exit(export.x)
    logits, _ = all_logits(export.model, export.x, verbose=0)
    want, _ = gate_scores(logits[0], "learned", export.model.gates[0])
    np.testing.assert_allclose(scores[0], want, atol=1e-5)


@pytest.mark.long
def test_thresholds_are_refitted_to_learned_scores_of_quantised_files():
    export = exported("learned", True, quantization="dynamic")
    assert export.manifest["recalibration"]["samples"] == 60
    answer = StageRunner(export.folder).predict(export.x)
    shares = np.bincount(answer.exits, minlength=4) / 60
    want = np.bincount(export.answer.exits, minlength=4) / 60
    np.testing.assert_allclose(shares, want, atol=0.05)


def test_a_branch_may_be_named_learned_and_saved(tmp_path, rng):
    model = BranchyModel(
        residual(), {"stem": ExitBranch(4, criterion="learned")}, gates=[LEARNED]
    )
    model.thresholds = [0.5]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x = images(8, rng)
    one, other = (m.predict_early(x, verbose=0) for m in (model, again))
    np.testing.assert_array_equal(one.scores, other.scores)
