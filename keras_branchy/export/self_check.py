# SPDX-License-Identifier: Apache-2.0
"""The files against Keras, before anybody gets them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_branchy.export.child import Child
from keras_branchy.export.data import Data
from keras_branchy.export.decisions import decide, score_all
from keras_branchy.export.request import Request
from keras_branchy.row_gate import softmax
from keras_branchy.thresholds import gate_thresholds

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["PLACEHOLDER", "answers_of", "self_check"]

_SAMPLES = 256

# The largest error of logits, relative to the largest logit. In float32 it is rounding,
# 6e-6 at most on what was measured; wrong weights give more than 1. Of quantised files it
# is the quadratic mean, which random weights raise to 0.3.
_LIMITS = {None: 1e-3, "float16": 0.05, "dynamic": 0.5, "int8": 0.5}

PLACEHOLDER: dict[str, Any] = {
    "samples": 1,
    "data": "random",
    "max_logit_difference": None,
    "max_probability_difference": [],
    "nan": 0,
    "exits_differ": None,
    "labels_differ": None,
    "accuracy": None,
    "keras_accuracy": None,
}


@dataclass(frozen=True)
class _Check:
    model: BranchyModel
    request: Request
    folder: Path
    child: Child
    data: Data
    thresholds: list[float | None] | None  # those of the files

    def row(self) -> dict[str, Any]:
        which = np.arange(max(min(self.data.count, _SAMPLES), self.request.batch_size or 1))
        which %= self.data.count
        arrays = {name: value[which] for name, value in self.data.arrays.items()}
        logits = self.data.logits[:, which]
        labels = None if self.data.labels is None else self.data.labels[which]
        cascade = self.request.layout == "cascade"
        return (self._cascade if cascade else self._staged)(arrays, logits, labels)

    def _staged(self, arrays: dict, logits: np.ndarray, labels: Any) -> dict[str, Any]:
        limits = None
        if self.request.format == "saved_model" and self.thresholds is not None:
            limits = gate_thresholds(self.thresholds, self.model.criteria)
        found = answers_of(self.folder, self.child, arrays, limits)
        count = found["logits"].shape[1]
        logits, labels = logits[:, :count], None if labels is None else labels[:count]
        _check_parity(found["logits"], logits, self.request)
        probabilities = np.abs(softmax(found["logits"]) - softmax(logits))
        decided = self._decided(found["logits"])
        if "exits" in found:
            decided = (found["labels"][:count], found["exits"][:count])
        return {
            **self._common(count, found["logits"]),
            "max_logit_difference": _largest(np.abs(found["logits"] - logits)),
            "max_probability_difference": _largest(probabilities),
            **self._decisions(decided, logits, labels),
        }

    def _cascade(self, arrays: dict, logits: np.ndarray, labels: Any) -> dict[str, Any]:
        criteria, patience = self.model.criteria, self.model.patience
        scores, answers = score_all(logits, criteria, self.model.gates)
        # At the medians both branches run, whatever the thresholds are.
        probe = np.nanmedian(scores[:-1], axis=1).astype(np.float32)
        found = answers_of(self.folder, self.child, arrays, probe)
        _, exits = decide(scores, answers, criteria, probe, patience)
        taken = np.take_along_axis(softmax(logits), exits[None, :, None], 0)[0]
        apart = np.abs(found["probabilities"] - taken)
        same = exits == found["exits"]
        _check_cascade(apart[same], same, self.request)
        rows = [apart[same & (exits == index)] for index in range(len(logits))]
        decided = None
        if self.thresholds is not None:
            limits = gate_thresholds(self.thresholds, criteria)
            found = answers_of(self.folder, self.child, arrays, limits)
            decided = (found["labels"], found["exits"])
        return {
            **self._common(len(exits), found["probabilities"]),
            "max_logit_difference": None,
            "max_probability_difference": [float(x.max(initial=0.0)) for x in rows],
            **self._decisions(decided, logits, labels),
        }

    def _common(self, count: int, values: np.ndarray) -> dict[str, Any]:
        return {
            "samples": count,
            "data": "random" if self.data.random else "representative_data",
            "nan": int(np.isnan(values).sum()),
        }

    def _decided(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        if self.thresholds is None:
            return None
        criteria = self.model.criteria
        limits = gate_thresholds(self.thresholds, criteria)
        scored = score_all(logits, criteria, self.model.gates)
        return decide(*scored, criteria, limits, self.model.patience)

    def _decisions(self, decided: Any, logits: np.ndarray, truth: Any) -> dict[str, Any]:
        if decided is None:
            names = ("exits_differ", "labels_differ", "accuracy", "keras_accuracy")
            return dict.fromkeys(names)
        criteria = self.model.criteria
        limits = gate_thresholds(self.model.thresholds, criteria)
        scored = score_all(logits, criteria, self.model.gates)
        expected = decide(*scored, criteria, limits, self.model.patience)
        known = truth is not None
        return {
            "exits_differ": int((decided[1] != expected[1]).sum()),
            "labels_differ": int((decided[0] != expected[0]).sum()),
            "accuracy": float((decided[0] == truth).mean()) if known else None,
            "keras_accuracy": float((expected[0] == truth).mean()) if known else None,
        }


def self_check(*arguments: Any) -> dict[str, Any]:
    """Compares the files in a folder with Keras; the manifest's row.

    Args:
        *arguments: model, request, folder, child, data, and the thresholds of the files.

    Raises:
        RuntimeError: If the files do not give what Keras gives.
    """
    return _Check(*arguments).row()


def answers_of(
    folder: Path, child: Child, arrays: dict[str, np.ndarray], thresholds: Any
) -> dict[str, np.ndarray]:
    """What the files answer, asked in the child; see `measurement.measure`."""
    samples, output = folder / ".samples.npz", folder / ".answers.npz"
    np.savez(samples, **arrays)  # type: ignore[arg-type]
    child.ask(
        "measure",
        folder=str(folder),
        samples=str(samples),
        output=str(output),
        thresholds=None if thresholds is None else [float(value) for value in thresholds],
    )
    with np.load(output) as found:
        answers = {name: found[name] for name in found.files}
    samples.unlink()
    output.unlink()
    return answers


def _check_parity(found: np.ndarray, expected: np.ndarray, request: Request) -> None:
    limit = _LIMITS[request.quantization]
    for index, (value, wanted) in enumerate(zip(found, expected, strict=True), 1):
        known = np.isfinite(wanted).all(-1)
        scale = max(float(np.abs(wanted[known]).max(initial=0.0)), 1.0)
        error = value[known] - wanted[known]
        if request.quantization is None:
            apart = float(np.abs(error).max(initial=0.0)) / scale
        else:
            apart = float(
                np.sqrt((error**2).mean() / max((wanted[known] ** 2).mean(), 1e-12))
            )
        if not apart <= limit:
            raise RuntimeError(
                f"The exported files do not give what Keras gives. Received: logits of "
                f"exit {index} that are off by {apart:.3g} of their size. Expected: at "
                f"most {limit:g}. Nothing was written. Export without quantization to see "
                "whether a layer or the quantization is the cause."
            )


def _check_cascade(apart: np.ndarray, same: np.ndarray, request: Request) -> None:
    limit = _LIMITS[request.quantization]
    worst = (
        float(apart.max(initial=0.0))
        if request.quantization is None
        else float(apart.mean() if apart.size else 0.0)
    )
    if not worst <= limit or same.mean() < 0.5:
        raise RuntimeError(
            "The exported cascade does not give what Keras gives. Received: probabilities "
            f"off by {worst:.3g}, and {(~same).sum()} of {len(same)} samples at another "
            f"exit. Expected: at most {limit:g} and half. Nothing was written. Export "
            "with layout='stages' to see at which stage it begins."
        )


def _largest(apart: np.ndarray) -> list[float]:
    return [float(np.nanmax(values, initial=0.0)) for values in apart]
