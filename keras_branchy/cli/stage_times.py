# SPDX-License-Identifier: Apache-2.0
"""What each stage takes alone, for as many samples as reach it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_branchy.cli.timing import prepared

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["StageTimes", "reaching"]

FEWEST = 2  # rounds, however long they take
WARM_UP = 2
SIZES = 3  # numbers of samples at which a stage is measured, beside the whole batch


def reaching(exits: np.ndarray, size: int, count: int) -> np.ndarray:
    """How many samples of each whole batch reach each stage: [batches, N]."""
    batched = exits[: len(exits) // size * size].reshape(-1, size)
    return np.stack([(batched >= k).sum(1) for k in range(count)], axis=1)


class StageTimes:
    """Times of the stages of a model alone, head included and gate not.

    Args:
        model: A `BranchyModel`.
        batch: One batch of NumPy arrays; all of it goes through every stage.
        needed: [batches, N] how many samples reach each stage.
    """

    def __init__(self, model: BranchyModel, batch: Any, needed: np.ndarray):
        self._prepare = prepared(model)
        self._batch = batch
        self._size = len(keras.tree.flatten(batch)[0])
        self._names = [tensor._keras_history.operation.name for tensor in model.inputs]
        self._steps = self._traced(model)
        self.sizes = [_sizes(column, self._size) for column in needed.T]
        self._taken: list[list[float]] = []

    def measure(self, seconds: float) -> None:
        """Times every stage at its numbers of samples, in turn; adds to earlier times."""
        runs = [(k, n) for k, sizes in enumerate(self.sizes) for n in sizes]
        calls = [self._call(k, n) for k, n in runs]
        for call in calls * WARM_UP:
            call()
        end, rounds = time.perf_counter() + seconds, 0
        while rounds < FEWEST or time.perf_counter() < end:
            self._taken.append([_milliseconds(call) for call in calls])
            rounds += 1

    def _medians(self) -> list[np.ndarray]:
        """Milliseconds of each stage at its numbers of samples."""
        ends = np.cumsum([len(sizes) for sizes in self.sizes])[:-1]
        return np.split(np.median(self._taken, axis=0), ends)

    def of(self, needed: np.ndarray) -> np.ndarray:
        """Milliseconds [batches, N] for these numbers of samples; 0 for none.

        Between the numbers that were measured it is interpolated.
        """
        columns = [
            np.interp(column, [0, *sizes], [0.0, *taken])
            for column, sizes, taken in zip(
                needed.T, self.sizes, self._medians(), strict=True
            )
        ]
        return np.stack(columns, axis=1)

    def whole(self) -> list[float]:
        """Milliseconds of each stage for the whole batch."""
        return [float(taken[-1]) for taken in self._medians()]

    def _traced(self, model: BranchyModel) -> list[Any]:
        """A concrete function and its input for every stage."""
        import tensorflow as tf

        flat = keras.tree.flatten(self._prepare(self._batch))
        tensors = dict(zip(self._names, flat, strict=True))
        steps = []
        for stage in model.stages():
            read = {name: tensors[name] for name in stage.input_names}
            spec = {
                name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)
                for name, tensor in read.items()
            }
            run = tf.function(stage, autograph=False).get_concrete_function(spec)
            tensors.update(run(read))
            steps.append((run, read))
        return steps

    def _call(self, index: int, count: int) -> Any:
        run, read = self._steps[index]
        if index == 0:  # as the model is called: from NumPy, of which all reach it
            some = keras.tree.map_structure(lambda array: array[:count], self._batch)
            return lambda: run(self._read(some))["logits"].numpy()
        some = {name: tensor[:count] for name, tensor in read.items()}
        return lambda: run(some)["logits"].numpy()

    def _read(self, batch: Any) -> dict[str, Any]:
        flat = keras.tree.flatten(self._prepare(batch))
        given = dict(zip(self._names, flat, strict=True))
        return {name: given[name] for name in self._steps[0][1]}


def _sizes(column: np.ndarray, size: int) -> list[int]:
    """Rising numbers of samples to measure at: those that occur, and the whole batch."""
    occur = column[column > 0]
    some = np.quantile(occur, np.linspace(0, 1, SIZES)) if len(occur) else []
    return sorted({*(round(float(n)) for n in some), size})


def _milliseconds(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3
