# SPDX-License-Identifier: Apache-2.0
"""Whether exits are right as often as they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_branchy.plots.canvas import CHOSEN, EARLY, INK, exit_names, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = ["reliability"]

BELOW = -0.16  # of the axis of accuracy, for the row of counts


def reliability(
    confidences: ArrayLike,
    correct: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    bins: int = 10,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draws how often each exit is right, by how sure it says it is.

    Bars are the accuracy in each bin, over the mean confidence there as a dot; below them
    stands how many samples are in the bin. On the dashed line an exit is as often right as
    it says; bars below it are too sure. The title holds the expected calibration error,

        ECE = Σ_b n_b / n · |accuracy_b - mean confidence_b|

    (Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., 2017, arXiv 1706.04599).

    Args:
        confidences: [N, n] the largest probability of each of N exits.
        correct: [N, n] bool, whether the exit is right.
        names: [N] names of the exits; `exit_1`, … by default.
        bins: Number of bins between 0 and 1, all of one width. One that ends at p holds
            p itself.
        axes: [N] Axes to draw on; new ones in rows of four by default.

    Returns:
        The Axes, one per exit.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the arrays do not fit together, or a confidence is none.

    Example:

    ```python
    import numpy as np
    from keras_branchy import plots

    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.1, 1, (2, 1000))
    correct = rng.random((2, 1000)) < confidences**2
    axes = plots.reliability(confidences, correct)
    axes[0].figure.savefig("reliability.png", transparent=True)
    ```
    """
    sure, right = np.asarray(confidences, np.float64), np.asarray(correct, bool)
    fit = sure.ndim == 2 and sure.size and right.shape == sure.shape
    if not fit or not ((sure >= 0) & (sure <= 1)).all():
        given = f"{sure.min():g} to {sure.max():g}" if sure.size else "none"
        raise ValueError(
            "`confidences` and `correct` hold a row per exit, and a confidence is a "
            f"probability. Received: confidences of shape {sure.shape} from {given}, "
            f"correct of shape {right.shape}. Pass predict(…)[name].max(-1) of each exit."
        )
    names = exit_names(names, len(sure))
    binned = [_binned(*row, bins) for row in zip(sure, right, strict=True)]
    titles = [
        f"{name}: ECE {100 * _error(*found):.1f} %"
        for name, found in zip(names, binned, strict=False)
    ]
    drawn = panels(axes, (3.0, 3.0), titles)
    for ax, found in zip(drawn, binned, strict=True):
        _bars(ax, *found)
    return drawn


def _binned(
    sure: np.ndarray, right: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples, accuracy and mean confidence of each bin; NaN where nobody is."""
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    place = np.searchsorted(inner, sure, side="left")
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(place, right, minlength=bins) / counts
        confidence = np.bincount(place, sure, minlength=bins) / counts
    return counts, accuracy, confidence


def _error(counts: np.ndarray, accuracy: np.ndarray, confidence: np.ndarray) -> float:
    gaps = np.abs(accuracy - confidence)
    return float(np.nansum(counts * gaps) / counts.sum())


def _bars(
    ax: Axes, counts: np.ndarray, accuracy: np.ndarray, confidence: np.ndarray
) -> None:
    bins = len(counts)
    centres = (np.arange(bins) + 0.5) / bins
    ax.bar(centres, np.nan_to_num(accuracy), 0.86 / bins, color=EARLY)
    ax.plot([0, 1], [0, 1], "--", color=INK, linewidth=1.2)
    ax.plot(confidence, accuracy, "o", color=CHOSEN, markersize=4, clip_on=False)
    for centre, count in zip(centres, counts, strict=True):
        if count and bins <= 15:
            ax.text(
                centre,
                BELOW / 2,
                short(int(count)),
                ha="center",
                va="center",
                color=INK,
                fontsize=6,
            )
    ax.set_xlim(0, 1)
    ax.set_ylim(BELOW, 1.04)
    ax.axhline(0, color=INK, linewidth=0.8)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    percent = [f"{100 * tick:.0f}" for tick in ticks]
    ax.set_xticks(ticks, percent)
    ax.set_yticks([BELOW / 2, *ticks], ["n", *percent])
    ax.set_xlabel("how sure, %; n: samples")
    ax.set_ylabel("right, %")


def short(count: int) -> str:
    """A count in at most four characters, up to a billion."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            value = count / unit
            return f"{value:.0f}{name}" if value >= 9.95 else f"{value:.1f}{name}"
    return str(count)
