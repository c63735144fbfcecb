# SPDX-License-Identifier: Apache-2.0
"""From stored pixels to what a model was trained on."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np

__all__ = ["Pixels", "rescales", "resolve", "scaled"]


class Pixels(StrEnum):
    """How pixels go into a model."""

    auto = "auto"
    unit = "unit"
    signed = "signed"
    raw = "raw"


def resolve(wanted: Pixels, dtype: Any, model: Any) -> Pixels:
    """What `auto` means for samples of this dtype and for this model."""
    if wanted is not Pixels.auto:
        return wanted
    if np.dtype(dtype) != np.uint8 or rescales(model):
        return Pixels.raw
    return Pixels.unit


def rescales(model: Any) -> bool:
    """Whether the model takes stored values as they are."""
    kinds = {type(layer).__name__ for layer in model._flatten_layers()}
    integers = "int" in model.inputs[0].dtype
    return integers or bool(kinds & {"Rescaling", "Normalization"})


def scaled(x: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Bytes as float32; `raw` leaves them alone."""
    if pixels is Pixels.raw:
        return x
    # Divided first, as training scripts do it, so that not a bit differs.
    unit = x.astype(np.float32) / 255
    return unit if pixels is Pixels.unit else unit * 2 - 1
