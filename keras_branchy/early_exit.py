# SPDX-License-Identifier: Apache-2.0
"""Staged inference as one `tf.function`: run a stage, gate, go on with who stays."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_branchy.batches import batches_of, is_arrays, is_batch
from keras_branchy.direct_call import direct_call
from keras_branchy.exit_gate import exit_gate
from keras_branchy.graph import producer
from keras_branchy.thresholds import gate_thresholds

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_branchy.branchy_model import BranchyModel

__all__ = ["EarlyExitResult", "build", "good_batch_size", "predict", "quick_call", "stream"]

# Of the largest activation, at the batch size that is taken when none is given.
_ACTIVATION_BYTES = 64 << 20


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
    return _traced(model, _Staged.run)


def _traced(model: BranchyModel, run: Callable) -> tf.types.experimental.GenericFunction:
    """A method of `_Staged` as a function of inputs and thresholds."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Staged inference runs on Keras' TensorFlow backend. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}. Save the model, set "
            "KERAS_BACKEND=tensorflow and load it there; thresholds are in the file."
        )
    import tensorflow as tf

    staged = functools.partial(run, _Staged(model))
    inputs = keras.tree.map_structure(
        lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype, x.name),
        model._inputs_struct,
    )
    thresholds = tf.TensorSpec([len(model.criteria)], tf.float32, "thresholds")
    return tf.function(staged, input_signature=[inputs, thresholds], autograph=False)


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
        """The answers of any number of samples."""
        import tensorflow as tf

        # No stage sees an empty batch: oneDNN's convolutions give it a wrong shape.
        batch = tf.shape(keras.tree.flatten(inputs)[0])[0]
        return tf.cond(batch > 0, lambda: self.run_some(inputs, thresholds), self._nobody)

    def run_some(self, inputs: Any, thresholds: tf.Tensor) -> dict[str, tf.Tensor]:
        """The answers of at least one, without a condition that hands on each weight."""
        import tensorflow as tf

        tensors = dict(zip(self.names, keras.tree.flatten(inputs), strict=True))
        state = {}
        if self.patience is not None:
            batch = tf.shape(next(iter(tensors.values())), out_type=tf.int64)[0]
            state["label"] = tf.fill([batch], tf.constant(-1, tf.int64))
            state["agreed"] = tf.zeros([batch], tf.int64)
        return _with_probabilities(self._from(0, state, tensors, thresholds))

    def _from(
        self, index: int, state: dict, tensors: dict, thresholds: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The answers of the samples that reach stage `index`, in their order."""
        import tensorflow as tf

        stage = self.stages[index]
        made = stage(tensors)
        logits = made.pop("logits")
        last = index == len(self.stages) - 1
        threshold = None if last else thresholds[index]
        leaves, label, score = exit_gate(
            logits, threshold, self.criteria[index], self.gates[index]
        )
        answers = self._answers(index, label, logits, score)
        if last:
            return answers
        state, patient = self._count_agreement(state, label, score)
        # One search for all tensors, and one size for a GPU to hand to the host; masks of
        # those who leave and of those who stay would be two.
        stay = tf.where(~(leaves | patient))
        rows = tf.squeeze(stay, 1)
        tensors = {**tensors, **made}

        def go_on() -> dict[str, tf.Tensor]:
            rest = self._from(
                index + 1,
                {name: tf.gather(value, rows) for name, value in state.items()},
                {name: tf.gather(tensors[name], rows) for name in stage.live},
                thresholds,
            )
            return {
                name: tf.tensor_scatter_nd_update(answers[name], stay, rest[name])
                for name in answers
            }

        return tf.cond(tf.size(rows) > 0, go_on, lambda: answers)

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
        self, index: int, label: Any, logits: Any, score: Any
    ) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        return {
            "labels": label,
            "logits": logits,
            "exits": tf.fill(tf.shape(label), tf.constant(index, tf.int64)),
            "scores": score,
        }

    def _nobody(self) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        logits = tf.zeros([0, self.num_classes])
        answers = self._answers(0, tf.zeros([0], tf.int64), logits, tf.zeros([0]))
        return _with_probabilities(answers)


def _with_probabilities(answers: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    import tensorflow as tf

    logits = answers.pop("logits")
    return {**answers, "probabilities": tf.nn.softmax(logits)}


def predict(
    model: BranchyModel,
    data: Any,
    batch_size: int | None,
    verbose: Any,
    steps: int | None,
) -> EarlyExitResult:
    """Runs staged inference over data; see `BranchyModel.predict_early`."""
    parts = list(_answers(model, data, batch_size, verbose, steps))
    if len(parts) == 1:
        return EarlyExitResult(**parts[0])
    return EarlyExitResult(
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    )


def stream(
    model: BranchyModel, data: Any, batch_size: int | None, steps: int | None
) -> Iterator[EarlyExitResult]:
    """Answers batch by batch; see `BranchyModel.stream_early`."""
    answers = _answers(model, data, batch_size, 0, steps)
    return (EarlyExitResult(**part) for part in answers)


def _answers(
    model: BranchyModel,
    data: Any,
    batch_size: int | None,
    verbose: Any,
    steps: int | None,
) -> Iterator[dict[str, np.ndarray]]:
    limits = _limits(model)
    call = quick_call(model)

    def answered(x: Any) -> dict[str, np.ndarray]:
        some = x if isinstance(x, np.ndarray) else keras.tree.flatten(x)[0]
        answer = call if len(some) else model.early_exit
        answers = answer(_tensors(x), limits)
        return {name: answer.numpy() for name, answer in answers.items()}

    if batch_size is None and is_arrays(data):
        batch_size = _batch_size(model)
    if verbose == 0 and steps is None and is_batch(model, data, batch_size):
        return map(answered, [data])
    batches = batches_of(model, data, None, batch_size, verbose, steps)
    return (answered(x) for x, _ in batches)


def _limits(model: BranchyModel) -> tf.Tensor:
    """The thresholds as the gate takes them, kept since making a tensor takes its time."""
    import tensorflow as tf

    settings = model._settings
    chosen = settings.thresholds and tuple(settings.thresholds), tuple(model.criteria)
    if settings.early_exit_limits is None or settings.early_exit_limits[0] != chosen:
        limits = tf.constant(gate_thresholds(model.thresholds, model.criteria))
        settings.early_exit_limits = chosen, limits
    return settings.early_exit_limits[1]


def _batch_size(model: BranchyModel) -> int:
    """`good_batch_size`, which looks at every layer, kept from call to call."""
    settings = model._settings
    if settings.batch_size is None:
        settings.batch_size = good_batch_size(model)
    return settings.batch_size


def _tensors(x: Any) -> Any:
    """Arrays as tensors, in the same structure."""
    import tensorflow as tf

    if isinstance(x, np.ndarray):
        return tf.constant(x)
    return tf.nest.map_structure(tf.convert_to_tensor, x)


def quick_call(model: BranchyModel) -> Callable[..., dict[str, tf.Tensor]]:
    """`early_exit` for at least one sample, called directly, kept from call to call."""
    if model._settings.early_exit_call is None:
        function = _traced(model, _Staged.run_some).get_concrete_function()
        model._settings.early_exit_call = direct_call(function)
    return model._settings.early_exit_call


def good_batch_size(model: BranchyModel) -> int:
    """How many samples to take at a time where nobody says: from 32 to 256.

    Calls and small batches of those who go on cost less at 256, unless a sample is so large
    that so many of them are too much for the memory.
    """
    tensors = [
        tensor for layer in model.layers for tensor in keras.tree.flatten(layer.output)
    ]
    sizes = [math.prod(axis or 1 for axis in tensor.shape[1:]) for tensor in tensors]
    fitting = _ACTIVATION_BYTES // (4 * max(sizes))
    return next((size for size in (256, 128, 64) if size <= fitting), 32)
