# SPDX-License-Identifier: Apache-2.0
"""CalibrationReport: what calibration chose, and what it can be expected to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keras_branchy.criteria import CRITERIA

__all__ = ["CalibrationReport", "OperatingPoint"]


@dataclass(frozen=True)
class OperatingPoint:
    """One choice of thresholds and what it does on the calibration samples.

    Attributes:
        thresholds: One per exit but the last; `None` where nobody leaves.
        accuracy: Share of right answers with early exits.
        cost: Mean cost of a sample, as a share of leaving at the last exit.
        shares: Share of the samples that leaves at each exit, the last included.
    """

    thresholds: list[float | None]
    accuracy: float
    cost: float
    shares: list[float]


@dataclass(frozen=True)
class CalibrationReport:
    """The outcome of `BranchyModel.calibrate`; print it for a table.

    Attributes:
        exit_names: Names of the N exits.
        criteria: Criterion of each exit but the last.
        point: The chosen operating point.
        front: Alternatives of which none is beaten in accuracy and cost, by rising cost.
        samples: Number of calibration samples.
        last_accuracy: Accuracy of the last exit on all of them.
        exit_accuracy: Accuracy of each exit on all of them.
        accuracy_where_taken: Accuracy of each exit on those that leave there.
        exit_costs: Cost of leaving at each exit, as a share of the last.
        max_accuracy_drop: The drop that was allowed, or `None`.
    """

    exit_names: list[str]
    criteria: list[str]
    point: OperatingPoint
    front: list[OperatingPoint]
    samples: int
    last_accuracy: float
    exit_accuracy: list[float]
    accuracy_where_taken: list[float | None]
    exit_costs: list[float]
    max_accuracy_drop: float | None = None

    @property
    def thresholds(self) -> list[float | None]:
        """The chosen thresholds."""
        return list(self.point.thresholds)

    @property
    def accuracy(self) -> float:
        """Accuracy with early exits, on the calibration samples."""
        return self.point.accuracy

    @property
    def shares(self) -> list[float]:
        """Share of the samples that leaves at each exit."""
        return list(self.point.shares)

    @property
    def cost(self) -> float:
        """Mean cost of a sample, as a share of leaving at the last exit."""
        return self.point.cost

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """The report as plain data; also written to `path` where one is given."""
        data = asdict(self)
        if path is not None:
            Path(path).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        return data

    def __str__(self) -> str:
        drop = (self.last_accuracy - self.accuracy) * 100
        allowed = (
            ""
            if self.max_accuracy_drop is None
            else f", {self.max_accuracy_drop * 100:.2f} allowed"
        )
        header = ("exit", "leaves if", "share", "right there", "right on all", "cost")
        rows = [header, *map(self._row, range(len(self.exit_names)))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join(
            [
                f"Calibrated on {self.samples:,} samples: {_percent(self.accuracy)} right "
                f"with early exits, {_percent(self.last_accuracy)} at the last exit "
                f"({drop:.2f} points lost{allowed}).",
                *lines,
                f"Mean cost {_percent(self.cost)} of the whole model: "
                f"{1 / self.cost:.2f} times less.",
            ]
        )

    def _row(self, index: int) -> tuple[str, ...]:
        return (
            self.exit_names[index],
            self._rule(index),
            _percent(self.shares[index]),
            _percent(self.accuracy_where_taken[index]),
            _percent(self.exit_accuracy[index]),
            _percent(self.exit_costs[index]),
        )

    def _rule(self, index: int) -> str:
        if index == len(self.criteria):
            return "it gets here"
        threshold = self.thresholds[index]
        if threshold is None:
            return "never"
        criterion = CRITERIA[self.criteria[index]]
        sign = "<" if criterion.exits_below else "≥"
        unit = f" {criterion.unit}" if criterion.unit == "nats" else ""
        return f"{criterion.name} {sign} {threshold:.4g}{unit}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.2f} %"
