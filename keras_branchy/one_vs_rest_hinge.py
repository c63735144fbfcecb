# SPDX-License-Identifier: Apache-2.0
"""OneVsRestHinge: the loss of decision gates."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["OneVsRestHinge"]


@keras.saving.register_keras_serializable(package="keras_branchy")
class OneVsRestHinge(keras.losses.Loss):
    """The hinge loss of one linear classifier per class against all others.

    `mean over classes of max(0, 1 - y·v)`, v the decision values and y = 1 for the
    sample's class, -1 for the others. It trains exits that are no distribution,
    `ExitBranch(units, layers=[], activation=None, criterion="distance")`, to put their
    class at least 1 above the plane and every other at least 1 below. Keras'
    `CategoricalHinge` is another loss: it only sets the right class against the best of
    the wrong ones, and leaves the distance from the plane free.

    Source: Shafiee, Shafiee and Wong, "Dynamic Representations Toward Efficient Inference
    on Deep Neural Networks by Decision Gates" (arXiv 1811.01476).

    Args:
        name: Of the loss.
        **kwargs: `reduction` and `dtype`, as for every loss.

    Call arguments:
        y_true: Labels [B] or [B, 1], integers below the number of classes; or one-hot
            [B, classes], of 0 and 1.
        y_pred: Decision values [B, classes].

    Raises:
        ValueError: If the labels have neither shape, or there is not one row of values
            per sample.

    Example:

    ```python
    import numpy as np
    from keras_branchy import OneVsRestHinge

    values = np.array([[2.0, -2.0, 0.5]], "float32")  # the third is 1.5 too high
    assert abs(float(OneVsRestHinge()(np.array([0]), values)) - 0.5) < 1e-6
    ```
    """

    def __init__(self, name: str = "one_vs_rest_hinge", **kwargs: Any):
        super().__init__(name=name, **kwargs)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_pred = _check_values(ops.convert_to_tensor(y_pred))
        sides = 2 * _one_hot(ops.convert_to_tensor(y_true), y_pred) - 1
        return ops.mean(ops.relu(1 - sides * y_pred), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


def _check_values(values: Any) -> Any:
    if len(values.shape) != 2:
        raise ValueError(
            "`y_pred` must hold a row of decision values per sample, [B, classes]. "
            f"Received: y_pred of shape {tuple(values.shape)}."
        )
    return values


def _one_hot(labels: Any, values: Any) -> Any:
    classes = values.shape[-1]
    if len(labels.shape) == 2 and labels.shape[-1] == classes:
        return ops.cast(labels, values.dtype)
    if len(labels.shape) == 2 and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, -1)
    if len(labels.shape) != 1:
        raise ValueError(
            "`y_true` must hold one label per sample, [B] or [B, 1], or be one-hot, "
            f"[B, {classes}]. Received: y_true of shape {tuple(labels.shape)} with y_pred "
            f"of shape {tuple(values.shape)}."
        )
    return ops.one_hot(ops.cast(labels, "int32"), classes, dtype=values.dtype)
