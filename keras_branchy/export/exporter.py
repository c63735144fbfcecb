# SPDX-License-Identifier: Apache-2.0
"""One export from the request to the folder in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_branchy.export import litert, manifest, onnx, saved_model
from keras_branchy.export.child import Child, child_process
from keras_branchy.export.data import Data
from keras_branchy.export.float32 import in_float32
from keras_branchy.export.folder import new_folder
from keras_branchy.export.refit import refit
from keras_branchy.export.request import Request
from keras_branchy.export.self_check import self_check

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["export_stages"]

_WRITERS = {"litert": litert.write, "saved_model": saved_model.write, "onnx": onnx.write}


def export_stages(
    model: BranchyModel,
    path: str | Path,
    *,
    format: str = "litert",
    layout: str | None = None,
    quantization: str | None = None,
    representative_data: Any = None,
    batch_size: int | None | str = "auto",
    class_names: Sequence[str] | None = None,
    preprocessing: Any = None,
    timeout: float = 900.0,
    verbose: Any = "auto",
) -> dict[str, Any]:
    """Exports a model; `BranchyModel.export_stages` calls this.

    The conversion runs in a process of its own. Afterwards the files are run on samples
    and compared with Keras; only then does the folder appear, whole.

    Args:
        model: The model.
        path: The folder to write; an earlier export there is replaced.
        format: `"litert"` (phones, browsers, fast on a CPU), `"saved_model"` (TensorFlow
            without this package) or `"onnx"` (onnxruntime).
        layout: For LiteRT `"stages"` (the default: `stage_1.tflite`, …), `"signatures"`
            (one file with shared weights, a signature per stage and `full` for all exits)
            or `"cascade"` (one file that takes the decisions itself).
        quantization: For LiteRT: `None`, `"float16"`, `"dynamic"` (weights in int8) or
            `"int8"` (arithmetic too; logits stay float).
        representative_data: Held-out samples, as `calibrate` takes them: arrays, a pair
            (x, labels), or a dataset. They calibrate int8 and feed the self-check; with
            labels, the thresholds are refitted to quantised files, so that as many
            samples leave at each exit as before (not with `patience`).
        batch_size: Samples in a call, fixed in the file; `None` for a free number. 1 by
            default, which phones and browsers need; free for SavedModel.
        class_names: One per class, for the manifest.
        preprocessing: Text or a dict, for the manifest.
        timeout: Seconds that each step of the conversion may take.
        verbose: 0 prints nothing.

    Returns:
        What the manifest says.

    Raises:
        ValueError: If options contradict each other or the model cannot be exported.
        FileExistsError: If there is something else at `path`.
        TimeoutError: If a step takes too long.
        RuntimeError: If the converter fails or crashes, or the files do not give what
            Keras gives. Nothing is left at `path` then but what was there before.
    """
    request = Request.make(
        model,
        path,
        format=format,
        layout=layout,
        quantization=quantization,
        representative_data=representative_data,
        batch_size=batch_size,
        class_names=class_names,
        preprocessing=preprocessing,
        timeout=timeout,
        verbose=verbose,
    )
    model = in_float32(model)
    with (
        new_folder(request.path) as folder,
        child_process(folder, request.timeout, request.verbose) as child,
    ):
        data = Data.of(model, representative_data)
        return _write(model, request, folder, child, data)


def _write(
    model: BranchyModel, request: Request, folder: Path, child: Child, data: Data
) -> dict[str, Any]:
    contents = _WRITERS[request.format](model, request, folder, child, data)
    row = manifest.describe(model, request, contents)
    thresholds = model.thresholds
    manifest.write(row, folder)
    if _refits(model, request, data):
        thresholds, row["recalibration"] = refit(model, folder, child, data)
        row["exits"] = manifest.exits(model, thresholds)
    row["self_check"] = self_check(model, request, folder, child, data, thresholds)
    manifest.write(row, folder)
    child.say(f"{request.path} is complete")
    return row


def _refits(model: BranchyModel, request: Request, data: Data) -> bool:
    return (
        request.quantization is not None
        and data.labels is not None
        and model.thresholds is not None
        # Who leaves by patience does so at any threshold.
        and model.patience is None
    )
