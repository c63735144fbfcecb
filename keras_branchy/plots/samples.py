# SPDX-License-Identifier: Apache-2.0
"""Samples themselves, the easiest and the hardest of each exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_branchy.plots.canvas import WRONG, canvas, exit_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = ["contact_sheet"]


def contact_sheet(
    images: ArrayLike,
    exits: ArrayLike,
    difficulty: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    predictions: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    columns: int = 12,
    ax: Axes | None = None,
) -> Axes:
    """Shows the easiest and the hardest samples that left at each exit.

    Args:
        images: [n, H, W], [n, H, W, 1] or [n, H, W, 3] in [0, 1].
        exits: [n] index of the exit at which each left.
        difficulty: [n] score by which samples of one exit are ordered, the hardest
            last: for the criterion `entropy` the score itself, for others its negative.
        labels: [n] right classes; with `predictions`, wrong answers are framed and named.
        predictions: [n] classes given.
        names: [N] names of the exits; `exit_1`, … up to the last one used by default.
        columns: Images in a row.
        ax: Axes to draw on; new ones by default.

    Returns:
        The Axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the shapes do not fit together.

    Example:

    ```python
    import numpy as np
    from keras_branchy import plots

    rng = np.random.default_rng(0)
    ax = plots.contact_sheet(rng.random((40, 8, 8)), rng.integers(0, 2, 40), rng.random(40))
    ax.figure.savefig("contact_sheet.png", transparent=True)
    ```
    """
    pictures = _pictures(images)
    exits, difficulty = np.asarray(exits), np.asarray(difficulty)
    if exits.shape != pictures.shape[:1] or difficulty.shape != exits.shape:
        raise ValueError(
            "`exits` and `difficulty` hold one number per image. Received: "
            f"{len(pictures)} images, exits of shape {exits.shape}, difficulty of shape "
            f"{difficulty.shape}."
        )
    names = exit_names(names, int(exits.max(initial=0)) + 1)
    rows = _rows(exits, difficulty, names, columns)
    height, width = pictures.shape[1] + GAP, pictures.shape[2] + GAP
    size = (1.8 + 0.5 * columns, 0.4 + 0.5 * len(rows) * height / width)
    ax = canvas(ax, size, "The easiest and the hardest of each exit")
    sheet = np.zeros((len(rows) * height, columns * width, 4))
    for row, (_, chosen) in enumerate(rows):
        for column, index in enumerate(chosen):
            top, left = row * height, column * width
            tile = sheet[top : top + height - GAP, left : left + width - GAP]
            tile[..., :3], tile[..., 3] = pictures[index], 1
            if labels is not None and predictions is not None:
                given = np.asarray(labels)[index], np.asarray(predictions)[index]
                if given[0] != given[1]:
                    _frame(ax, left, top, width - GAP, height - GAP, given)
    if labels is not None and predictions is not None:
        ax.set_xlabel("framed: wrong, right class → class given")
    ax.imshow(sheet, interpolation="nearest")
    centres = (np.arange(len(rows)) + 0.5) * height - GAP / 2
    ax.set_yticks(centres, [name for name, _ in rows])
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)
    return ax


GAP = 2  # pixels between images


def _rows(
    exits: np.ndarray, difficulty: np.ndarray, names: Sequence[str], columns: int
) -> list[tuple[str, np.ndarray]]:
    """Two rows of image indices per exit, one where few left, none where nobody did."""
    rows = []
    for index, name in enumerate(names):
        here = np.flatnonzero(exits == index)
        here = here[np.argsort(difficulty[here], kind="stable")]
        if len(here) <= columns:
            rows += [(f"{name}, all", here)] if len(here) else []
            continue
        few = min(columns, len(here) // 2)
        rows += [(f"{name}, easiest", here[:few]), (f"{name}, hardest", here[-few:])]
    return rows


def _frame(
    ax: Axes, left: int, top: int, width: int, height: int, given: tuple[Any, Any]
) -> None:
    from matplotlib.patches import Rectangle

    corner = (left - 0.5, top - 0.5)
    ax.add_patch(
        Rectangle(
            corner, width, height, fill=False, color=WRONG, linewidth=2, clip_on=False
        )
    )
    ax.text(
        left + width - 1,
        top + height - 1,
        f"{given[0]}→{given[1]}",
        color="white",
        backgroundcolor=WRONG,
        fontsize=7,
        ha="right",
        va="bottom",
        bbox={"facecolor": WRONG, "edgecolor": "none", "pad": 1},
    )


def _pictures(images: ArrayLike) -> np.ndarray:
    """Images as [n, H, W, 1 or 3]."""
    pictures = np.asarray(images, np.float64)
    if pictures.ndim == 3:
        pictures = pictures[..., None]
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3):
        raise ValueError(
            "`images` must have shape [n, H, W], [n, H, W, 1] or [n, H, W, 3]. Received: "
            f"shape {pictures.shape}."
        )
    return np.clip(pictures, 0, 1)
