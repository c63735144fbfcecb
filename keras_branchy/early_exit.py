# SPDX-License-Identifier: Apache-2.0
"""Staged inference: as one `tf.function`, or stage by stage as samples come together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_branchy.batches import batches_of
from keras_branchy.exit_gate import exit_gate
from keras_branchy.graph import producer
from keras_branchy.stage_functions import StageFunctions, rules_of
from keras_branchy.streaming import check_max_wait, in_order
from keras_branchy.thresholds import gate_thresholds
from keras_branchy.walk import Walk

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_branchy.branchy_model import BranchyModel

__all__ = ["EarlyExitResult", "build", "predict", "stream"]


@dataclass(frozen=True)
class EarlyExitResult:
    """Answers in the order of the input.

    Attributes:
        labels: [B] int64, the class of the largest logit at the exit taken.
        probabilities: [B, C] float32, the softmax at the exit taken.
        exits: [B] int64, the exit taken, an index into `BranchyModel.exit_names`.
        scores: [B] float32, the score of that exit's criterion (entropy for the last).
    """

    labels: np.ndarray
    probabilities: np.ndarray
    exits: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def build(model: BranchyModel) -> tf.types.experimental.GenericFunction:
    """The traced function; see `BranchyModel.early_exit`.

    Raises:
        RuntimeError: If Keras runs on another backend than TensorFlow.
    """
    _check_backend()
    import tensorflow as tf

    staged = _Staged(model)
    inputs = keras.tree.map_structure(
        lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype, x.name),
        model._inputs_struct,
    )
    thresholds = tf.TensorSpec([len(model.criteria)], tf.float32, "thresholds")
    return tf.function(staged.run, input_signature=[inputs, thresholds], autograph=False)


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Staged inference runs on Keras' TensorFlow backend. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}. Save the model, set "
            "KERAS_BACKEND=tensorflow and load it there; thresholds are in the file."
        )


class _Staged:
    """The computation behind the traced function."""

    def __init__(self, model: BranchyModel):
        self.stages = model.stages()
        # The last exit takes every sample; its score is for the record.
        self.criteria = [*model.criteria, "entropy"]
        self.gates = [*model.gates, None]
        self.patience = model.patience
        self.num_classes = model.num_classes
        self.names = [producer(tensor).operation.name for tensor in model.inputs]

    def run(self, inputs: Any, thresholds: tf.Tensor) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        tensors = dict(zip(self.names, keras.tree.flatten(inputs), strict=True))
        batch = tf.shape(next(iter(tensors.values())), out_type=tf.int64)[0]
        state = {"position": tf.range(batch)}
        if self.patience is not None:
            state["label"] = tf.fill([batch], tf.constant(-1, tf.int64))
            state["agreed"] = tf.zeros([batch], tf.int64)
        answers = self._from(0, state, tensors, thresholds)
        order = tf.math.invert_permutation(answers.pop("position"))
        return {name: tf.gather(answer, order) for name, answer in answers.items()}

    def _from(
        self, index: int, state: dict, tensors: dict, thresholds: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The answers of all samples that reach stage `index`, in the order of leaving."""
        import tensorflow as tf

        # No stage sees an empty batch: oneDNN's convolutions give it a wrong shape.
        return tf.cond(
            tf.size(state["position"]) > 0,
            lambda: self._run_stage(index, state, tensors, thresholds),
            self._nobody,
        )

    def _run_stage(
        self, index: int, state: dict, tensors: dict, thresholds: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        stage = self.stages[index]
        made = stage(tensors)
        logits = made.pop("logits")
        last = index == len(self.stages) - 1
        threshold = None if last else thresholds[index]
        leaves, label, score = exit_gate(
            logits, threshold, self.criteria[index], self.gates[index]
        )
        if last:
            return self._answers(index, state["position"], label, logits, score)
        state, patient = self._count_agreement(state, label, score)
        leaves |= patient

        def of(who: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
            return tf.boolean_mask(tensor, who)

        left = [of(leaves, x) for x in (state["position"], label, logits, score)]
        tensors = {**tensors, **made}
        rest = self._from(
            index + 1,
            {name: of(~leaves, value) for name, value in state.items()},
            {name: of(~leaves, tensors[name]) for name in stage.live},
            thresholds,
        )
        answers = self._answers(index, *left)
        return {name: tf.concat([answers[name], rest[name]], 0) for name in answers}

    def _count_agreement(
        self, state: dict, label: tf.Tensor, score: tf.Tensor
    ) -> tuple[dict, Any]:
        """Counts successive exits with one label; who has enough of them."""
        import tensorflow as tf

        if self.patience is None:
            return state, False
        again = (label == state["label"]) & ~tf.math.is_nan(score)
        agreed = tf.where(again, state["agreed"] + 1, tf.ones_like(state["agreed"]))
        # A broken row agrees with nobody, itself included.
        label = tf.where(tf.math.is_nan(score), tf.constant(-1, tf.int64), label)
        state = {**state, "label": label, "agreed": agreed}
        return state, agreed >= self.patience

    def _answers(
        self, index: int, position: Any, label: Any, logits: Any, score: Any
    ) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        return {
            "position": position,
            "labels": label,
            "probabilities": tf.nn.softmax(logits),
            "exits": tf.fill(tf.shape(label), tf.constant(index, tf.int64)),
            "scores": score,
        }

    def _nobody(self) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        logits = tf.zeros([0, self.num_classes])
        integers, floats = tf.zeros([0], tf.int64), tf.zeros([0])
        return self._answers(0, integers, integers, logits, floats)


def predict(
    model: BranchyModel,
    data: Any,
    batch_size: int | None,
    verbose: Any,
    steps: int | None,
) -> EarlyExitResult:
    """Runs staged inference over data; see `BranchyModel.predict_early`."""
    thresholds = gate_thresholds(model.thresholds, model.criteria)
    batches = (x for x, _ in batches_of(model, data, None, batch_size, verbose, steps))
    if _on_accelerator():
        parts = [_in_graph(model, x, thresholds) for x in batches]
        return EarlyExitResult(
            **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        )
    engine = StageFunctions(model)
    walk = _walk(model, thresholds)
    for x in batches:
        walk.enter(engine, *engine.named(x))
    walk.flush(engine)
    return EarlyExitResult(**walk.answers(walk.entered))


def stream(
    model: BranchyModel,
    data: Any,
    batch_size: int | None,
    steps: int | None,
    max_wait: float | None,
) -> Iterator[EarlyExitResult]:
    """Answers batch by batch; see `BranchyModel.stream_early`."""
    check_max_wait(max_wait)
    thresholds = gate_thresholds(model.thresholds, model.criteria)
    batches = (x for x, _ in batches_of(model, data, None, batch_size, 0, steps))
    if _on_accelerator():
        return (EarlyExitResult(**_in_graph(model, x, thresholds)) for x in batches)
    engine = StageFunctions(model)
    found = in_order(
        _walk(model, thresholds), engine.lent, map(engine.named, batches), max_wait
    )
    return (EarlyExitResult(**answers) for answers, _ in found)


def _on_accelerator() -> bool:
    """Whether leaving the graph between stages would mean copies to the host and back."""
    _check_backend()
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


def _in_graph(model: BranchyModel, x: Any, thresholds: np.ndarray) -> dict[str, np.ndarray]:
    answers = model.early_exit(x, thresholds)
    return {name: answer.numpy() for name, answer in answers.items()}


def _walk(model: BranchyModel, thresholds: np.ndarray) -> Walk:
    rules = rules_of(model)
    return Walk(rules, rules.gates(), thresholds, slots=1, capacity=1024)
