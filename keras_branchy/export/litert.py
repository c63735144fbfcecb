# SPDX-License-Identifier: Apache-2.0
"""LiteRT: a file per stage, one with a signature per stage, or one that decides itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_branchy.export.archive import Endpoint, full, stage_endpoints, write_archive
from keras_branchy.export.cascade import cascade
from keras_branchy.export.child import Child
from keras_branchy.export.contents import Contents
from keras_branchy.export.data import Data
from keras_branchy.export.request import Request

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["write"]

# TensorFlow's guide asks for 100 to 500; more cost time and change the ranges little.
_CALIBRATION_SAMPLES = 500


def write(
    model: BranchyModel, request: Request, folder: Path, child: Child, data: Data
) -> Contents:
    """Writes the files of a layout into `folder`."""
    endpoints, files = _plan(model, request)
    scratch = folder / ".saved_model"
    child.say("tracing the stages")
    write_archive(model, scratch, endpoints)
    calibration = None
    if request.quantization == "int8":
        calibration = folder / ".calibration"
        _write_calibration(model, request, endpoints, data, calibration)
    found = child.ask(
        "convert",
        saved_model=str(scratch),
        files={str(folder / name): signatures for name, signatures in files.items()},
        quantization=request.quantization,
        calibration=None if calibration is None else str(calibration),
    )
    for place in (scratch, calibration):
        if place is not None:
            shutil.rmtree(place)
    return Contents.of(folder, found)


def _plan(
    model: BranchyModel, request: Request
) -> tuple[dict[str, Endpoint], dict[str, list[str]]]:
    """What is traced, and which signatures go into which file."""
    if request.layout == "cascade":
        return {"cascade": cascade(model)}, {"cascade.tflite": ["cascade"]}
    endpoints = stage_endpoints(model, request.batch_size)
    if request.layout == "stages":
        return endpoints, {f"{name}.tflite": [name] for name in endpoints}
    endpoints["full"] = full(model, request.batch_size)
    return endpoints, {"stages.tflite": list(endpoints)}


def _write_calibration(
    model: BranchyModel,
    request: Request,
    endpoints: dict[str, Endpoint],
    data: Data,
    folder: Path,
) -> None:
    """What each signature reads of the samples: carried tensors are the float stages'."""
    folder.mkdir()
    size = request.batch_size or 1
    tensors = data.first(_CALIBRATION_SAMPLES // size * size or size)
    carried = _run_stages(model, tensors)
    for name, (_, specs) in endpoints.items():
        read = {key: carried[key] for key in specs}
        _check_finite(read)
        calls = len(next(iter(read.values()))) // size
        if not calls:
            raise ValueError(
                "int8 is calibrated on whole batches. Received: "
                f"{data.count} representative samples for batch_size={size}. Pass more "
                "samples, a few hundred at best."
            )
        arrays = {
            key: value[: calls * size].reshape(calls, size, *value.shape[1:])
            for key, value in read.items()
        }
        np.savez(folder / f"{name}.npz", **arrays)


def _run_stages(model: BranchyModel, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    tensors = dict(tensors)
    count = len(next(iter(tensors.values())))
    for stage in model.stages():
        parts = []
        for start in range(0, count, 64):
            rows = {name: tensors[name][start : start + 64] for name in stage.input_names}
            made = stage.model(rows, training=False)
            parts.append({name: np.asarray(made[name]) for name in stage.output_names})
        for name in stage.output_names:
            tensors[name] = np.concatenate([part[name] for part in parts])
    return tensors


def _check_finite(tensors: dict[str, np.ndarray]) -> None:
    """The converter would crash, or take the infinity for the range."""
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(
                "Samples for int8 must be finite in every stage. Received: NaN or infinite "
                f"values in '{name}'. Remove those samples, or export without int8."
            )
