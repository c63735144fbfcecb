# SPDX-License-Identifier: Apache-2.0
"""Temperatures and learned gates, fitted before thresholds are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_branchy.cli.reporting import Report

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel
    from keras_branchy.cli.samples import Samples

__all__ = ["check_gates", "fit"]


def fit(
    model: BranchyModel,
    samples: Samples,
    temperatures: bool,
    gates: bool,
    size: int,
    report: Report,
) -> dict[str, Any]:
    """What `fit_temperatures` and `fit_gates` report, by name, in that order."""
    fitted: dict[str, Any] = {}
    if temperatures:
        batches = samples.tracked(size, report, "Fitting temperatures")
        fitted["temperatures"] = model.fit_temperatures(batches, verbose=0)
    if gates:
        batches = samples.tracked(size, report, "Fitting gates")
        fitted["gates"] = model.fit_gates(batches, verbose=0)
    return fitted


def check_gates(model: BranchyModel, path: Path) -> None:
    """Refuses a model whose learned gates cannot decide.

    Raises:
        ValueError: If one was never taught.
    """
    untaught = [
        name
        for name, criterion, gate in zip(
            model.exit_names, model.criteria, model.gates, strict=False
        )
        if criterion == "learned" and gate is None
    ]
    if untaught:
        raise ValueError(
            f"The gates of {', '.join(untaught)} have learned nothing yet. Received: "
            f"{path}. Add --fit-gates, which teaches them on every fifth sample."
        )
