# SPDX-License-Identifier: Apache-2.0
"""What an export is asked for, refused at once where it cannot be had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["Request"]

LAYOUTS = {
    "litert": ("stages", "signatures", "cascade"),
    "saved_model": ("signatures",),
    "onnx": ("stages",),
}
QUANTIZATIONS = (None, "float16", "dynamic", "int8")


@dataclass(frozen=True)
class Request:
    """The options of one export, checked."""

    path: Path
    format: str
    layout: str
    quantization: str | None
    batch_size: int | None
    class_names: list[str] | None
    preprocessing: Any
    timeout: float
    verbose: bool

    @classmethod
    def make(
        cls,
        model: BranchyModel,
        path: str | Path,
        *,
        format: str,
        layout: str | None,
        quantization: str | None,
        representative_data: Any,
        batch_size: int | None | str,
        class_names: Sequence[str] | None,
        preprocessing: Any,
        timeout: float,
        verbose: Any,
    ) -> Request:
        """Checks the options against each other and against the model."""
        _check_backend()
        if format not in LAYOUTS:
            raise ValueError(
                f"Unknown export format. Received: format={format!r}. Expected one of "
                f"{list(LAYOUTS)}."
            )
        layout = LAYOUTS[format][0] if layout is None else layout
        _check_layout(format, layout)
        _check_quantization(format, layout, quantization, representative_data)
        size = _batch_size(format, layout, batch_size)
        _check_names(class_names, model.num_classes)
        _check_preprocessing(preprocessing)
        _check_layers(model)
        return cls(
            Path(path),
            format,
            layout,
            quantization,
            size,
            None if class_names is None else list(class_names),
            preprocessing,
            float(timeout),
            bool(verbose),
        )


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Export traces TensorFlow functions. Received: Keras' backend "
            f"{keras.backend.backend()!r}. Save the model, and load and export it in a "
            "process with KERAS_BACKEND=tensorflow."
        )


def _check_layout(format: str, layout: str) -> None:
    if layout not in LAYOUTS[format]:
        raise ValueError(
            f"Format {format!r} has no such layout. Received: layout={layout!r}. Expected "
            f"one of {list(LAYOUTS[format])}."
        )


def _check_quantization(format: str, layout: str, quantization: Any, data: Any) -> None:
    if quantization not in QUANTIZATIONS:
        raise ValueError(
            f"Unknown quantization. Received: quantization={quantization!r}. Expected one "
            f"of {list(QUANTIZATIONS)}."
        )
    if quantization is not None and format != "litert":
        raise ValueError(
            "Only LiteRT files are quantised here. Received: quantization="
            f"{quantization!r} with format={format!r}. Use format='litert', or leave "
            "quantization out."
        )
    if quantization == "int8" and layout == "cascade":
        raise ValueError(
            "A cascade cannot be quantised to int8: its thresholds would be rounded and "
            "clamped to the range met in calibration, without a word. Received: "
            "layout='cascade', quantization='int8'. Use layout='signatures' or 'stages', "
            "where the decision stays in float, or quantization='dynamic'."
        )
    if quantization == "int8" and data is None:
        raise ValueError(
            "int8 is calibrated on samples. Received: quantization='int8' without "
            "representative_data. Pass a few hundred held-out samples, best with labels, "
            "so that the thresholds are refitted too."
        )


def _batch_size(format: str, layout: str, batch_size: Any) -> int | None:
    if batch_size == "auto":
        return None if format == "saved_model" else 1
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if batch_size is not None and not (whole and batch_size >= 1):
        raise ValueError(
            "`batch_size` is the number of samples in a call. Received: batch_size="
            f"{batch_size!r}. Expected an integer of at least 1, or None for a free one."
        )
    if layout == "cascade" and batch_size != 1:
        raise ValueError(
            "A cascade decides for one sample at a time. Received: layout='cascade', "
            f"batch_size={batch_size}. Leave batch_size out, or use layout='stages'."
        )
    return batch_size


def _check_names(names: Sequence[str] | None, num_classes: int) -> None:
    if names is None:
        return
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"`class_names` is a list of strings. Received: {names!r}. Pass one name per "
            "class, in the order of the labels."
        )
    if len(names) != num_classes:
        raise ValueError(
            "`class_names` holds one name per class. Received: "
            f"{len(names)} names. Expected {num_classes}, in the order of the labels."
        )


def _check_preprocessing(preprocessing: Any) -> None:
    if not isinstance(preprocessing, (str, dict, type(None))):
        raise ValueError(
            "`preprocessing` is a text or a dict that says what is done to raw data. "
            f"Received: {type(preprocessing).__name__}. Pass for example "
            "{'scale': 1 / 255}."
        )
    try:
        json.dumps(preprocessing, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`preprocessing` is written as JSON. Received: {preprocessing!r}, where "
            f"{error}. Use numbers, strings, lists and dicts only."
        ) from error


def _check_layers(model: BranchyModel) -> None:
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) is not None:
            raise ValueError(
                "A model that Keras has quantised cannot be converted. Received: layer "
                f"'{layer.name}' with {layer.quantization_mode!r}. Export the model as it "
                "was before quantize(), with quantization='int8' or 'dynamic' here."
            )
