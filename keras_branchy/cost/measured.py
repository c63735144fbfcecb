# SPDX-License-Identifier: Apache-2.0
"""Measured time of each stage on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_branchy.cost.calls import bytes_of, input_specs

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel
    from keras_branchy.stages import Stage

__all__ = ["StageTime", "profile"]

WARM_UP = 5


@dataclass(frozen=True)
class StageTime:
    """Time of one stage with its head and its gate, for a whole batch.

    Attributes:
        exit_name: The exit at the end of the stage.
        batch_size: Samples in the batch, all of which go through the stage.
        milliseconds: Median over the repeats.
        lower: First quartile, ms.
        upper: Third quartile, ms.
    """

    exit_name: str
    batch_size: int
    milliseconds: float
    lower: float
    upper: float


def profile(
    model: BranchyModel,
    batch_size: int = 1,
    repeats: int = 100,
    *,
    input_shape: Any = None,
) -> list[StageTime]:
    """Measures the time of every stage, head and gate included.

    Each stage is a traced TensorFlow function for this batch size. The stages run one
    after another, so that slow moments of the machine fall on all of them; the device is
    waited for before a clock is read.

    Args:
        model: A `BranchyModel`.
        batch_size: Samples at a time.
        repeats: How often every stage is measured, after a warm-up.
        input_shape: As for `count_macs`.

    Returns:
        One `StageTime` per exit.

    Raises:
        RuntimeError: If Keras does not run on TensorFlow.
        ValueError: If a number is not positive, or a size is not known.

    Example:

    ```python
    from keras_branchy import cost, networks

    for row in cost.profile(networks.b_lenet(), batch_size=32, repeats=5):
        print(f"{row.exit_name}: {row.milliseconds:.2f} ms a batch")
    ```
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "`profile` measures TensorFlow functions. Received: the Keras backend "
            f"'{keras.backend.backend()}'. Set KERAS_BACKEND=tensorflow."
        )
    if batch_size < 1 or repeats < 1:
        raise ValueError(
            "`batch_size` and `repeats` must be at least 1. Received: "
            f"batch_size={batch_size}, repeats={repeats}."
        )
    steps = _steps(model, batch_size, input_shape)
    for _ in range(WARM_UP):
        [step() for step in steps]
    taken = np.array([[_milliseconds(step) for step in steps] for _ in range(repeats)])
    quartiles = np.percentile(taken, (50, 25, 75), axis=0).T
    return [
        StageTime(name, batch_size, *map(float, row))
        for name, row in zip(model.exit_names, quartiles, strict=True)
    ]


def _steps(model: BranchyModel, batch_size: int, input_shape: Any) -> list[Callable]:
    """A function without arguments per stage, on inputs made by the stages before it."""
    tensors = _random_inputs(model, batch_size, input_shape)
    steps = []
    for stage, criterion in zip(model.stages(), [*model.criteria, "entropy"], strict=True):
        # The time of a gate does not depend on what it has learned.
        gate = [0.0] * 4 if criterion == "learned" else None
        step = _traced(stage, criterion, gate, tensors)
        made, _ = step()
        tensors.update(made)
        steps.append(step)
    return steps


def _random_inputs(
    model: BranchyModel, batch_size: int, input_shape: Any
) -> dict[str, Any]:
    import tensorflow as tf

    specs = input_specs(model, input_shape)
    rng = np.random.default_rng(0)
    made = {}
    for tensor in model.inputs:
        spec = specs[id(tensor)]
        bytes_of(spec)  # every size must be known
        shape = (batch_size, *spec.shape[1:])
        values = rng.random(shape) if "float" in spec.dtype else np.ones(shape)
        name = tensor._keras_history.operation.name
        made[name] = tf.constant(values, spec.dtype)
    return made


def _traced(
    stage: Stage, criterion: str, gate: list[float] | None, tensors: dict[str, Any]
) -> Callable:
    import tensorflow as tf

    from keras_branchy.exit_gate import exit_gate

    @tf.function
    def run(read: dict[str, tf.Tensor]) -> Any:
        made = stage(read)
        return made, exit_gate(made["logits"], 0.5, criterion, gate)

    read = {name: tensors[name] for name in stage.input_names}
    concrete = run.get_concrete_function(read)
    return lambda: concrete(read)


def _milliseconds(step: Callable) -> float:
    import tensorflow as tf

    tf.test.experimental.sync_devices()
    start = time.perf_counter()
    step()
    tf.test.experimental.sync_devices()
    return (time.perf_counter() - start) * 1e3
