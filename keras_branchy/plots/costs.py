# SPDX-License-Identifier: Apache-2.0
"""What each stage costs, and of what it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_branchy.plots.canvas import (
    CHOSEN,
    EARLY,
    INK,
    WRONG,
    canvas,
    exit_names,
    legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = ["cost_stack"]

LABEL_WIDTH = 0.11  # of the widest bar, more than a number covers
COLOURS = (EARLY, CHOSEN, INK, WRONG)
UNITS = ((1e9, "G "), (1e6, "M "), (1e3, "k "))


def cost_stack(
    parts: Mapping[str, ArrayLike],
    *,
    unit: str = "MACs",
    plain: float | None = None,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws what a sample pays in each stage, one below the other like a staircase.

    A stage begins where the one before it ended, so the end of a bar, and the number
    there, is what a sample has paid that leaves at that exit.

    Args:
        parts: What each stage's cost is made of, such as `trunk`, `head` and `gate`: up to
            four names, each with [N] costs of a sample in each stage.
        unit: Their unit: `"MACs"`, `"ms"`, `"bytes"`, …
        plain: Cost of the backbone without exits, drawn as a line.
        names: [N] names of the exits; `exit_1`, … by default.
        ax: Axes to draw on; new ones by default.

    Returns:
        The Axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no parts or more than four, they are not of one length,
            or a cost is negative or not finite.

    Example:

    ```python
    from keras_branchy import cost, networks, plots

    costs = cost.stage_costs(networks.b_lenet())
    parts = {
        "trunk": [row.trunk_macs for row in costs],
        "head": [row.head_macs for row in costs],
    }
    ax = plots.cost_stack(parts, plain=costs[-1].trunk_macs_to_leave)
    ax.figure.savefig("cost_stack.png", transparent=True)
    ```
    """
    values = _checked(parts)
    stages = values.shape[1]
    ends = np.cumsum(values.sum(0))
    scale, prefix = _scale(max(ends[-1], plain or 0), unit)
    values, ends = values / scale, ends / scale
    ax = canvas(ax, (6.4, 1.5 + 0.34 * stages), "What each stage costs")
    places = np.arange(stages)
    left = ends - values.sum(0)
    for row, colour in zip(values, COLOURS, strict=False):
        ax.barh(places, row, 0.62, left=left, color=colour)
        left = left + row
    widest = max(ends[-1], (plain or 0) / scale)
    line = None if plain is None else plain / scale
    for place, (start, end) in enumerate(zip(ends - values.sum(0), ends, strict=True)):
        _number(ax, place, start, end, widest, line)
    if line is not None:
        ax.axvline(line, color=INK, linestyle="--", linewidth=1.2, zorder=0)
    ax.set_yticks(places, exit_names(names, stages))
    ax.invert_yaxis()
    ax.set_xlim(0, 1.04 * widest or 1.0)
    dashed = "" if plain is None else "; dashed: without exits"
    ax.set_xlabel(f"paid by a sample, {prefix}{unit}{dashed}")
    ax.tick_params(axis="y", length=0)
    legend(ax, dict(zip(parts, COLOURS, strict=False)))
    return ax


def _number(
    ax: Axes, place: int, start: float, end: float, widest: float, line: float | None
) -> None:
    """What is paid by the end of a bar: behind it, before it, or on the line's far side."""
    width = LABEL_WIDTH * widest
    sides = [(end, 1), (start, -1)]
    if line is not None:
        sides += [(line, 1)] if line >= end else [(line, -1)] if line <= start else []

    def free(x: float, side: int) -> bool:
        low, high = sorted((x, x + side * width))
        crossed = line is not None and x != line and low <= line <= high
        return low >= 0 and high <= 1.04 * widest and not crossed

    x, side = next((spot for spot in sides if free(*spot)), sides[0])
    ax.annotate(
        f"{end:#.3g}".rstrip("."),
        (x, place),
        xytext=(6 * side, 0),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="center",
        color=INK,
    )


def _checked(parts: Mapping[str, ArrayLike]) -> np.ndarray:
    found = {name: np.asarray(values, np.float64) for name, values in parts.items()}
    shapes = {values.shape for values in found.values()}
    counted = 1 <= len(found) <= len(COLOURS) and len(shapes) == 1
    if not counted or len(next(iter(shapes))) != 1 or not next(iter(shapes))[0]:
        received = {name: values.shape for name, values in found.items()}
        raise ValueError(
            f"`parts` holds one to {len(COLOURS)} named lists of costs, one per stage, all "
            f"of one length. Received: shapes {received}."
        )
    stacked = np.stack(list(found.values()))
    if not np.isfinite(stacked).all() or (stacked < 0).any():
        raise ValueError(
            f"Costs are numbers of at least 0. Received: {stacked.min():g} among `parts`."
        )
    return stacked


def _scale(largest: float, unit: str) -> tuple[float, str]:
    """What to divide by, and its prefix; measured times are left as they are."""
    if unit in ("ms", "µs", "s"):
        return 1.0, ""
    return next(((by, name) for by, name in UNITS if largest >= by), (1.0, ""))
