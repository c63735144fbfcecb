# SPDX-License-Identifier: Apache-2.0
"""What exits keep, what they cost, and who leaves where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_branchy.plots.canvas import CHOSEN, EARLY, INK, WRONG, canvas, exit_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = ["accuracy_against_cost", "exit_shares"]

CHARACTER = 1.75  # of the axis of costs, more than a character of a label covers
MOST_DOTS = 80


def accuracy_against_cost(
    costs: ArrayLike,
    accuracies: ArrayLike,
    *,
    chosen: tuple[float, float] | None = None,
    plain: tuple[float, float] | None = None,
    baseline: str = "plain backbone",
    ax: Axes | None = None,
) -> Axes:
    """Draws what can be had by moving the thresholds: accuracy against mean cost.

    Args:
        costs: [n] mean cost of a sample at each choice of thresholds, as a share of the
            baseline's.
        accuracies: [n] accuracy there, a share.
        chosen: Cost and accuracy of the chosen thresholds.
        plain: Cost and accuracy of the baseline.
        baseline: What costs are compared with, such as `"last exit"`.
        ax: Axes to draw on; new ones by default.

    Returns:
        The Axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the arrays are not one-dimensional and of one length.

    Example:

    ```python
    from keras_branchy import plots

    ax = plots.accuracy_against_cost(
        [0.2, 0.3, 1.1], [0.95, 0.98, 0.99], chosen=(0.3, 0.98), plain=(1.0, 0.985)
    )
    ax.figure.savefig("accuracy_against_cost.png", transparent=True)
    ```
    """
    x, y = _percentages(costs=costs, accuracies=accuracies)
    ax = canvas(ax, (6.4, 4.0), "What early exits cost, and what they keep")
    order = np.argsort(x, kind="stable")
    # Where they are few, each choice is seen.
    dot = "o" if len(x) <= MOST_DOTS else ""
    ax.plot(x[order], y[order], color=EARLY, linewidth=2, zorder=2, marker=dot, ms=4)
    curve = x[order], y[order]
    if chosen is not None:
        _mark(ax, curve, chosen, CHOSEN, "o", "chosen", above=False)
    if plain is not None:
        _mark(ax, curve, plain, INK, "D", baseline, above=True)
    ax.set_xlabel(f"mean cost of a sample, heads counted, % of the {baseline}'s")
    ax.set_ylabel("accuracy, %")
    ax.set_xlim(left=0)
    ax.grid(alpha=0.25, color=INK)
    ax.margins(y=0.3)
    return ax


def _mark(
    ax: Axes,
    curve: tuple[np.ndarray, np.ndarray],
    point: tuple[float, float],
    colour: str,
    marker: str,
    name: str,
    above: bool,
) -> None:
    """Marks a point, with its label above or below the curve, where nothing crosses it."""
    x, y = 100 * point[0], 100 * point[1]
    ax.plot([x], [y], marker, color=colour, markersize=9, zorder=3)
    rightwards = x < 60
    text = f"{name}: {y:.2f} %\n{x:.0f} % of the cost"
    width = CHARACTER * max(map(len, text.split("\n")))
    covered = np.linspace(x, x + (width if rightwards else -width), 50)
    heights = [*np.interp(covered, *curve), y]
    ax.annotate(
        text,
        (x, max(heights) if above else min(heights)),
        xytext=(0, 9 if above else -9),
        textcoords="offset points",
        va="bottom" if above else "top",
        ha="left" if rightwards else "right",
        color=colour,
        zorder=4,
    )


def exit_shares(
    shares: ArrayLike,
    accuracies: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws how many samples leave at each exit, and how many of these are right.

    Args:
        shares: [N] share of all samples that leaves at each exit.
        accuracies: [N] accuracy of each exit on those that leave there; NaN for none.
        names: [N] names of the exits; `exit_1`, … by default.
        ax: Axes to draw on; new ones by default.

    Returns:
        The Axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the arrays are not one-dimensional and of one length.

    Example:

    ```python
    from keras_branchy import plots

    ax = plots.exit_shares([0.9, 0.1], [0.998, 0.93])
    ax.figure.savefig("exit_shares.png", transparent=True)
    ```
    """
    left, right = _percentages(shares=shares, accuracies=accuracies)
    names = exit_names(names, len(left))
    ax = canvas(ax, (6.4, 1.2 + 0.34 * len(left)), "Who leaves where")
    places = np.arange(len(left))
    # The coloured part of a bar are the right answers, the red end the wrong ones.
    known = np.isfinite(right)
    correct = np.where(known, left * right / 100, left)
    ax.barh(places, correct, 0.62, color=np.where(known, EARLY, INK).tolist())
    ax.barh(places, left - correct, 0.62, left=correct, color=WRONG)
    for place, share, accuracy in zip(places, left, right, strict=True):
        there = f", {accuracy:.2f} % of them right" if np.isfinite(accuracy) else ""
        inside = share > 55
        ax.annotate(
            f"{share:.1f} %{there}",
            (share, place),
            xytext=(-8 if inside else 6, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            color="white" if inside else INK,
        )
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.set_xlim(0, max(100, left.max()))
    ax.set_xlabel("share of all samples, %; wrong answers are red")
    ax.tick_params(axis="y", length=0)
    return ax


def _percentages(**arrays: ArrayLike) -> list[np.ndarray]:
    """Shares as per cent, checked to be one-dimensional and of one length."""
    found = [100 * np.asarray(array, np.float64) for array in arrays.values()]
    shapes = [array.shape for array in found]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise ValueError(
            f"{' and '.join(f'`{name}`' for name in arrays)} must be one-dimensional, of "
            f"one length and not empty. Received: shapes {shapes}."
        )
    return found
