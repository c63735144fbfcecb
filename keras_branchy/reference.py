# SPDX-License-Identifier: Apache-2.0
"""The exit gate in plain TensorFlow: the definition that every kernel is held to.

It is shipped, not test code: it runs wherever the native op cannot (other platforms,
inside XLA, `KERAS_BRANCHY_CUSTOM_OPS=off`). The formulas are in `criteria`.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

__all__ = ["exit_gate"]


def exit_gate(
    logits: tf.Tensor,
    threshold: tf.Tensor,
    criterion: str,
    coefficients: Sequence[float] | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decides who leaves; arguments as checked by `keras_branchy.exit_gate`.

    Args:
        logits: [B, C], C ≥ 1, floating.
        threshold: float32 scalar.
        criterion: Name of a criterion.
        coefficients: Those of the criterion `learned`.

    Returns:
        exit [B] bool, label [B] int64, score [B] float32.
    """
    if logits.dtype.size < 4:
        logits = tf.cast(logits, tf.float32)
    infinity = tf.constant(float("inf"), logits.dtype)
    broken = (
        tf.reduce_any(tf.math.is_nan(logits), axis=-1)
        | tf.reduce_any(logits == infinity, axis=-1)
        | tf.reduce_all(logits == -infinity, axis=-1)
    )
    ordered = tf.where(tf.math.is_nan(logits), -infinity, logits)
    label = tf.argmax(ordered, axis=-1, output_type=tf.int64)
    finite = tf.where(broken[:, None], tf.zeros_like(logits), logits)
    score = tf.cast(_score(finite, criterion, coefficients), tf.float32)
    score = tf.where(broken, float("nan"), score)
    leaves = score < threshold if criterion == "entropy" else score >= threshold
    # In a graph TensorFlow makes score >= threshold of a negated score < threshold, which
    # is false for NaN as well. Of a conjunction it does not.
    return leaves & ~(broken | tf.math.is_nan(threshold)), label, score


def _score(
    logits: tf.Tensor, criterion: str, coefficients: Sequence[float] | None
) -> tf.Tensor:
    """Scores of rows without NaN and +inf, [B, C] -> [B], in the dtype of `logits`."""
    largest = tf.reduce_max(logits, axis=-1)
    if criterion == "distance":
        return largest
    top = tf.one_hot(
        tf.argmax(logits, axis=-1), tf.shape(logits)[-1], on_value=True, off_value=False
    )
    d = logits - largest[:, None]
    # The largest term is left out of the sum and comes back as the 1 of log1p, or a
    # nearly certain row would lose its last bits: 5 % of an entropy of 2.6e-6.
    e = tf.where(top, tf.zeros_like(d), tf.exp(d))
    rest = tf.reduce_sum(e, axis=-1)
    if criterion == "max_probability":
        return 1.0 / (1.0 + rest)
    if criterion == "margin":
        return _margin(d, top, rest)
    weighted = tf.reduce_sum(tf.math.multiply_no_nan(d, e), axis=-1)
    entropy = tf.math.log1p(rest) - weighted / (1.0 + rest)
    if coefficients is None:
        return entropy
    bias, of_largest, of_entropy, of_margin = coefficients
    x = bias + of_largest / (1.0 + rest) + of_entropy * entropy
    return tf.sigmoid(x + of_margin * _margin(d, top, rest))


def _margin(d: tf.Tensor, top: tf.Tensor, rest: tf.Tensor) -> tf.Tensor:
    second = tf.reduce_max(tf.where(top, -float("inf"), d), axis=-1)
    return -tf.math.expm1(second) / (1.0 + rest)
