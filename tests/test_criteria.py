# SPDX-License-Identifier: Apache-2.0
"""The gate's definition, in NumPy and in TensorFlow, against sums in float64."""

import math

import numpy as np
import pytest
import tensorflow as tf
from cases import LEARNED, coefficients

from keras_branchy import reference
from keras_branchy.criteria import CRITERIA, check_criterion, gate_scores

INF, NAN = math.inf, math.nan


def written_out(row, criterion):
    """Score and label of one row of floats, by the definition, summed without rounding."""
    ordered = [-INF if math.isnan(z) else z for z in row]
    label = ordered.index(max(ordered))
    if any(math.isnan(z) or z == INF for z in row) or all(z == -INF for z in row):
        return NAN, label
    largest = max(row)
    terms = [math.exp(z - largest) for z in row]
    total = math.fsum(terms)
    if criterion == "distance":
        return largest, label
    if criterion == "max_probability":
        return 1 / total, label
    if criterion == "margin":
        rest = sorted(terms, reverse=True)[1:2] or [0.0]
        return (1 - rest[0]) / total, label
    # ln S by the rest of the sum, or float64 itself loses an entropy of 1e-17
    rest = math.fsum(terms[:label] + terms[label + 1 :])
    weighted = math.fsum(t * (z - largest) for t, z in zip(terms, row, strict=True) if t)
    entropy = math.log1p(rest) - weighted / total
    if criterion == "entropy":
        return entropy, label
    bias, *weights = LEARNED
    seen = 1 / total, entropy, written_out(row, "margin")[0]
    x = bias + math.fsum(w * s for w, s in zip(weights, seen, strict=True))
    return 1 / (1 + math.exp(-x)), label


HOSTILE = {
    "plain": [1.0, 2.0, 3.0],
    "equal": [0.5, 0.5, 0.5, 0.5],
    "one hot": [0.0, 0.0, 30.0, 0.0],
    "nearly certain": [14.0, 0.0, -1.0],
    "huge": [1e4, -1e4, 9.99e3],
    "tiny": [1e-40, 2e-40, 0.0],
    "masked": [-INF, 1.0, -INF, 0.5],
    "certain": [-INF, 1.0, -INF],
    "nan": [1.0, NAN, 2.0],
    "nan first": [NAN, 0.0, 0.0],
    "plus infinity": [1.0, INF, 2.0],
    "nothing but minus infinity": [-INF, -INF],
    "one class": [3.0],
    "one broken class": [NAN],
    "two classes": [0.0, 1e-3],
    "many": list(np.linspace(-5, 5, 1025)),
}


def numpy_scores(row, criterion):
    score, label = gate_scores(np.array([row]), criterion, coefficients(criterion))
    return score[0], label[0]


def tensorflow_scores(row, criterion, dtype="float32"):
    logits = tf.cast(tf.constant([row], tf.float64), dtype)
    _, label, score = reference.exit_gate(
        logits, tf.constant(0.5), criterion, coefficients(criterion)
    )
    assert (score.dtype, label.dtype) == (tf.float32, tf.int64)
    return score.numpy()[0], label.numpy()[0]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", HOSTILE)
def test_numpy_gives_the_definition(name, criterion):
    want, label = written_out(HOSTILE[name], criterion)
    score, got = numpy_scores(HOSTILE[name], criterion)
    assert got == label
    # float64 rounding of sums of up to 1,025 terms
    np.testing.assert_allclose(score, want, rtol=1e-13, atol=1e-18)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", HOSTILE)
def test_tensorflow_gives_the_definition(name, criterion, dtype):
    row = tf.cast(tf.cast(HOSTILE[name], dtype), tf.float64).numpy().tolist()
    if dtype != "float64":
        # TensorFlow takes numbers below float32's normal range for zero.
        row = [0.0 if abs(z) < 1.2e-38 else z for z in row]
    want, label = written_out(row, criterion)
    score, got = tensorflow_scores(row, criterion, dtype)
    assert got == label
    # float32 sums of 1,025 terms; absolute where an entropy is a difference near ln C
    np.testing.assert_allclose(score, np.float32(want), rtol=3e-6, atol=1e-30)


