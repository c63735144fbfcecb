# SPDX-License-Identifier: Apache-2.0
"""Two ways to the same labels, checked and then timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_branchy.export.decisions import decide, score_all
from keras_branchy.scoring import all_logits
from keras_branchy.thresholds import gate_thresholds

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["batches", "check", "contestants", "take_turns"]

Contestant = Callable[[Any], dict[str, np.ndarray]]

MOST_CHECKED = 2000  # samples
WARM_UP = 3  # rounds
FEWEST = 5  # measurements, however long they take
# Batch sizes and fused stages round float32 apart; a wrong answer is further off.
ABSOLUTE, RELATIVE = 1e-4, 1e-3


def batches(x: Any, size: int) -> list[Any]:
    """Whole batches of NumPy arrays in the structure of `x`.

    Raises:
        ValueError: If there are too few samples for one.
    """
    count = len(keras.tree.flatten(x)[0])
    if count < size:
        raise ValueError(
            f"There are too few samples for a batch. Received: {count} samples, "
            f"--batch-size {size}. Raise --limit, or take a smaller batch."
        )
    return [
        keras.tree.map_structure(lambda array, at=at: array[at : at + size], x)
        for at in range(0, count - size + 1, size)
    ]


def contestants(model: BranchyModel, batch: Any) -> dict[str, Contestant]:
    """Traced functions from NumPy to NumPy, for the shape of this batch.

    Raises:
        RuntimeError: If Keras does not run on TensorFlow.
    """
    staged = model.early_exit
    import tensorflow as tf

    last = keras.Model(model._inputs_struct, model.output[model.exit_names[-1]])
    thresholds = tf.constant(gate_thresholds(model.thresholds, model.criteria))
    prepare = _prepared(model)
    spec = keras.tree.map_structure(
        lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), prepare(batch)
    )

    @tf.function(autograph=False)
    def last_exit(inputs: Any) -> dict[str, tf.Tensor]:
        probabilities = last(inputs, training=False)
        return {
            "labels": tf.argmax(probabilities, -1),
            "probabilities": tf.cast(probabilities, tf.float32),
        }

    @tf.function(autograph=False)
    def early_exit(inputs: Any) -> dict[str, tf.Tensor]:
        return staged(inputs, thresholds)

    def timed(function: Any) -> Contestant:
        concrete = function.get_concrete_function(spec)
        return lambda x: {name: y.numpy() for name, y in concrete(prepare(x)).items()}

    return {"last_exit": timed(last_exit), "early_exit": timed(early_exit)}


def _prepared(model: BranchyModel) -> Callable[[Any], Any]:
    """From NumPy arrays to tensors in the structure and the dtypes of the inputs."""
    import tensorflow as tf

    def prepare(x: Any) -> Any:
        if isinstance(x, dict) and not isinstance(model._inputs_struct, dict):
            x = [x[tensor.name] for tensor in model.inputs]
        pairs = zip(keras.tree.flatten(x), model.inputs, strict=True)
        flat = [tf.constant(_shaped(array, to.shape), to.dtype) for array, to in pairs]
        return keras.tree.pack_sequence_as(model._inputs_struct, flat)

    return prepare


def _shaped(array: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """With a last axis of size 1 where the model has one, as `predict` takes it."""
    return array[..., None] if array.ndim == len(shape) - 1 else array


def check(
    model: BranchyModel, functions: dict[str, Contestant], batched: Sequence[Any]
) -> list[float]:
    """Compares what will be timed with the rule, applied to the logits of all exits.

    Returns:
        The share of the samples that leaves at each exit.

    Raises:
        RuntimeError: If an answer differs by more than rounding.
    """
    size = len(keras.tree.flatten(batched[0])[0])
    some = batched[: max(1, MOST_CHECKED // size)]
    logits, _ = all_logits(model, iter(some), verbose=0)
    found = {
        name: _joined([function(batch) for batch in some])
        for name, function in functions.items()
    }
    early, last = found["early_exit"], found["last_exit"]
    where = np.arange(len(early["exits"]))
    close: dict[str, Any] = dict(atol=ABSOLUTE, rtol=RELATIVE, equal_nan=True)
    told = np.stack(logits)[early["exits"], where]
    fine = [
        np.allclose(last["probabilities"], _softmax(logits[-1]), **close),
        np.allclose(early["probabilities"], _softmax(told), **close),
        (early["labels"] == told.argmax(-1))[_clear(told)].all(),
        _exits_as_the_rule_says(model, logits, early["exits"]),
    ]
    if not all(fine):
        parts = ("last exit", "probabilities", "labels", "exits")
        wrong = [name for name, good in zip(parts, fine, strict=True) if not good]
        raise RuntimeError(
            f"Early exit and the logits of all exits disagree in {', '.join(wrong)}, so "
            "nothing was timed. Please report it with the model; "
            "KERAS_BRANCHY_CUSTOM_OPS=off tells whether the native gate is at fault."
        )
    counts = np.bincount(early["exits"], minlength=len(model.exit_names))
    return [float(share) for share in counts / len(where)]


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _clear(logits: np.ndarray) -> np.ndarray:
    """Where the best class leads by more than rounding."""
    best = np.sort(_softmax(logits), -1)
    return best[:, -1] - best[:, -2] > ABSOLUTE


def _exits_as_the_rule_says(model: BranchyModel, logits: Any, exits: np.ndarray) -> bool:
    gates = gate_thresholds(model.thresholds, model.criteria)
    scores, labels = score_all(np.stack(logits), model.criteria, model.gates)
    _, expected = decide(scores, labels, model.criteria, gates, model.patience)
    gap = np.abs(scores[:-1] - gates[:, None])
    known = np.isfinite(gates)
    near = (gap[known] <= RELATIVE * np.abs(gates[known, None]) + ABSOLUTE).any(0)
    return bool((exits == expected)[~near].all())


def take_turns(
    functions: dict[str, Contestant], batched: Sequence[Any], seconds: float
) -> dict[str, Any]:
    """Times every function on the same batches in turn, so that slow moments hit all."""
    for batch in (list(batched) * WARM_UP)[:WARM_UP]:
        for function in functions.values():
            function(batch)
    taken: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < FEWEST or time.perf_counter() < end:
        for name in names:
            begin = time.perf_counter()
            functions[name](batched[rounds % len(batched)])
            taken[name].append((time.perf_counter() - begin) * 1e3)
        names.reverse()  # Neither is always the one that finds the caches warm.
        rounds += 1
    found: dict[str, Any] = {name: _spread(times) for name, times in taken.items()}
    ratio = found["last_exit"]["median_ms"] / found["early_exit"]["median_ms"]
    return {**found, "times_as_fast": ratio, "measurements": rounds}


def _spread(times: Sequence[float]) -> dict[str, float]:
    median, lower, upper = (float(x) for x in np.percentile(times, (50, 25, 75)))
    mean = float(np.mean(times))
    return {"median_ms": median, "lower_ms": lower, "upper_ms": upper, "mean_ms": mean}
