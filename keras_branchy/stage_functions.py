# SPDX-License-Identifier: Apache-2.0
"""A model's stages as the engine of a walk: a traced function for each, in TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_branchy.graph import producer
from keras_branchy.walk import Keep, Rules

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel
    from keras_branchy.stages import Stage

__all__ = ["StageFunctions", "rules_of"]


class StageFunctions:
    """The stages of a model for one walk; it is the engine, and all of the crew."""

    def __init__(self, model: BranchyModel):
        self._largest = 1  # batch so far
        self._stages = model.stages()
        self._names = [producer(tensor).operation.name for tensor in model.inputs]
        settings = model._settings
        if settings.functions is None:
            settings.functions = [_traced(stage) for stage in self._stages]
        self._functions = settings.functions

    @property
    def chunks(self) -> Sequence[int]:
        """At every stage as many as were in the largest batch so far."""
        return [self._largest] * len(self._stages)

    @property
    def engines(self) -> Sequence[StageFunctions]:
        """Itself: TensorFlow has threads of its own."""
        return (self,)

    def each(self, tasks: Sequence[Callable[[], None]]) -> None:
        """See `walk.Crew`."""
        for task in tasks:
            task()

    @contextlib.contextmanager
    def lent(self) -> Iterator[StageFunctions]:
        """Itself, for `streaming.in_order`."""
        yield self

    def named(self, inputs: Any) -> tuple[dict[str, Any], int]:
        """A batch in the structure of the model's inputs, by name, and its size."""
        tensors = keras.tree.flatten(inputs)
        size = len(tensors[0])
        self._largest = max(self._largest, size)
        return dict(zip(self._names, tensors, strict=True)), size

    def run(
        self, stage: int, tensors: Mapping[str, Any], count: int
    ) -> tuple[np.ndarray, Keep]:
        """Logits of a chunk, and what copies rows of the rest; see `walk.Engine`."""
        import tensorflow as tf

        read = [tf.convert_to_tensor(tensors[x]) for x in self._stages[stage].input_names]
        made = self._functions[stage](*read)
        names = self._stages[stage].output_names

        def keep(rows: np.ndarray) -> dict[str, np.ndarray]:
            return {name: made[name].numpy()[rows] for name in names}

        return made["logits"].numpy(), keep


def _traced(stage: Stage) -> Any:
    """A concrete function of the tensors that the stage reads, for any number of rows."""
    import tensorflow as tf

    names = stage.input_names
    specs = [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)
        for tensor in map(stage.model.input.get, names)
    ]

    def run(*tensors: Any) -> dict[str, Any]:
        return stage(dict(zip(names, tensors, strict=True)))

    return tf.function(run, autograph=False).get_concrete_function(*specs)


def rules_of(model: BranchyModel) -> Rules:
    """Who leaves where, by the model's settings."""
    return Rules(
        criteria=[*model.criteria, "entropy"],
        coefficients=[*model.gates, None],
        live=[stage.live for stage in model.stages()],
        num_classes=model.num_classes,
        patience=model.patience,
    )
