# SPDX-License-Identifier: Apache-2.0
"""SavedModel: stages as signatures, and staged inference of whole batches as another.

It holds stock operations only, so TensorFlow alone loads it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_branchy.compiled import SWITCH
from keras_branchy.early_exit import build
from keras_branchy.export.archive import (
    Endpoint,
    full,
    input_specs,
    stage_endpoints,
    write_archive,
)
from keras_branchy.export.cascade import THRESHOLDS
from keras_branchy.export.child import Child
from keras_branchy.export.contents import Contents
from keras_branchy.export.data import Data, as_model_inputs
from keras_branchy.export.request import Request

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["write"]

NAME = "saved_model"


def write(
    model: BranchyModel, request: Request, folder: Path, child: Child, data: Data
) -> Contents:
    """Writes `saved_model/` into `folder`."""
    endpoints = stage_endpoints(model, request.batch_size)
    endpoints["full"] = full(model, request.batch_size)
    endpoints["cascade"] = _cascade(model, request.batch_size)
    child.say("tracing the stages and the cascade")
    with _stock_gate():
        write_archive(model, folder / NAME, endpoints)
    return Contents.of(folder, child.ask("describe", path=str(folder / NAME)))


def _cascade(model: BranchyModel, batch_size: int | None) -> Endpoint:
    """Staged inference with the names that every cascade has."""
    import tensorflow as tf

    run = build(model).python_function
    names = {"labels": "label", "exits": "exit", "scores": "score"}

    def call(tensors: dict[str, Any]) -> dict[str, Any]:
        thresholds = tensors[THRESHOLDS]
        answers = run(as_model_inputs(model, tensors), thresholds)
        return {names.get(name, name): value for name, value in answers.items()}

    specs = input_specs(model, batch_size)
    limits = tf.TensorSpec([len(model.criteria)], tf.float32, THRESHOLDS)
    return call, {**specs, THRESHOLDS: limits}


@contextlib.contextmanager
def _stock_gate() -> Iterator[None]:
    """Traces the gate's definition and not the compiled operation."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before
