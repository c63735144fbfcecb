# SPDX-License-Identifier: Apache-2.0
"""The cascade for one sample: stages and decisions in one graph of stock operations.

The gate is written anew for it. LiteRT runs what its XNNPACK delegate knows several times
faster than the rest, so `reference.exit_gate`, which selects and compares, would cost more
than a small stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_branchy.criteria import CRITERIA, check_coefficients
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
        self.gates = [*model.gates, None]
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
        # Outside the branch, which is then empty: a delegate's call costs more than these.
        answer = {
            "probabilities": tf.nn.softmax(logits),
            "label": tf.argmax(logits, -1, output_type=tf.int32),
            "score": graph_score(logits, criterion, self.gates[index]),
        }
        taken = tf.constant([index], tf.int32)
        if index == len(self.stages) - 1:
            return {**answer, "exit": taken}
        score = answer["score"]
        limit = limits if limits.shape[0] == 1 else limits[index : index + 1]
        below = CRITERIA[criterion].exits_below
        leaves = score < limit if below else score >= limit
        label = None
        if self.patience is not None:
            # A broken row agrees with nobody, itself included.
            label = tf.where(score == score, answer["label"], -1 - index)
            agreed = self._agreed(label, previous, agreed, index)
            leaves |= agreed >= self.patience
        later = {**tensors, **made}
        live = {name: later[name] for name in self.stages[index].live}
        return tf.cond(
            tf.reshape(leaves, []),
            lambda: {**answer, "exit": taken},
            lambda: self._from(index + 1, live, limits, label, agreed),
        )

    def _agreed(self, label: Any, previous: Any, agreed: Any, index: int) -> Any:
        import tensorflow as tf

        one = tf.constant([1])
        return one if not index else tf.where(label == previous, agreed + 1, one)


def graph_score(
    logits: tf.Tensor, criterion: str, coefficients: Sequence[float] | None = None
) -> tf.Tensor:
    """The score [1] of logits [1, C]; see `keras_branchy.criteria` for the formulas."""
    import tensorflow as tf

    coefficients = check_coefficients(criterion, coefficients)
    top = tf.reduce_max(logits, -1, keepdims=True)
    d = logits - top
    # XNNPACK's maximum and exponential may lose a NaN, division does not: the second term
    # keeps it. It is 0 for an infinity below, nothing beside a score that a threshold can
    # tell from 0, and positive, so that no entropy falls below a threshold of 0.
    e = tf.exp(d) + 1e-35 / (1.0 - d)
    if criterion == "distance":
        return tf.reshape(top, [1]) + 1e-30 * tf.reduce_sum(e, -1)
    if criterion == "max_probability":
        return 1.0 / tf.reduce_sum(e, -1)
    if criterion == "margin":
        return _margin(e)
    is_top = tf.floor(e)  # 1 or 0, without a comparison
    # The sum of the others: 1 + it would round away what a sure exit is sure by.
    rest = tf.reduce_sum(e - is_top, -1) + (tf.reduce_sum(is_top, -1) - 1.0)
    weighted = tf.reduce_sum(e * tf.maximum(d, -104.0), -1)  # e^-104 is 0: no 0 · -inf
    entropy = _log1p(rest) - weighted / (1.0 + rest)
    if coefficients is None:
        return entropy
    bias, of_largest, of_entropy, of_margin = coefficients
    x = bias + of_largest / (1.0 + rest) + of_entropy * entropy + of_margin * _margin(e)
    # As above: the exponential may lose a NaN, which the second term keeps.
    return 1.0 / (1.0 + tf.exp(-x)) + 1e-35 * x


def _margin(e: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return (1.0 - tf.math.top_k(e, 2).values[:, 1]) / tf.reduce_sum(e, -1)


def _log1p(x: tf.Tensor) -> tf.Tensor:
    """ln(1 + x) for x ≥ 0 to 2e-7, and to 2e-4 of itself where it is small."""
    import tensorflow as tf

    # Below x²/2 = 1.2e-7 the sum has rounded more away than x is too large by.
    return tf.minimum(x, tf.math.log(1.0 + x) + 1.2e-7)
