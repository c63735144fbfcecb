# SPDX-License-Identifier: Apache-2.0
"""The cascade for one sample: stages and decisions in one graph of stock operations.

The gate is written anew for it. LiteRT runs what its XNNPACK delegate knows several times
faster than the rest, so `reference.exit_gate`, which selects and compares, would cost more
than a small stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_branchy.criteria import CRITERIA
from keras_branchy.export.archive import Endpoint, input_specs

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_branchy.branchy_model import BranchyModel

__all__ = ["cascade", "graph_score"]

THRESHOLDS = "thresholds"


def cascade(model: BranchyModel) -> Endpoint:
    """From the inputs and `thresholds` to `probabilities`, `label`, `exit`, `score`."""
    import tensorflow as tf

    specs = input_specs(model, 1)
    if THRESHOLDS in specs:
        raise ValueError(
            "A cascade has an input 'thresholds' of its own. Received: a model with an "
            "input of that name. Rename it in the backbone, or use layout='stages'."
        )
    walk = _Walk(model)
    thresholds = tf.TensorSpec([len(model.criteria)], tf.float32, THRESHOLDS)
    return walk.run, {**specs, THRESHOLDS: thresholds}


class _Walk:
    def __init__(self, model: BranchyModel):
        self.stages = model.stages()
        self.criteria = [*model.criteria, "entropy"]
        self.patience = model.patience

    def run(self, tensors: dict[str, Any]) -> dict[str, Any]:
        limits = tensors[THRESHOLDS]
        rest = {name: value for name, value in tensors.items() if name != THRESHOLDS}
        return self._from(0, rest, limits, None, None)

    def _from(
        self, index: int, tensors: dict, limits: Any, previous: Any, agreed: Any
    ) -> dict[str, Any]:
        """The answer of a sample that reaches stage `index`."""
        import tensorflow as tf

        made = self.stages[index](tensors)
        logits = made.pop("logits")
        criterion = self.criteria[index]
        score = graph_score(logits, criterion)
        if index == len(self.stages) - 1:
            return self._answer(index, logits, score)
        limit = limits[index]
        below = CRITERIA[criterion].exits_below
        leaves = score[0] < limit if below else score[0] >= limit
        label = None
        if self.patience is not None:
            # A broken row agrees with nobody, itself included.
            label = tf.where(score[0] == score[0], _label(logits)[0], -1 - index)
            agreed = self._agreed(label, previous, agreed, index)
            leaves |= agreed >= self.patience
        later = {**tensors, **made}
        live = {name: later[name] for name in self.stages[index].live}
        return tf.cond(
            leaves,
            lambda: self._answer(index, logits, score),
            lambda: self._from(index + 1, live, limits, label, agreed),
        )

    def _agreed(self, label: Any, previous: Any, agreed: Any, index: int) -> Any:
        import tensorflow as tf

        one = tf.constant(1)
        return one if not index else tf.where(label == previous, agreed + 1, one)

    def _answer(self, index: int, logits: tf.Tensor, score: tf.Tensor) -> dict[str, Any]:
        import tensorflow as tf

        return {
            "probabilities": tf.nn.softmax(logits),
            "label": _label(logits),
            "exit": tf.constant([index], tf.int32),
            "score": score,
        }


def _label(logits: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.argmax(logits, -1, output_type=tf.int32)


def graph_score(logits: tf.Tensor, criterion: str) -> tf.Tensor:
    """The score [1] of logits [1, C]; see `keras_branchy.criteria` for the formulas."""
    import tensorflow as tf

    top = tf.reduce_max(logits, -1, keepdims=True)
    d = logits - top
    e = tf.exp(d)
    if criterion == "distance":
        score = top[:, 0]
    elif criterion == "max_probability":
        score = 1.0 / tf.reduce_sum(e, -1)
    elif criterion == "margin":
        second = tf.math.top_k(e, 2).values[:, 1]
        score = (1.0 - second) / tf.reduce_sum(e, -1)
    else:
        score = _entropy(d, e)
    # XNNPACK's maximum and exponential may lose a NaN; subtraction and division do not.
    # An infinity below is 0 here, and what is added to a score of finite logits is nothing.
    return score + 1e-30 * tf.reduce_sum(1.0 / (d - 1.0), -1)


def _entropy(d: tf.Tensor, e: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    # 1 where d is 0 and 0 elsewhere, without a comparison.
    is_top = tf.nn.relu(1.0 + d * 1e30)
    # The sum of the others: 1 + it would round away what a sure exit is sure by.
    rest = tf.reduce_sum(e - is_top, -1) + (tf.reduce_sum(is_top, -1) - 1.0)
    weighted = tf.reduce_sum(e * tf.maximum(d, -104.0), -1)  # e^-104 is 0: no 0 · -inf
    return _log1p(rest) - weighted / (1.0 + rest)


def _log1p(x: tf.Tensor) -> tf.Tensor:
    """ln(1 + x) for x ≥ 0, exact near 0, where the logarithm of a rounded sum is not."""
    import tensorflow as tf

    small = tf.minimum(x, 0.125)
    t = small / (2.0 + small)
    square = t * t
    series = 2.0 * t * (1.0 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7))))
    # ln((1 + x) / (1 + small)) is 0 where x is small.
    return series + tf.math.log((1.0 + x) / (1.0 + small))
