# SPDX-License-Identifier: Apache-2.0
"""exit_gate: who leaves at this exit, from its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_branchy.criteria import check_coefficients, check_criterion

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["exit_gate"]


def exit_gate(
    logits: Any,
    threshold: Any,
    criterion: str = "entropy",
    coefficients: Sequence[float] | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decides which samples leave at an exit, in one pass over its logits.

    Entropy in nats, with m = max z and S = Σ e^(z-m):
    H = ln S - (Σ e^(z-m)·(z-m)) / S, as in BranchyNet (arXiv 1709.01686). A sample
    leaves where H < threshold, strictly; under the other criteria (`criteria`) where
    score ≥ threshold. Rows with NaN, +inf or nothing but -inf have the score NaN and
    stay. There is no gradient: the gate is for inference.

    Args:
        logits: [B, C] with C ≥ 1; float16, bfloat16, float32 or float64.
        threshold: Scalar, in the unit of the criterion. It is compared in float32 with
            the score that is returned. `None` lets nobody leave.
        criterion: `"entropy"`, `"max_probability"`, `"margin"`, `"distance"` or
            `"learned"`, which the plain TensorFlow form computes on any device.
        coefficients: The four floats of `"learned"`, as `criteria.COEFFICIENTS` names
            them; `model.gates` holds them.

    Returns:
        exit [B] bool, label [B] int64 (the class of the largest logit, the lowest on
        ties), score [B] float32.

    Raises:
        ValueError: If the criterion is unknown or the coefficients are not its own,
            `logits` is no [batch, classes] or has no class, or `threshold` is no scalar.
        TypeError: If `logits` is not floating.

    Example:

    ```python
    from keras_branchy import exit_gate

    leaves, label, score = exit_gate([[9.0, 0.0], [0.1, 0.0]], threshold=0.1)
    assert leaves.numpy().tolist() == [True, False]
    ```
    """
    import tensorflow as tf

    from keras_branchy import native, reference

    rule = check_criterion(criterion)
    coefficients = check_coefficients(criterion, coefficients)
    logits = tf.stop_gradient(tf.convert_to_tensor(logits))
    threshold = tf.cast(rule.never if threshold is None else threshold, tf.float32)
    _check(logits, threshold)
    learned = coefficients is not None
    if learned or native.load() is None or native.in_xla_context():
        return reference.exit_gate(logits, threshold, criterion, coefficients)
    return native.exit_gate(logits, threshold, criterion)


def _check(logits: tf.Tensor, threshold: tf.Tensor) -> None:
    if logits.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(
            "`logits` must be float16, bfloat16, float32 or float64. Received: "
            f"dtype={logits.dtype.name}. Cast them first."
        )
    if logits.shape.rank not in (2, None):
        raise ValueError(
            "`logits` must have shape [batch, classes]. Received: "
            f"shape={_shape(logits)}. Flatten or pool the features to one row per "
            "sample."
        )
    if logits.shape.rank == 2 and logits.shape[1] == 0:
        raise ValueError(
            f"`logits` must have at least one class. Received: shape={_shape(logits)}."
        )
    if threshold.shape.rank not in (0, None):
        raise ValueError(
            f"`threshold` must be a scalar. Received: shape={_shape(threshold)}. Pass "
            "one float for one exit."
        )


def _shape(tensor: tf.Tensor) -> str:
    return str(tensor.shape.as_list()).replace(" ", "")
