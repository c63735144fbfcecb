# SPDX-License-Identifier: Apache-2.0
"""The traced functions of an export: stages, all exits at once, and the cascade."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from keras_branchy.graph import producer

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel
    from keras_branchy.stages import Stage

__all__ = ["Endpoint", "full", "input_specs", "stage_endpoints", "write_archive"]

Endpoint = tuple[Callable[..., Any], dict[str, Any]]
"""A function of a dict of tensors by name, and their `TensorSpec`s by name."""


def write_archive(model: BranchyModel, path: Path, endpoints: dict[str, Endpoint]) -> None:
    """Writes a SavedModel with one signature per endpoint."""
    archive = keras.export.ExportArchive()
    for stage in model.stages():
        archive.track(stage.model)
    for name, (function, specs) in endpoints.items():
        archive.add_endpoint(name, function, input_signature=[specs])
    archive.write_out(str(path), verbose=False)


def input_specs(model: BranchyModel, batch_size: int | None) -> dict[str, Any]:
    """The model's inputs by name, as stages call them."""
    return {
        producer(tensor).operation.name: _spec(
            producer(tensor).operation.name, tensor, batch_size
        )
        for tensor in model.inputs
    }


def stage_endpoints(model: BranchyModel, batch_size: int | None) -> dict[str, Endpoint]:
    """`stage_1`, …, each from what it reads to its logits and what later ones read."""
    return {
        stage.model.name: (
            _calling(stage),
            {
                name: _spec(name, tensor, batch_size)
                for name, tensor in stage.model.input.items()
            },
        )
        for stage in model.stages()
    }


def full(model: BranchyModel, batch_size: int | None) -> Endpoint:
    """All stages at once: the logits of each exit, by its name."""
    stages = model.stages()

    def run(tensors: dict[str, Any]) -> dict[str, Any]:
        logits = {}
        for stage in stages:
            made = stage(tensors)
            logits[stage.exit_name] = made.pop("logits")
            tensors = {**tensors, **made}
        return logits

    return run, input_specs(model, batch_size)


def _calling(stage: Stage) -> Callable[[dict[str, Any]], dict[str, Any]]:
    # A function of its own, whose one argument ExportArchive can see.
    def run(tensors: dict[str, Any]) -> dict[str, Any]:
        return stage(tensors)

    return run


def _spec(name: str, tensor: Any, batch_size: int | None) -> Any:
    import tensorflow as tf

    shape = (batch_size, *tensor.shape[1:])
    if None in shape[1:]:
        raise ValueError(
            "An exported file has fixed shapes, but for the batch. Received: "
            f"'{name}' of shape {tuple(tensor.shape)}. Build the backbone with every size "
            "of its inputs given, load the weights into it, and export that."
        )
    return tf.TensorSpec(shape, tensor.dtype, name=name)
