# SPDX-License-Identifier: Apache-2.0
"""Thresholds refitted to quantised files: their scores are not those of Keras."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_branchy.calibration import calibrate
from keras_branchy.export.child import Child
from keras_branchy.export.data import Data
from keras_branchy.export.decisions import decide, score_all
from keras_branchy.export.self_check import answers_of
from keras_branchy.thresholds import gate_thresholds

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["refit"]


def refit(
    model: BranchyModel, folder: Path, child: Child, data: Data
) -> tuple[list[float | None], dict[str, Any]]:
    """Thresholds at which as many samples leave at each exit of the files as in Keras.

    The share that leaves at an exit is what calibration traded against accuracy; it is
    kept, and the thresholds move instead. A disabled exit stays disabled.

    Returns:
        The thresholds, and the manifest's row on how they came about.
    """
    criteria = model.criteria
    previous = model.thresholds
    limits = gate_thresholds(previous, criteria)
    _, exits = decide(
        *score_all(data.logits, criteria, model.gates), criteria, limits, None
    )
    shares = np.bincount(exits, minlength=len(criteria) + 1) / data.count
    scores, labels = _of_files(model, folder, child, data)
    report = calibrate(
        list(scores[:-1]),
        labels == data.labels,
        [float(index) for index in range(1, len(scores) + 1)],
        criteria,
        model.num_classes,
        exit_shares=shares[:-1].tolist(),
    )
    chosen = [
        None if old is None else new
        for old, new in zip(previous or [], report.thresholds, strict=True)
    ]
    row = {
        "samples": data.count,
        "previous_thresholds": previous,
        "shares": [float(share) for share in shares],
    }
    return chosen, row


def _of_files(
    model: BranchyModel, folder: Path, child: Child, data: Data
) -> tuple[np.ndarray, np.ndarray]:
    found = answers_of(folder, child, data.arrays, None)
    if "logits" in found:
        return score_all(found["logits"], model.criteria, model.gates)
    return found["scores"], found["labels"]
