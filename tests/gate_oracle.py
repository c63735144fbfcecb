# SPDX-License-Identifier: Apache-2.0
"""What the tests of the gate's kernels share: hostile logits, and the gate in float64."""

import numpy as np
import tensorflow as tf

DTYPES = ("float32", "float16", "bfloat16", "float64")
CRITERIA = ("entropy", "max_probability", "margin", "distance")
CLASSES = (1, 2, 3, 10, 31, 32, 33, 100, 1000, 1025, 50257)


def hostile(rng, rows, classes):
    """Rows of many kinds of trouble, one after the other, float64 [rows, classes]."""
    z = rng.normal(size=(rows, classes))
    at = rng.integers(classes, size=rows)
    scales = (1.0, 30.0, 1e4, 1e-3, 1e-39)
    for row in range(rows):
        kind = (row + classes) % 13
        z[row] *= scales[kind] if kind < 5 else 3.0
        if kind == 5:  # all equal
            z[row] = 2.5
        elif kind == 6:  # one-hot
            z[row] = 0.0
            z[row, at[row]] = 20.0
        elif kind == 7:  # a tie of the largest
            z[row, [at[row], classes - 1]] = 12.0
        elif kind == 8:  # most are -inf
            mask = rng.random(classes) < 0.8
            mask[at[row]] = False
            z[row, mask] = -np.inf
        elif kind == 9:
            z[row] = -np.inf
        elif kind == 10:
            z[row, at[row]] = np.inf
        elif kind == 11:
            z[row, at[row]] = np.nan
        elif kind == 12:
            z[row] = -np.inf
            z[row, at[row]] = np.nan
    return z


def stored(z, dtype):
    """`z` in `dtype`, as NumPy holds it for TensorFlow; overflow is clipped."""
    kind = tf.as_dtype(dtype)
    with np.errstate(over="ignore"):
        made = z.astype(kind.as_numpy_dtype)
    lost = np.isinf(made.astype(np.float64)) & np.isfinite(z)
    largest = np.asarray(kind.max, kind.as_numpy_dtype)
    return np.where(lost & (z > 0), largest, np.where(lost, -largest, made))


def expected(z, criterion):
    """Score, float64 [B], and label, int64 [B]; written from the definition."""
    z = np.asarray(z).astype(np.float64)
    ordered = np.where(np.isnan(z), -np.inf, z)
    label = ordered.argmax(-1)
    broken = np.isnan(z).any(-1) | (z == np.inf).any(-1) | (z == -np.inf).all(-1)
    score = np.full(len(z), np.nan)
    for row in np.flatnonzero(~broken):
        rest = np.delete(z[row], label[row]) - z[row, label[row]]
        terms = np.exp(rest)
        total = 1.0 + terms.sum()
        if criterion == "entropy":
            finite = rest[terms > 0.0]
            score[row] = np.log1p(terms.sum()) - (np.exp(finite) * finite).sum() / total
        elif criterion == "max_probability":
            score[row] = 1.0 / total
        elif criterion == "margin":
            score[row] = -np.expm1(rest.max(initial=-np.inf)) / total
        else:
            score[row] = z[row, label[row]]
    return score, label


def tolerance(score, dtype, implementation="native"):
    """The error that a score of this size may have."""
    size = np.abs(score)
    if dtype == "float64":
        return 2e-7 * size + 1e-37  # one rounding to float32
    # A few roundings; and z - m rounds by 6e-8 of itself, which moves e^(z-m), and with
    # it a small entropy, by |z-m| times as much. Below 1e-30 float32 has run out.
    relative = 1e-6 + 1.2e-7 * np.abs(np.log(size + 1e-30))
    if implementation == "reference":
        relative = relative * 4  # TensorFlow sums long rows in fewer partial sums.
    return relative * size + 1e-30


def leaves(score, threshold, criterion):
    """Who leaves, by the score that was returned."""
    threshold = np.float32(threshold)
    return score < threshold if criterion == "entropy" else score >= threshold


def assert_answers(answers, logits, threshold, criterion, dtype, implementation="native"):
    """Compares exit, label and score with the oracle, and exit with the score."""
    exits, label, score = (np.asarray(x) for x in answers)
    want_score, want_label = expected(logits, criterion)
    assert exits.dtype == bool and label.dtype == np.int64 and score.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(score), np.isnan(want_score))
    known = ~np.isnan(want_score)
    off = np.abs(score[known] - want_score[known])
    allowed = tolerance(want_score[known], dtype, implementation)
    assert (off <= allowed).all(), (off / allowed).max()
    np.testing.assert_array_equal(exits, leaves(score, threshold, criterion))
    # Away from the threshold, exits are those of the float64 scores, too.
    distance = np.abs(want_score[known] - np.float64(np.float32(threshold)))
    clear = distance > allowed
    want_exits = leaves(want_score[known], threshold, criterion)
    np.testing.assert_array_equal(exits[known][clear], want_exits[clear])
    if implementation == "reference":
        # TensorFlow's kernels flush denormals, and so see ties where there are none.
        z = np.where(np.isnan(logits), -np.inf, np.asarray(logits).astype(np.float64))
        chosen = np.take_along_axis(z, label[:, None], -1)[:, 0]
        best = z.max(-1, initial=-np.inf)
        assert np.isclose(chosen, best, rtol=0.0, atol=2e-38).all()
    else:
        np.testing.assert_array_equal(label, want_label)
