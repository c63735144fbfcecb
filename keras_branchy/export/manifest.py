# SPDX-License-Identifier: Apache-2.0
"""Writing `manifest.json`; `keras_branchy.runner.manifest` reads it."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from keras_branchy import cost
from keras_branchy.criteria import COEFFICIENTS, CRITERIA
from keras_branchy.export.archive import input_specs
from keras_branchy.export.contents import Contents
from keras_branchy.export.request import Request
from keras_branchy.export.self_check import PLACEHOLDER
from keras_branchy.runner.manifest import MANIFEST, VERSION, Manifest, sealed

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["describe", "write"]


def describe(model: BranchyModel, request: Request, contents: Contents) -> dict[str, Any]:
    """All that is known before the files were run."""
    calls = contents.calls
    return {
        "manifest_version": VERSION,
        "model": model.name,
        "format": request.format,
        "layout": request.layout,
        "quantization": request.quantization,
        "batch_size": request.batch_size,
        "num_classes": model.num_classes,
        "class_names": request.class_names,
        "preprocessing": request.preprocessing,
        "patience": model.patience,
        "ensemble": model.ensemble,
        "inputs": [
            _tensor(name, spec)
            for name, spec in input_specs(model, request.batch_size).items()
        ],
        "exits": exits(model, model.thresholds),
        "calibrated": model.thresholds is not None,
        "recalibration": None,
        "stages": _stages(model, request, calls),
        "cascade": calls.get("cascade"),
        "full": calls.get("full"),
        "files": contents.files,
        "self_check": PLACEHOLDER,
        "versions": _versions(request.format),
    }


def write(data: dict[str, Any], folder: Path) -> None:
    """Writes a manifest, once it is one that will be read again."""
    content = sealed(data)
    Manifest.parse(content, folder)
    (folder / MANIFEST).write_bytes(content)


def exits(model: BranchyModel, thresholds: list[float | None] | None) -> list[dict]:
    """The manifest's rows of exits, with the thresholds given."""
    rows: list[dict[str, Any]] = []
    values = thresholds or [None] * len(model.criteria)
    for name, criterion, threshold, gate in zip(
        model.exit_names,
        [*model.criteria, "entropy"],
        [*values, None],
        [*model.gates, None],
        strict=True,
    ):
        rule = CRITERIA[criterion]
        sign = "<" if rule.exits_below else ">="
        rows.append(
            {
                "name": name,
                "criterion": criterion,
                "unit": rule.unit,
                "leaves_if": f"score {sign} threshold",
                "threshold": threshold,
            }
        )
        if gate is not None:
            rows[-1]["coefficients"] = dict(zip(COEFFICIENTS, gate, strict=True))
    rows[-1]["leaves_if"] = "always"
    return rows


def _stages(model: BranchyModel, request: Request, calls: dict) -> list[dict[str, Any]]:
    macs, carried = _costs(model)
    rows = []
    for index, stage in enumerate(model.stages()):
        call = calls.get(stage.model.name)
        if call is not None and request.format == "onnx":
            call = {**call, "signature": None}
        rows.append(
            {
                "name": stage.model.name,
                "exit": stage.exit_name,
                "call": call,
                "live": list(stage.live),
                "bytes_carried": carried[index],
                "macs": macs[index],
            }
        )
    return rows


def _costs(model: BranchyModel) -> tuple[list[int | None], list[int]]:
    """MACs of each stage, None where a layer is not known, and bytes that cross."""
    sizes = {name: _bytes(spec) for name, spec in input_specs(model, 1).items()}
    carried = []
    for stage in model.stages():
        sizes |= {name: _bytes(stage.model.output[name]) for name in stage.output_names}
        carried.append(sum(sizes[name] for name in stage.live))
    try:
        rows = cost.stage_costs(model)
    except ValueError:
        return [None] * len(carried), carried
    return [row.trunk_macs + row.head_macs for row in rows], carried


def _bytes(tensor: Any) -> int:
    size = 1
    for length in tensor.shape[1:]:
        size *= length
    name = keras.backend.standardize_dtype(tensor.dtype)
    return size * (1 if name == "bool" else int("".join(filter(str.isdigit, name))) // 8)


def _tensor(name: str, spec: Any) -> dict[str, Any]:
    shape = list(spec.shape)
    return {"name": name, "shape": shape, "dtype": spec.dtype.name, "quantization": None}


def _versions(form: str) -> dict[str, str]:
    packages = ["keras", "tensorflow", "numpy"]
    packages += {"litert": ["ai-edge-litert"], "onnx": ["tf2onnx", "onnxruntime"]}.get(
        form, []
    )
    found = {"keras_branchy": sys.modules["keras_branchy"].__version__}
    return found | {name: importlib.metadata.version(name) for name in packages}
