# SPDX-License-Identifier: Apache-2.0
"""Two ways to the same labels, checked and then timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_branchy.export.decisions import decide, score_all
from keras_branchy.thresholds import gate_thresholds

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = [
    "batches",
    "check",
    "contestants",
    "exits_by_rule",
    "prepared",
    "summary",
    "take_turns",
]

Contestant = Callable[[Any], dict[str, np.ndarray]]

MOST_CHECKED = 200  # batches
WARM_UP = 3  # rounds
FEWEST = 2  # rounds, however long they take
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
    prepare = prepared(model)
    spec = keras.tree.map_structure(
        lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), prepare(batch)
    )

    @tf.function(autograph=False)
    def plain(inputs: Any) -> dict[str, tf.Tensor]:
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

    return {"plain": timed(plain), "early_exit": timed(early_exit)}


def prepared(model: BranchyModel) -> Callable[[Any], Any]:
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


def exits_by_rule(model: BranchyModel, logits: np.ndarray) -> np.ndarray:
    """Where samples leave [n], from the logits of all exits [N, n, C]."""
    gates = gate_thresholds(model.thresholds, model.criteria)
    scores, labels = score_all(logits, model.criteria, model.gates)
    return decide(scores, labels, model.criteria, gates, model.patience)[1]


def check(
    model: BranchyModel,
    functions: dict[str, Contestant],
    batched: Sequence[Any],
    logits: np.ndarray,
) -> None:
    """Compares what will be timed with the rule, applied to the logits of all exits.

    Args:
        model: The model.
        functions: What will be timed.
        batched: Batches of it.
        logits: [N, n, C], of the samples in these batches, in their order, or of more.

    Raises:
        RuntimeError: If an answer differs by more than rounding.
    """
    some = batched[:MOST_CHECKED]
    found = {
        name: _joined([function(batch) for batch in some])
        for name, function in functions.items()
    }
    early, plain = found["early_exit"], found["plain"]
    where = np.arange(len(early["exits"]))
    logits = logits[:, : len(where)]
    close: dict[str, Any] = dict(atol=ABSOLUTE, rtol=RELATIVE, equal_nan=True)
    told = logits[early["exits"], where]
    # The backbone alone knows nothing of temperatures and ensembles.
    few = some[: max(1, len(some) // 10)]
    last, prepare = model.exit_names[-1], prepared(model)
    backbone = np.concatenate([model.predict_on_batch(prepare(x))[last] for x in few])
    fine = [
        np.allclose(plain["probabilities"][: len(backbone)], backbone, **close),
        np.allclose(early["probabilities"], _softmax(told), **close),
        (early["labels"] == told.argmax(-1))[_clear(told)].all(),
        _exits_as_the_rule_says(model, logits, early["exits"]),
    ]
    if not all(fine):
        parts = ("plain backbone", "probabilities", "labels", "exits")
        wrong = [name for name, good in zip(parts, fine, strict=True) if not good]
        raise RuntimeError(
            f"Early exit and the logits of all exits disagree in {', '.join(wrong)}, so "
            "nothing was timed. Please report it with the model; "
            "KERAS_BRANCHY_CUSTOM_OPS=off tells whether the native gate is at fault."
        )


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _clear(logits: np.ndarray) -> np.ndarray:
    """Where the best class leads by more than rounding."""
    best = np.sort(_softmax(logits), -1)
    return best[:, -1] - best[:, -2] > ABSOLUTE


def _exits_as_the_rule_says(
    model: BranchyModel, logits: np.ndarray, exits: np.ndarray
) -> bool:
    gates = gate_thresholds(model.thresholds, model.criteria)
    scores, _ = score_all(logits, model.criteria, model.gates)
    expected = exits_by_rule(model, logits)
    gap = np.abs(scores[:-1] - gates[:, None])
    known = np.isfinite(gates)
    near = (gap[known] <= RELATIVE * np.abs(gates[known, None]) + ABSOLUTE).any(0)
    return bool((exits == expected)[~near].all())


def take_turns(
    functions: dict[str, Contestant],
    batched: Sequence[Any],
    seconds: float,
    start: int = 0,
) -> dict[str, np.ndarray]:
    """Times every function on the same batches in turn, so that slow moments hit all.

    Returns:
        Milliseconds of each round, by name; round r is on batch start + r, modulo their
        number.
    """
    for index in range(start, start + WARM_UP):
        for function in functions.values():
            function(batched[index % len(batched)])
    taken: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < FEWEST or time.perf_counter() < end:
        for name in names:
            begin = time.perf_counter()
            functions[name](batched[(start + rounds) % len(batched)])
            taken[name].append((time.perf_counter() - begin) * 1e3)
        names.reverse()  # Neither is always the one that finds the caches warm.
        rounds += 1
    return {name: np.array(times) for name, times in taken.items()}


def summary(milliseconds: np.ndarray, size: int) -> dict[str, float]:
    """µs an image: the mean, which throughput follows, and quartiles."""
    each = milliseconds * 1e3 / size
    median, lower, upper = (float(x) for x in np.percentile(each, (50, 25, 75)))
    return {
        "us_per_image": float(each.mean()),
        "median": median,
        "lower": lower,
        "upper": upper,
    }