def test_small_entropies_keep_their_digits():
    for gap in (10.0, 14.0, 20.0, 40.0):
        row = [gap, 0.0]
        want, _ = written_out(row, "entropy")
        score, _ = tensorflow_scores(row, "entropy")
        # a naive ln S - W/S is 5 % off at 2.6e-6 and 0 at 1e-8
        assert score == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_exit_is_the_score_against_the_threshold(criterion, rng):
    logits = rng.normal(0, 4, (500, 5)).astype(np.float32)
    logits[::50, 2] = NAN
    own = coefficients(criterion)
    _, _, scores = reference.exit_gate(
        tf.constant(logits), tf.constant(0.0), criterion, own
    )
    scores = scores.numpy()
    for threshold in (*scores[1:20:3], NAN, INF, -INF):
        leaves, _, _ = reference.exit_gate(
            tf.constant(logits), tf.constant(np.float32(threshold)), criterion, own
        )
        below = criterion == "entropy"
        want = scores < threshold if below else scores >= threshold
        np.testing.assert_array_equal(leaves, want)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_any_batch_in_one_trace(criterion, rng):
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def gate(logits):
        own = coefficients(criterion)
        return reference.exit_gate(logits, tf.constant(0.5), criterion, own)

    for size in (0, 1, 7):
        logits = rng.normal(size=(size, 3)).astype(np.float32)
        leaves, labels, scores = gate(tf.constant(logits))
        want = gate_scores(logits, criterion, coefficients(criterion))
        assert leaves.shape == labels.shape == scores.shape == (size,)
        np.testing.assert_array_equal(labels, want[1])
        np.testing.assert_allclose(scores, want[0], rtol=3e-6, atol=1e-7)


def test_numpy_takes_any_leading_dimensions(rng):
    logits = rng.normal(size=(2, 3, 4))
    score, label = gate_scores(logits)
    flat = gate_scores(logits.reshape(6, 4))
    np.testing.assert_array_equal(score, flat[0].reshape(2, 3))
    np.testing.assert_array_equal(label, flat[1].reshape(2, 3))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_bounds_hold_what_scores_can_be(criterion, rng):
    low, high = CRITERIA[criterion].bounds(4)
    own = coefficients(criterion)
    scores, _ = gate_scores(rng.normal(0, 5, (1000, 4)), criterion, own)
    assert scores.min() >= low and scores.max() <= high
    rows = np.array([[0.0] * 4, [800.0, 0.0, 0.0, 0.0]])
    extremes = gate_scores(rows, criterion, own and [-100.0, 200.0, 0.0, 0.0])[0]
    if criterion != "distance":
        np.testing.assert_allclose(sorted(extremes), [low, high], atol=1e-15)


def test_disabled_and_named_thresholds():
    for criterion in CRITERIA.values():
        scores = np.array([0.0, 0.5, 1e30, NAN])
        assert not criterion.exits(scores, None).any()
        assert not criterion.exits(scores, criterion.never).any()
    assert CRITERIA["entropy"].exits(np.array([0.5, 0.6]), 0.6).tolist() == [True, False]
    assert CRITERIA["margin"].exits(np.array([0.5, 0.6]), 0.6).tolist() == [False, True]


@pytest.mark.parametrize("name", ["entropie", None, 3])
def test_unknown_criteria(name):
    with pytest.raises(ValueError, match=r"Unknown criterion .*Expected one of: 'entropy'"):
        check_criterion(name)


UNFIT = [
    ("learned", None, "no coefficients yet. Received: None. Fit them with model.fit_gates"),
    ("learned", [1.0, 2.0], "four finite coefficients, of bias.*Received: coefficients="),
    ("learned", [0.0, 1.0, NAN, 2.0], "four finite coefficients"),
    ("learned", [0.0, 1.0, 1e39, 2.0], "four finite coefficients"),  # float32 has less
    ("learned", "abcd", "four finite coefficients"),
    ("learned", 3.0, "four finite coefficients"),
    ("margin", LEARNED, "Only the criterion 'learned' has coefficients.*Pass None"),
]


@pytest.mark.parametrize("criterion, given, said", UNFIT)
def test_coefficients_are_those_of_the_criterion(criterion, given, said):
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=said):
        gate_scores(np.zeros((2, 3)), criterion, given)


@pytest.mark.parametrize("bias", [-2000.0, 2000.0])
def test_a_gate_that_is_sure_of_all_neither_overflows_nor_warns(bias):
    own = [bias, 1.0, 1.0, 1.0]
    logits = np.array([[1.0, 2.0]])
    _, _, score = reference.exit_gate(tf.constant(logits), 0.5, "learned", own)
    assert gate_scores(logits, "learned", own)[0] == score == (bias > 0)
