# SPDX-License-Identifier: Apache-2.0
"""ONNX: a file per stage. Decisions stay outside: onnxruntime refuses If nodes of ours."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from keras_branchy.export.archive import stage_endpoints, write_archive
from keras_branchy.export.child import Child
from keras_branchy.export.contents import Contents
from keras_branchy.export.data import Data
from keras_branchy.export.request import Request

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["write"]

# The newest that tf2onnx writes for every operation of the stock layers.
_OPSET = 15


def write(
    model: BranchyModel, request: Request, folder: Path, child: Child, data: Data
) -> Contents:
    """Writes `stage_1.onnx`, … into `folder`."""
    missing = [name for name in ("tf2onnx", "onnxruntime") if not _installed(name)]
    if missing:
        raise ImportError(
            f"ONNX files are written by tf2onnx and checked in onnxruntime. Received: no "
            f"{' and no '.join(missing)}. Install them: pip install 'keras-branchy[onnx]'."
        )
    endpoints = stage_endpoints(model, request.batch_size)
    scratch = folder / ".saved_model"
    child.say("tracing the stages")
    write_archive(model, scratch, endpoints)
    files = {str(folder / f"{name}.onnx"): name for name in endpoints}
    found = child.ask(
        "convert_to_onnx", saved_model=str(scratch), files=files, opset=_OPSET
    )
    shutil.rmtree(scratch)
    return Contents.of(folder, found)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
