# SPDX-License-Identifier: Apache-2.0
"""What every exit says of every sample: one pass over held-out data, then thresholds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_branchy.agreement import agreements
from keras_branchy.batches import batches_of
from keras_branchy.calibration import CalibrationReport
from keras_branchy.calibration import calibrate as choose_thresholds
from keras_branchy.criteria import gate_scores
from keras_branchy.held_out import (
    apart,
    labels_of,
    warn_of_broken,
    warn_of_fitted,
    warn_of_guessing,
    warn_of_points,
    warn_of_seen,
)
from keras_branchy.learned_gate import GateReport, area_under_roc, fit_gate
from keras_branchy.targets import TARGETS, Target
from keras_branchy.temperature import (
    TemperatureReport,
    calibration_error,
    fit_temperature,
    negative_log_likelihood,
)

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["all_logits", "calibrate", "fit_gates", "fit_temperatures"]


def all_logits(
    model: BranchyModel,
    data: Any,
    y: Any = None,
    *,
    batch_size: int | None = None,
    verbose: Any = "auto",
    labels_for: str | None = None,
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The logits of every exit for every sample, whether it would leave early or not.

    Args:
        model: The model.
        data: As for `BranchyModel.predict_early`, with labels where they are wanted.
        y: Labels, where `data` is an array.
        batch_size: Samples at a time for arrays, 32 by default.
        verbose: As in `predict`.
        labels_for: What is in want of labels; data without them are refused at once.

    Returns:
        N arrays [n, C] float32 in exit order, and the class labels [n] int64 (one-hot
        labels turned into classes), or None where the data has none.

    Raises:
        ValueError: If labels are no classes, or are not there and wanted.
    """
    if model._settings.all_exits is None:
        model._settings.all_exits = _AllExits(model)
    whole = model._settings.all_exits
    nothing = np.zeros((0, model.num_classes), np.float32)
    logits: list[list[np.ndarray]] = [[nothing] for _ in model.exit_names]
    labels: list[np.ndarray] = []
    for x, batch_labels in batches_of(model, data, y, batch_size, verbose):
        if labels_for is not None:
            labels_of(labels_for, batch_labels, data)
        if len(keras.tree.flatten(x)[0]):
            for kept, value in zip(logits, whole.predict_on_batch(x), strict=True):
                kept.append(value)
        if batch_labels is not None:
            labels.append(_classes(batch_labels, model.num_classes))
    joined = np.concatenate(labels) if labels else None
    return [np.concatenate(kept) for kept in logits], joined


class _AllExits(keras.Model):
    """The stages one after another: the logits of every exit, in exit order."""

    def __init__(self, model: BranchyModel):
        super().__init__(name="all_exits")
        self.stages = model.stages
        # Tracked, so that a jitted call reads the variables anew and not as constants.
        self.models = [stage.model for stage in model.stages()]
        self.names = [tensor._keras_history.operation.name for tensor in model.inputs]

    def call(self, inputs: Any) -> list[Any]:
        tensors = dict(zip(self.names, keras.tree.flatten(inputs), strict=True))
        logits = []
        for stage in self.stages():
            made = stage(tensors)
            logits.append(made.pop("logits"))
            tensors.update(made)
        return logits


def _classes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Class indices [n] from indices [n] or [n, 1], or from one-hot rows [n, C]."""
    if labels.ndim == 2 and labels.shape[1] == num_classes:
        return labels.argmax(-1).astype(np.int64)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    known = np.isin(labels, np.arange(num_classes))
    if labels.ndim != 1 or not known.all():
        example = "" if labels.ndim != 1 else f", with a label {labels[~known][0]}"
        raise ValueError(
            f"Labels must be class indices [B] from 0 to {num_classes - 1}, or one-hot "
            f"rows [B, {num_classes}]. Received: shape={labels.shape}, "
            f"dtype={labels.dtype}{example}."
        )
    return labels.astype(np.int64)


def fit_temperatures(
    model: BranchyModel, data: Any, y: Any, batch_size: int | None, verbose: Any
) -> TemperatureReport:
    """Fits a temperature to every exit's logits, and sets them on the model."""
    data, y = apart(model, data, y)
    warn_of_seen(model, data, "fit_temperatures", "the temperatures are too low for those")
    divided, found = all_logits(
        *(model, data, y),
        batch_size=batch_size,
        verbose=verbose,
        labels_for="fit_temperatures",
    )
    labels = labels_of("fit_temperatures", found, data)
    chosen, rows = [], []
    for name, values, old in zip(
        model.exit_names, divided, model.temperatures, strict=True
    ):
        logits = values if old == 1.0 else values.astype(np.float64) * old
        try:
            chosen.append(fit_temperature(logits, labels))
        except ValueError as error:
            raise ValueError(f"Exit '{name}': {error}") from error
        rows.append(
            [
                measure(logits, labels, temperature)
                for measure in (negative_log_likelihood, calibration_error)
                for temperature in (1.0, chosen[-1])
            ]
        )
    model.temperatures = chosen
    model._settings.fitted.add(data)
    columns = map(list, zip(*rows, strict=True))
    return TemperatureReport(model.exit_names, len(labels), chosen, *columns)


