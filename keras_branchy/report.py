# SPDX-License-Identifier: Apache-2.0
"""CalibrationReport: what calibration chose, and what it can be expected to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_branchy.criteria import CRITERIA
from keras_branchy.guarantees import Guarantee

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CalibrationReport", "OperatingPoint"]

HEADER = ("exit", "leaves if", "share", "right there", "right on all", "cost")


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
        target: What was asked for: its name and value.
        guarantee: What holds for samples to come, where a confidence was asked for.
        trunk_cost: The mean cost as published figures count it, heads left out, as a
            share of the whole trunk's; None where it is not known.
        patience: Of the model: who leaves because so many exits agree is counted.
        class_drops: [C] accuracy that each class loses against the last exit, None for a
            class without samples; None where labels are not known.
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
    target: dict[str, Any] = field(default_factory=dict)
    guarantee: Guarantee | None = None
    trunk_cost: float | None = None
    class_drops: list[float | None] | None = None
    patience: int | None = None

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

    def plot(self, ax: Axes | None = None) -> Axes:
        """Accuracy against cost: the front, the chosen point, and the last exit.

        Args:
            ax: Axes to draw on; new ones by default.
        """
        from keras_branchy.plots import accuracy_against_cost

        points = self.front or [self.point]
        return accuracy_against_cost(
            [point.cost for point in points],
            [point.accuracy for point in points],
            chosen=(self.cost, self.accuracy),
            plain=(1.0, self.last_accuracy),
            baseline="last exit",
            ax=ax,
        )

    def __str__(self) -> str:
        rows = self._table()
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([self._summary(), *lines, *self._conclusions()])

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        head, *rows = [
            "".join(f"<{cell}>{escape(text)}</{cell}>" for text in row)
            for cell, row in zip(["th", *["td"] * len(self.exit_names)], self._table(),
                                 strict=True)
        ]  # fmt: skip
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        said = "".join(f"<p>{escape(line)}</p>" for line in self._conclusions())
        return (
            f"<p>{escape(self._summary())}</p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>{said}"
        )

    def _table(self) -> list[tuple[str, ...]]:
        return [HEADER, *map(self._row, range(len(self.exit_names)))]

    def _summary(self) -> str:
        drop = (self.last_accuracy - self.accuracy) * 100
        change = f"{drop:.2f} points lost" if drop >= 0 else f"{-drop:.2f} points gained"
        allowed = (
            ""
            if "max_accuracy_drop" not in self.target
            else f", {self.target['max_accuracy_drop'] * 100:.2f} allowed"
        )
        return (
            f"Calibrated on {self.samples:,} samples: {_percent(self.accuracy)} right "
            f"with early exits, {_percent(self.last_accuracy)} at the last exit "
            f"({change}{allowed})."
        )

    def _conclusions(self) -> list[str]:
        cost = (
            f"Mean cost {_percent(self.cost)} of the whole model: {1 / self.cost:.2f} "
            "times less."
        )
        if self.trunk_cost is not None:
            cost = (
                f"{cost[:-1]} ({_percent(self.trunk_cost)} with heads left out, as "
                "published figures count)."
            )
        lines = [cost]
        drops = {i: d for i, d in enumerate(self.class_drops or []) if d is not None}
        worst = max(drops, key=lambda label: drops[label], default=0)
        if drops.get(worst, 0) > 0:
            lines.append(f"Class {worst} loses most: {100 * drops[worst]:.2f} points.")
        if self.guarantee is not None:
            lines.append(self._promise(self.guarantee))
        return lines

    def _promise(self, guarantee: Guarantee) -> str:
        # What is tested: samples that are lost or have not left, or cost between the
        # first exit's and the last's.
        what = {
            "max_cost": " of the way from the first exit's cost to the last's",
            "exit_shares": " have not left",
        }
        unit = next((what[name] for name in what if name in self.target), "")
        pairs = zip(guarantee.risks, guarantee.limits, strict=True)
        seen = ", ".join(
            f"{_percent(risk)}{unit} where {_percent(limit)} is the limit"
            for risk, limit in pairs
        )
        return (
            f"{guarantee.statement} Tested on {guarantee.samples:,} of the samples, which "
            f"chose nothing: {seen}."
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
        rules, threshold = [], self.thresholds[index]
        if threshold is not None:
            criterion = CRITERIA[self.criteria[index]]
            sign = "<" if criterion.exits_below else "≥"
            unit = f" {criterion.unit}" if criterion.unit == "nats" else ""
            rules.append(f"{criterion.name} {sign} {threshold:.4g}{unit}")
        if self.patience is not None and index + 1 >= self.patience:
            rules.append(f"{self.patience} exits agree")
        return " or ".join(rules) or "never"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.2f} %"
