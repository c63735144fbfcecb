# SPDX-License-Identifier: Apache-2.0
"""Which classes each exit takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_branchy.plots.canvas import EARLY, INK, WRONG, exit_names, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = ["confusion"]

FAINTEST = 0.1  # opacity of a cell that holds anything
MOST_NUMBERED = 12  # classes
CHARACTER = 0.62  # width of a digit, in font sizes


def confusion(
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    exits: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draws a table per exit of the class given against the right one.

    Right answers are blue and wrong ones red. A cell's opacity grows with the square root
    of its share in its row, so that one error in a hundred shows. Up to 12 classes, cells
    hold their number of samples.

    Args:
        labels: [n] right classes, from 0.
        predictions: [N, n] classes given by each of N exits.
        exits: [n] the exit at which each sample leaves. With it, the table of an exit
            counts only those that leave there; without, every exit answers all samples.
        class_names: [C] names of the classes; their indices by default.
        names: [N] names of the exits; `exit_1`, … by default.
        axes: [N] Axes to draw on; new ones in rows of four by default.

    Returns:
        The Axes, one per exit.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the arrays do not fit together, or hold no class indices.

    Example:

    ```python
    import numpy as np
    from keras_branchy import plots

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 500)
    wrong = rng.random((2, 500)) < [[0.2], [0.05]]
    predictions = np.where(wrong, rng.integers(0, 10, (2, 500)), labels)
    axes = plots.confusion(labels, predictions)
    axes[0].figure.savefig("confusion.png", transparent=True)
    ```
    """
    right, given = np.asarray(labels), np.asarray(predictions)
    where = None if exits is None else np.asarray(exits)
    _check(right, given, where, class_names)
    classes = 1 + int(max(right.max(), given.max()))
    shown = list(map(str, range(classes))) if class_names is None else list(class_names)
    tables = []
    for index, row in enumerate(given):
        here = slice(None) if where is None else where == index
        table = np.zeros((len(shown), len(shown)), np.int64)
        np.add.at(table, (right[here], row[here]), 1)
        tables.append(table)
    named = exit_names(names, len(given))
    titles = [_title(name, table) for name, table in zip(named, tables, strict=False)]
    drawn = panels(axes, (3.4, 3.4), titles)
    for ax, table in zip(drawn, tables, strict=True):
        _table(ax, table)
        _classes(ax, shown)
    return drawn


def _check(
    labels: np.ndarray,
    predictions: np.ndarray,
    exits: np.ndarray | None,
    class_names: Sequence[str] | None,
) -> None:
    shapes = {
        labels.shape,
        predictions.shape[1:],
        labels.shape if exits is None else exits.shape,
    }
    integers = labels.dtype.kind in "iu" and predictions.dtype.kind in "iu"
    if labels.ndim != 1 or not predictions.size or len(shapes) > 1 or not integers:
        raise ValueError(
            "`labels` holds a class index per sample, `exits` an exit, and `predictions` "
            f"a row of classes per exit. Received: labels of shape {labels.shape} and "
            f"dtype {labels.dtype}, predictions of shape {predictions.shape} and dtype "
            f"{predictions.dtype}, exits of shape "
            f"{None if exits is None else exits.shape}."
        )
    low = int(min(labels.min(), predictions.min()))
    high = int(max(labels.max(), predictions.max()))
    if low < 0 or (class_names is not None and high >= len(class_names)):
        known = "" if class_names is None else f" for {len(class_names)} class names"
        raise ValueError(
            f"Classes are indices from 0. Received: classes from {low} to {high}{known}."
        )


def _title(name: str, table: np.ndarray) -> str:
    count = table.sum()
    if not count:
        return f"{name}: nobody"
    return f"{name}: {100 * np.trace(table) / count:.2f} % right"


def _table(ax: Axes, table: np.ndarray) -> None:
    from matplotlib.colors import to_rgb

    classes = len(table)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    picture = np.empty((classes, classes, 4))
    picture[..., :3] = to_rgb(WRONG)
    picture[np.arange(classes), np.arange(classes), :3] = to_rgb(EARLY)
    picture[..., 3] = np.where(table, FAINTEST + (1 - FAINTEST) * np.sqrt(shares), 0)
    ax.imshow(picture, interpolation="nearest")
    ax.spines[["top", "right"]].set_visible(True)
    ax.spines[:].set_color(INK)
    if classes > MOST_NUMBERED:
        return
    size = _font_size(ax, table)
    for row, column in zip(*np.nonzero(table), strict=True):
        strong = picture[row, column, 3] > 0.5
        ax.text(
            column,
            row,
            str(table[row, column]),
            ha="center",
            va="center",
            color="white" if strong else INK,
            fontsize=size,
        )


def _font_size(ax: Axes, table: np.ndarray) -> float:
    """Points at which the longest number fits its cell."""
    extent = ax.get_window_extent()
    side = float(min(extent.width, extent.height)) * 72 / ax.figure.dpi
    cell = 0.9 * side / len(table)
    digits = max(2, len(str(table.max())))
    return float(min(9.0, cell / (CHARACTER * digits)))


def _classes(ax: Axes, names: Sequence[str]) -> None:
    if len(names) <= MOST_NUMBERED:
        ticks = list(range(len(names)))
    else:
        step = next(s for s in (5, 10, 20, 50, 100, 200, 500, 1000) if len(names) <= 10 * s)
        ticks = list(range(0, len(names), step))
    shown = [names[tick] for tick in ticks]
    long = max(map(len, shown)) > 2
    ax.set_xticks(ticks, shown, rotation=90 if long and len(names) <= 12 else 0)
    ax.set_yticks(ticks, shown)
    ax.tick_params(length=0 if len(names) <= MOST_NUMBERED else 3)
    ax.set_xlabel("class given")
    ax.set_ylabel("right class")