def fit_gates(
    model: BranchyModel, data: Any, y: Any, batch_size: int | None, verbose: Any
) -> GateReport:
    """Fits the learned gates of a model, and sets them on it."""
    if "learned" not in model.criteria:
        raise ValueError(
            "No exit has a learned gate. Received: a model with the criteria "
            f"{model.criteria}. Build it with ExitBranch(…, criterion='learned')."
        )
    data, y = apart(model, data, y)
    warn_of_seen(model, data, "fit_gates", "the gates are too sure of those")
    logits, labels = all_logits(model, data, y, batch_size=batch_size, verbose=verbose)
    answers = np.stack([gate_scores(values)[1] for values in logits])
    right = answers == (answers[-1] if labels is None else labels)
    gates: list[list[float] | None] = [None] * len(model.criteria)
    rows = []
    for index, criterion in enumerate(model.criteria):
        if criterion != "learned":
            continue
        name, of_exit = model.exit_names[index], right[index]
        try:
            gates[index] = found = fit_gate(logits[index], of_exit)
        except ValueError as error:
            raise ValueError(f"Exit '{name}': {error}") from error
        score, _ = gate_scores(logits[index], "learned", found)
        entropy, _ = gate_scores(logits[index])
        areas = [area_under_roc(values, of_exit) for values in (score, -entropy)]
        rows.append((name, found, float(of_exit.mean()), *areas))
    model.gates = gates
    model._settings.fitted.add(data)
    names, *columns = map(list, zip(*rows, strict=True))
    target = "agrees" if labels is None else "right"
    return GateReport(names, right.shape[1], target, *columns)


def calibrate(
    model: BranchyModel,
    data: Any,
    y: Any,
    targets: dict[str, Any],
    costs: Sequence[float] | None,
    batch_size: int | None,
    verbose: Any,
) -> CalibrationReport:
    """Scores every exit once, chooses thresholds, and sets them on the model."""
    # What is asked for wrongly is said before an hour of scoring.
    Target.of(len(model.criteria), **{name: targets[name] for name in TARGETS})
    data, y = apart(model, data, y)
    so = "the thresholds lose more on those than they promise"
    warn_of_seen(model, data, "calibrate", so)
    warn_of_points(targets)
    if targets.get("confidence") is not None:
        warn_of_fitted(model, data)
    logits, found = all_logits(
        *(model, data, y), batch_size=batch_size, verbose=verbose, labels_for="calibrate"
    )
    labels = labels_of("calibrate", found, data)
    warn_of_broken(model.exit_names, logits)
    # The gate compares float32 scores, so thresholds lie between these.
    scores = [
        gate_scores(values, criterion, gate)[0].astype(np.float32)
        for values, criterion, gate in zip(
            logits, model.criteria, model.gates, strict=False
        )
    ]
    answers = np.stack([gate_scores(values)[1] for values in logits])
    if targets["max_disagreement"] is None and targets["exit_shares"] is None:
        warn_of_guessing(model, answers[-1], labels)
    leaving = None
    if model.patience is not None:
        leaving = agreements(np.stack(scores), answers[:-1], model.patience)
    counted, trunk = _exit_costs(model) if costs is None else (costs, None)
    report = choose_thresholds(
        scores,
        answers == labels,
        counted,
        model.criteria,
        model.num_classes,
        agrees=answers == answers[-1],
        labels=labels,
        trunk_costs=trunk,
        leaving=leaving,
        exit_names=model.exit_names,
        **targets,
    )
    model.thresholds = report.thresholds
    return replace(report, patience=model.patience)


def _exit_costs(
    model: BranchyModel,
) -> tuple[Sequence[float], list[float] | None]:
    """MACs of a sample that leaves at each exit, heads counted, and left out."""
    from keras_branchy import cost

    try:
        rows = cost.stage_costs(model)
    except ValueError as error:
        warnings.warn(
            f"The expected cost counts stages, not multiplications: {error}",
            stacklevel=4,
        )
        return [float(index + 1) for index in range(len(model.exit_names))], None
    with_heads = [float(row.macs_to_leave) for row in rows]
    return with_heads, [float(row.trunk_macs_to_leave) for row in rows]
