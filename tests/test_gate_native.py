# SPDX-License-Identifier: Apache-2.0
"""Both implementations of the exit gate against float64, where it hurts."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from gate_oracle import (
    CLASSES,
    CRITERIA,
    DTYPES,
    assert_answers,
    expected,
    hostile,
    leaves,
    stored,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from keras_branchy import exit_gate

QUICK = 60_000  # logits of a case; `make test-long` takes the rest of the grid


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", DTYPES)
def test_hostile_rows_of_every_shape(implementation, dtype, criterion, rng):
    for rows in (0, 1, 7, 4096):
        for classes in CLASSES:
            if rows * classes <= QUICK or rows == 1:
                logits = stored(hostile(rng, rows, classes), dtype)
                known = expected(logits, criterion)[0]
                # TensorFlow flushes a denormal threshold when it is cast.
                known = known[np.abs(known) > 1e-30]
                threshold = known[len(known) // 2] if len(known) else 0.5
                answers = exit_gate(logits, threshold, criterion)
                assert_answers(answers, logits, threshold, criterion, dtype, implementation)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_exactly_at_the_threshold(implementation, criterion, rng):
    logits = rng.normal(0, 3, (7, 10)).astype(np.float32)
    scores = exit_gate(logits, 0.5, criterion)[2].numpy()
    for row, score in enumerate(scores):
        at = exit_gate(logits, score, criterion)[0].numpy()
        above = exit_gate(logits, np.nextafter(score, np.float32(9)), criterion)[0]
        assert at[row] == (criterion != "entropy")
        assert above.numpy()[row] == (criterion == "entropy")
        np.testing.assert_array_equal(at, leaves(scores, score, criterion))


@pytest.mark.parametrize("threshold", [np.nan, np.inf, -np.inf, 0.0, -0.0])
def test_strange_thresholds(implementation, threshold, rng):
    logits = hostile(rng, 26, 10).astype(np.float32)
    for criterion in CRITERIA:
        exits, _, score = exit_gate(logits, threshold, criterion)
        np.testing.assert_array_equal(exits, leaves(score.numpy(), threshold, criterion))
        assert not exits.numpy()[np.isnan(score)].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lowest_class(implementation, dtype):
    for classes in (2, 10, 33, 1000, 5000):
        logits = np.zeros((3, classes))
        logits[1, classes // 2 :] = 4.0
        logits[2] = np.nan
        label = exit_gate(stored(logits, dtype), 0.5)[1]
        assert label.numpy().tolist() == [0, classes // 2, 0]


def test_a_small_entropy_keeps_its_digits(implementation):
    logits = np.zeros((1, 10), np.float32)
    logits[0, 3] = 18.0
    score = exit_gate(logits, 0.5)[2].numpy()
    # 2.6e-6: ln S without log1p would be 5 % off
    np.testing.assert_allclose(score, expected(logits, "entropy")[0], rtol=2e-6)


def test_long_rows_of_like_terms(implementation):
    logits = np.full((1, 262144), -12.0, np.float32)
    logits[0, 77] = 0.0
    for criterion in CRITERIA:
        answers = exit_gate(logits, 0.5, criterion)
        assert_answers(answers, logits, 0.5, criterion, "float32", implementation)


def test_a_row_does_not_depend_on_its_batch(native_op, rng):
    # TensorFlow's own ops do depend on it, in the last bit.
    for classes in (10, 33, 1000):
        logits = rng.normal(0, 3, (67, classes)).astype(np.float32)
        whole = native_op.exit_gate(logits, 0.5, "entropy")[2].numpy()
        for begin in (0, 1, 17, 66):
            part = native_op.exit_gate(logits[begin:], 0.5, "entropy")[2].numpy()
            assert part.tobytes() == whole[begin:].tobytes()


def test_views_of_a_tensor(implementation, rng):
    whole = rng.normal(0, 3, (9, 7)).astype(np.float32)
    # Slices of an odd number of floats start where no vector load is aligned.
    for begin in range(9):
        part = tf.constant(whole)[begin:]
        assert_answers(
            exit_gate(part, 1.0), whole[begin:], 1.0, "entropy", "float32", implementation
        )


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_trace_takes_every_batch(implementation, criterion, rng):
    def gate(logits, threshold):
        exits, label, score = exit_gate(logits, threshold, criterion)
        assert exits.shape.as_list() == label.shape.as_list() == [None]
        assert score.shape.as_list() == [None]
        return exits, label, score

    specs = [tf.TensorSpec([None, 10], tf.float32), tf.TensorSpec([], tf.float32)]
    gate = tf.function(gate, input_signature=specs)
    for rows in (0, 1, 7, 300):
        logits = hostile(rng, rows, 10).astype(np.float32)
        answers = gate(logits, tf.constant(0.5))
        assert_answers(answers, logits, 0.5, criterion, "float32", implementation)
    assert gate.experimental_get_tracing_count() == 1


def test_static_shapes_are_inferred(implementation):
    gate = tf.function(lambda x: exit_gate(x, 0.5))
    concrete = gate.get_concrete_function(tf.TensorSpec([7, 3], tf.float32))
    assert [x.shape.as_list() for x in concrete.outputs] == [[7], [7], [7]]


def test_an_unknown_rank_is_checked_when_it_runs(native_op):
    gate = tf.function(
        lambda x: native_op.exit_gate(x, 0.5, "entropy"),
        input_signature=[tf.TensorSpec(None, tf.float32)],
    )
    assert [x.shape.rank for x in gate.get_concrete_function().outputs] == [1, 1, 1]
    assert gate(tf.zeros([2, 3]))[1].numpy().tolist() == [0, 0]
    for shape, text in (
        ([2, 3, 4], r"\[batch, classes\]. Received: shape=\[2,3,4\]. Flatten"),
        ([], r"\[batch, classes\]. Received: shape=\[\]. Flatten"),
        ([4, 0], r"at least one class. Received: shape=\[4,0\]"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=text):
            gate(tf.zeros(shape))


def test_an_unknown_threshold_shape_is_checked_when_it_runs(native_op):
    gate = tf.function(
        lambda x: native_op.exit_gate(tf.zeros([2, 3]), x, "entropy"),
        input_signature=[tf.TensorSpec(None, tf.float32)],
    )
    gate(tf.constant(0.5))
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"`threshold` must be a scalar. Received: shape=\[1\]. Pass one float",
    ):
        gate(tf.constant([0.5]))


@pytest.mark.parametrize(
    "shape, threshold, criterion, text",
    [
        ([2], 0.5, "entropy", r"`logits` must have shape \[batch, classes\]"),
        ([2, 0], 0.5, "entropy", "`logits` must have at least one class"),
        ([2, 3], [0.5], "entropy", "`threshold` must be a scalar"),
        ([2, 3], 0.5, "x", "Unknown criterion 'x'. Expected one of: 'entropy', 'max_prob"),
    ],
)
def test_the_op_speaks_as_python_does(native_op, shape, threshold, criterion, text):
    def call():
        return native_op.exit_gate(tf.zeros(shape), threshold, criterion)

    with pytest.raises(tf.errors.InvalidArgumentError, match=text):
        call()
    with pytest.raises(ValueError, match=text):  # from the shape function
        tf.function(call, autograph=False)()


def test_eight_threads_at_once(implementation, rng):
    cases = [hostile(rng, rows, 100).astype(np.float32) for rows in range(1, 65)]
    gate = tf.function(
        lambda x: exit_gate(x, 0.5),
        input_signature=[tf.TensorSpec([None, 100], tf.float32)],
    )
    wanted = [[x.numpy().tobytes() for x in gate(z)] for z in cases]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            found = pool.map(lambda z: [x.numpy().tobytes() for x in gate(z)], cases)
            assert list(found) == wanted


def test_a_hundred_runs_of_one_bit_pattern(implementation, rng):
    for rows, classes in ((4096, 10), (64, 5000)):
        logits = tf.constant(hostile(rng, rows, classes).astype(np.float32))
        patterns = {
            b"".join(x.numpy().tobytes() for x in exit_gate(logits, 0.5))
            for _ in range(100)
        }
        assert len(patterns) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_256000_classes(implementation, dtype, rng):
    logits = stored(hostile(rng, 3, 256000), dtype)
    assert_answers(exit_gate(logits, 2.0), logits, 2.0, "entropy", dtype, implementation)


FLOATS = st.one_of(
    st.floats(width=32),
    st.floats(-30, 30, width=32),
    st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 1e4, -1e4, 1e-40, 88.0]),
)


@given(
    logits=arrays.arrays(
        np.float32,
        st.tuples(st.integers(0, 20), st.integers(1, 70)),
        elements=FLOATS,
    ),
    threshold=FLOATS,
    criterion=st.sampled_from(CRITERIA),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=1000, deadline=None, derandomize=True)
def test_any_logits(native_op, logits, threshold, criterion, dtype):
    logits = stored(logits.astype(np.float64), dtype)
    answers = native_op.exit_gate(
        tf.convert_to_tensor(logits), tf.constant(threshold, tf.float32), criterion
    )
    assert_answers(answers, logits, threshold, criterion, dtype)
