# SPDX-License-Identifier: Apache-2.0
"""Models from `.keras` files, never with `safe_mode=False`."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_branchy.cli.files import meant_file
from keras_branchy.cli.reporting import Report

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["check_calibrated", "load_branchy", "load_model"]


def load_model(path: Path, modules: Sequence[str] | None, report: Report) -> Any:
    """Loads any Keras model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no `.keras` file, or Keras cannot load it.
        ImportError: If one of `modules` cannot be imported.
    """
    _check_file(path)
    with report.doing(f"Loading {path.name}"):
        import keras

        # Registers the classes that its files need.
        from keras_branchy.branchy_model import BranchyModel  # noqa: F401

        for name in modules or ():
            _import(name)
        try:
            return keras.saving.load_model(path, safe_mode=True)
        except Exception as error:  # Keras raises anything here, whatever is in the file.
            raise ValueError(_why_not(path, error)) from error


def load_branchy(path: Path, modules: Sequence[str] | None, report: Report) -> BranchyModel:
    """Loads a model with exits.

    Raises:
        ValueError: If it has none; else as `load_model`.
    """
    model = load_model(path, modules, report)
    from keras_branchy.branchy_model import BranchyModel

    if not isinstance(model, BranchyModel):
        raise ValueError(
            f"This command takes a BranchyModel. Received: {path}, a "
            f"{type(model).__name__} without exits. Add exits to it in Python with "
            "BranchyModel(backbone, exits={tap: ExitBranch(classes)}), train and save it; "
            f"`keras-branchy inspect {path}` says where they can go."
        )
    return model


def check_calibrated(model: BranchyModel, path: Path) -> None:
    """Refuses a model that cannot tell who leaves early.

    Raises:
        ValueError: If it has no thresholds.
    """
    if model.thresholds is None:
        raise ValueError(
            f"The model has no thresholds yet. Received: {path}. Choose them first: "
            f"keras-branchy calibrate {path} DATA --max-accuracy-drop 0.01 --out "
            "calibrated.keras"
        )


def _check_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(
            f"There is no model. Received: {path}.{meant_file(path)} Save one with "
            "model.save('model.keras')."
        )
    if path.is_dir() or not zipfile.is_zipfile(path):
        kind = "a folder" if path.is_dir() else "a file of another format"
        raise ValueError(
            f"Models are read from .keras files. Received: {path}, {kind}. Load it in "
            "Python and save it with model.save('model.keras')."
        )


def _import(name: str) -> None:
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"--import names a Python module. Received: {name}, and {error}. Expected one "
            "on the path or in this folder, without .py."
        ) from error


def _why_not(path: Path, error: Exception) -> str:
    text = str(error)
    if "safe_mode" in text or "unsafe" in text:
        return (
            f"{path} holds code (a Lambda layer), which is never run from a file here. "
            "Replace it by a layer class of your own that is registered with "
            "@keras.saving.register_keras_serializable(), and --import its module."
        )
    if "Could not locate class" in text or "not registered" in text:
        return (
            f"{path} uses a class that Keras does not know: {_first_line(text)} If it is "
            "yours, register it with @keras.saving.register_keras_serializable() and "
            "--import its module."
        )
    return f"Keras cannot load {path}: {_first_line(text)}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason")
