# SPDX-License-Identifier: Apache-2.0
"""exit_gate as a user calls it, with either implementation behind it."""

import numpy as np
import pytest
import tensorflow as tf
from cases import coefficients

from keras_branchy import exit_gate
from keras_branchy.criteria import CRITERIA, gate_scores


@pytest.mark.parametrize("criterion", CRITERIA)
def test_answers_in_numpy_terms(implementation, criterion, rng):
    logits = rng.normal(0, 4, (64, 10)).astype(np.float32)
    want_score, want_label = gate_scores(logits, criterion, coefficients(criterion))
    threshold = float(np.median(want_score))
    leaves, label, score = exit_gate(logits, threshold, criterion, coefficients(criterion))
    np.testing.assert_array_equal(label, want_label)
    # float32 sums of ten terms
    np.testing.assert_allclose(score, want_score, rtol=3e-6, atol=1e-7)
    want = CRITERIA[criterion].exits(score.numpy(), np.float32(threshold))
    np.testing.assert_array_equal(leaves, want)
    assert leaves.dtype == tf.bool and label.dtype == tf.int64 and score.dtype == tf.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_score_at_the_threshold(implementation, criterion, dtype, rng):
    """Entropy leaves strictly below; the others at the threshold too."""
    logits = tf.cast(rng.normal(0, 2, (40, 7)), dtype)
    _, _, score = exit_gate(logits, 0.0, criterion, coefficients(criterion))
    for row in range(0, 40, 5):
        # As a Python float, a NumPy scalar and a tensor, the same float32.
        for at in (float(score[row]), score[row].numpy(), tf.cast(score[row], tf.float64)):
            leaves, _, _ = exit_gate(logits, at, criterion, coefficients(criterion))
            assert bool(leaves[row]) is (criterion != "entropy")
            want = score < score[row] if criterion == "entropy" else score >= score[row]
            np.testing.assert_array_equal(leaves, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("size", [0, 1])
def test_small_batches(implementation, size, dtype):
    logits = tf.zeros((size, 3), dtype)
    for criterion in CRITERIA:
        leaves, label, score = exit_gate(logits, 0.5, criterion, coefficients(criterion))
        assert leaves.shape == label.shape == score.shape == (size,)
        assert label.dtype == tf.int64 and score.dtype == tf.float32


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_threshold_that_is_no_number_lets_nobody_leave(implementation, criterion):
    leaves, _, _ = exit_gate(
        [[1e4, 0.0], [0.0, 0.0], [np.nan, 0.0]], np.nan, criterion, coefficients(criterion)
    )
    assert not leaves.numpy().any()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_broken_rows_stay_at_any_threshold(implementation, criterion):
    inf, nan = np.inf, np.nan
    rows = [[nan, 9.0], [inf, 0.0], [-inf, -inf], [nan, inf], [nan, nan]]
    for threshold in (inf, -inf, 0.0, 1e30, -1e30):
        leaves, label, score = exit_gate(
            rows, threshold, criterion, coefficients(criterion)
        )
        assert not leaves.numpy().any() and np.isnan(score).all()
        # NaN counts as -inf, and ties go to the lowest class.
        assert label.numpy().tolist() == [1, 0, 0, 1, 0]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_who_stays_in_a_graph_is_who_does_not_leave(implementation, criterion):
    @tf.function(input_signature=[tf.TensorSpec([None, 2]), tf.TensorSpec([])])
    def stays(logits, threshold):
        return ~exit_gate(logits, threshold, criterion, coefficients(criterion))[0]

    broken = tf.constant([[np.nan, 9.0], [np.inf, 0.0], [-np.inf, -np.inf]])
    for threshold in (1e30, -1e30, np.nan):
        assert stays(broken, threshold).numpy().all()
    assert stays(tf.constant([[9.0, 0.0]]), np.nan).numpy().all()


def test_shapes_are_known_in_a_graph(implementation):
    @tf.function(input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([])])
    def gate(logits, threshold):
        made = exit_gate(logits, threshold)
        assert [tensor.shape.as_list() for tensor in made] == [[None]] * 3
        return made

    for size in (0, 1, 4):
        leaves, _, score = gate(tf.zeros((size, 3)), tf.constant(2.0))
        assert leaves.numpy().tolist() == [True] * size
        np.testing.assert_allclose(score, np.log(3), rtol=1e-6)  # one float32 rounding


def test_none_lets_nobody_leave(implementation):
    for criterion in CRITERIA:
        leaves, _, _ = exit_gate(
            [[1e4, 0.0], [0.0, 0.0]], None, criterion, coefficients(criterion)
        )
        assert not leaves.numpy().any()


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [[[1.0]]], 3.0])
def test_logits_need_a_row_per_sample(implementation, wrong):
    with pytest.raises(
        ValueError, match=r"\[batch, classes\]. Received: shape=\[.*\]. Flatten or pool"
    ):
        exit_gate(wrong, 0.5)


def test_logits_need_a_class(implementation):
    with pytest.raises(ValueError, match=r"at least one class. Received: shape=\[4,0\]"):
        exit_gate(np.zeros((4, 0), np.float32), 0.5)


def test_logits_need_to_be_floating(implementation):
    with pytest.raises(TypeError, match=r"Received: dtype=int32. Cast them first"):
        exit_gate([[1, 2]], 0.5)


def test_one_threshold(implementation):
    with pytest.raises(ValueError, match=r"must be a scalar. Received: shape=\[2\]"):
        exit_gate([[1.0, 2.0]], [0.5, 0.5])


def test_known_criterion(implementation):
    with pytest.raises(ValueError, match=r"Unknown criterion 'x'. Expected one of"):
        exit_gate([[1.0, 2.0]], 0.5, "x")
    with pytest.raises(ValueError, match=r"'learned' has no coefficients yet"):
        exit_gate([[1.0, 2.0]], 0.5, "learned")


def test_under_xla_the_reference_runs(implementation):
    gate = tf.function(lambda x: exit_gate(x, 0.5), jit_compile=True)
    leaves, label, score = gate(tf.constant([[9.0, 0.0], [0.1, 0.0]]))
    assert leaves.numpy().tolist() == [True, False] and label.numpy().tolist() == [0, 0]
    np.testing.assert_allclose(score, gate_scores([[9.0, 0.0], [0.1, 0.0]])[0], rtol=1e-5)


def test_there_is_no_gradient(implementation):
    logits = tf.constant([[1.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        _, _, score = exit_gate(2 * logits, 0.5)
    assert tape.gradient(score, logits) is None
