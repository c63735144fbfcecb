# SPDX-License-Identifier: Apache-2.0
"""What a sample costs that leaves at each exit: MACs, or measured milliseconds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from keras_branchy.cli.reporting import Report

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["Costs", "budget", "measured_costs"]

UNITS = {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}  # in milliseconds
REPEATS = 100


@dataclass(frozen=True)
class Costs:
    """Milliseconds of a sample that leaves at each exit, in batches of one size.

    Attributes:
        milliseconds: [N] of a sample, all stages up to its exit.
        batch_size: Samples in a batch.
        source: Where they are from.
    """

    milliseconds: list[float]
    batch_size: int
    source: str

    def describe(self) -> dict[str, Any]:
        """For reports."""
        return {
            "unit": "ms",
            "per_exit": self.milliseconds,
            "batch_size": self.batch_size,
            "source": self.source,
        }

    def check_affordable(self, text: str | None) -> None:
        """Refuses a time below the first exit's, in the unit that it was given in.

        Raises:
            ValueError: If it is.
        """
        limit, is_time = budget(text)
        least = self.milliseconds[0]
        if text is None or limit is None or not is_time or limit >= least:
            return
        unit = next(unit for unit in UNITS if text.strip().endswith(unit))
        raise ValueError(
            f"Leaving at the first exit takes {least / UNITS[unit]:.4g} {unit}. Received: "
            f"--max-cost {text}. Allow as much, put the first exit earlier, or give it a "
            "smaller head."
        )

    def __str__(self) -> str:
        each = ", ".join(f"{value:.4g}" for value in self.milliseconds)
        return (
            f"Costs are ms a sample in batches of {self.batch_size}, {self.source}: {each} "
            "by exit."
        )


def budget(text: str | None) -> tuple[float | None, bool]:
    """`"2.5e5"` as MACs, `"0.8ms"` as milliseconds; and whether it is a time.

    Raises:
        typer.BadParameter: If it is neither.
    """
    if text is None:
        return None, False
    number = text.strip().removesuffix("MACs")
    unit = next((unit for unit in UNITS if number.endswith(unit)), None)
    try:
        value = float(number.removesuffix(unit or ""))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise typer.BadParameter(
            f"Expected MACs, such as 250000 or 2.5e5, or a time, such as 0.8ms or 800us. "
            f"Received: {text!r}.",
            param_hint="--max-cost",
        )
    return (value, False) if unit is None else (value * UNITS[unit], True)


def measured_costs(
    model: BranchyModel, profile: Path | None, batch_size: int | None, report: Report
) -> Costs:
    """Reads the times of stages from a profile, or measures them here.

    Raises:
        FileNotFoundError: If there is no such profile.
        ValueError: If it is none, is of another model, or lacks the batch size.
    """
    if profile is not None:
        row = _row(_rows(profile), batch_size, profile)
        names = [stage["exit_name"] for stage in row["stages"]]
        if names != model.exit_names:
            raise ValueError(
                f"The profile is of another model. Received: {profile} with the exits "
                f"{names}. Expected {model.exit_names}. Measure this one: keras-branchy "
                f"bench MODEL DATA --json > {profile}"
            )
        times = [stage["whole_batch_ms"] for stage in row["stages"]]
        return _costs(times, row["batch_size"], f"as {profile.name} has them")
    size = batch_size or 1
    from keras_branchy import cost

    with report.doing(f"Measuring the stages on batches of {size}"):
        rows = cost.profile(model, size, REPEATS)
    return _costs([row.milliseconds for row in rows], size, "measured here")


def _costs(times: Sequence[float], size: int, source: str) -> Costs:
    paid, each = 0.0, []
    for time in times:
        paid += time / size
        each.append(paid)
    return Costs(each, size, source)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(
            f"There is no profile. Received: --profile {path}. Make one: keras-branchy "
            f"bench MODEL DATA --json > {path}"
        )
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["batch_sizes"]
        for row in rows:
            [
                (stage["exit_name"], float(stage["whole_batch_ms"]))
                for stage in row["stages"]
            ]
            int(row["batch_size"])
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(
            f"--profile takes what keras-branchy bench --json prints. Received: {path}, "
            f"and {type(error).__name__}: {error}."
        ) from error
    return rows


def _row(rows: list[dict[str, Any]], batch_size: int | None, path: Path) -> dict[str, Any]:
    sizes = [row["batch_size"] for row in rows]
    wanted = batch_size if batch_size is not None else next(iter(sizes), None)
    if wanted not in sizes:
        raise ValueError(
            f"The profile has no such batch size. Received: --profile-batch-size {wanted} "
            f"with {path}, which has {sizes}."
        )
    return rows[sizes.index(wanted)]
