# SPDX-License-Identifier: Apache-2.0
"""How sure each exit is, of answers that are right and of those that are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_branchy.criteria import Criterion, check_criterion
from keras_branchy.plots.canvas import CHOSEN, EARLY, WRONG, exit_names, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = ["exit_histograms"]

LEAST_ENTROPY = 1e-6  # nats; well-trained exits are mostly below 0.01


def exit_histograms(
    scores: ArrayLike,
    correct: ArrayLike,
    criteria: Sequence[str],
    *,
    thresholds: Sequence[float | None] | None = None,
    names: Sequence[str] | None = None,
    bins: int = 40,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draws the scores of each exit, right and wrong answers apart, and its threshold.

    A good threshold has few wrong answers on the side that leaves. Counts are on a
    logarithmic axis, and so are entropies, of which those below 1e-6 nats are counted in
    the first bin. Exits of one criterion have the same bins.

    Args:
        scores: [K, n] scores of K exits, each in the unit of its criterion. Scores that
            are not finite are left out, and their number is told.
        correct: [K, n] bool, whether the exit is right.
        criteria: [K] names of criteria.
        thresholds: [K] thresholds, `None` for an exit that nobody takes.
        names: [K] names of the exits; `exit_1`, … by default.
        bins: Number of bins.
        axes: [K] Axes to draw on; new ones in rows of four by default.

    Returns:
        The Axes, one per exit.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the arrays do not fit together, or a criterion is not known.

    Example:

    ```python
    import numpy as np
    from keras_branchy import plots

    rng = np.random.default_rng(0)
    scores = rng.gamma(0.3, 0.5, (2, 1000))
    correct = rng.random((2, 1000)) > scores / 3
    axes = plots.exit_histograms(
        scores, correct, ["entropy", "entropy"], thresholds=[0.05, 0.2]
    )
    axes[0].figure.savefig("exit_histograms.png", transparent=True)
    ```
    """
    values, right = np.asarray(scores, np.float64), np.asarray(correct, bool)
    gates = [None] * len(criteria) if thresholds is None else list(thresholds)
    fit = values.ndim == 2 and values.size and right.shape == values.shape
    if not fit or len({len(values), len(criteria), len(gates)}) > 1:
        raise ValueError(
            "`scores` and `correct` hold a row per exit, and there is a criterion and a "
            f"threshold for each. Received: scores of shape {values.shape}, correct of "
            f"shape {right.shape}, {len(criteria)} criteria and {len(gates)} thresholds. "
            "The last exit takes every sample and has no score to show."
        )
    rules = [check_criterion(name) for name in criteria]
    edges = {name: _edges(values[_of(rules, name)], name, bins) for name in set(criteria)}
    drawn = panels(axes, (3.3, 2.7), exit_names(names, len(values)))
    for index, (ax, rule) in enumerate(zip(drawn, rules, strict=True)):
        _histogram(ax, values[index], right[index], edges[rule.name])
        lost = int((~np.isfinite(values[index])).sum())
        told = f"\n{lost:,} without a score" if lost else ""
        _threshold(ax, rule, gates[index], edges[rule.name], told)
    return drawn


def _of(rules: Sequence[Criterion], name: str) -> list[int]:
    return [index for index, rule in enumerate(rules) if rule.name == name]


def _edges(values: np.ndarray, criterion: str, bins: int) -> np.ndarray:
    """Edges of bins that hold every finite score of this criterion."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    if criterion == "entropy":
        high = max(high, 10 * LEAST_ENTROPY)
        return np.geomspace(max(low, LEAST_ENTROPY), high, bins + 1)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _histogram(ax: Axes, values: np.ndarray, right: np.ndarray, edges: np.ndarray) -> None:
    known = np.isfinite(values)
    inside = np.clip(values, edges[0], edges[-1])
    counts = [np.histogram(inside[known & side], edges)[0] for side in (right, ~right)]
    # Filled where right, outlined where wrong: both show where they overlap.
    ax.stairs(counts[0], edges, fill=True, color=EARLY, alpha=0.8)
    ax.stairs(counts[1], edges, color=WRONG, linewidth=1.8)
    most = max(map(np.max, counts))
    if most:
        ax.set_yscale("log")
    ax.set_ylim(0.7, 2 * max(1, most))


def _threshold(
    ax: Axes, rule: Criterion, threshold: float | None, edges: np.ndarray, told: str
) -> None:
    if rule.name == "entropy":
        ax.set_xscale("log")
    if threshold is None:
        gate = "nobody leaves"
    else:
        sign = "<" if rule.exits_below else "≥"
        gate = f"leaves if {sign} {threshold:.3g}"
        ends = (edges[0], threshold) if rule.exits_below else (threshold, edges[-1])
        if ends[0] < ends[1]:
            ax.axvspan(*ends, color=CHOSEN, alpha=0.15, linewidth=0, zorder=0)
        ax.axvline(threshold, color=CHOSEN, linewidth=1.6)
    unit = ", nats" if rule.unit == "nats" else ""
    ax.set_xlabel(f"{rule.name.replace('_', ' ')}{unit}: {gate}{told}")
    ax.set_ylabel("samples; red: wrong")
