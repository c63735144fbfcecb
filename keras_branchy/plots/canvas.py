# SPDX-License-Identifier: Apache-2.0
"""What all figures share: Axes without decoration, a palette, and names of exits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CHOSEN", "EARLY", "INK", "WRONG", "canvas", "exit_names"]

INK = "#7a7a7a"  # text and lines: more than 4 to 1 on white and on near-black
EARLY = "#2f81c7"  # what is about exits
CHOSEN = "#d9772b"  # what one should look at
WRONG = "#d1495b"


def canvas(ax: Axes | None, size: tuple[float, float], title: str) -> Axes:
    """`ax`, or new Axes of a size in inches, in ink that shows on any background.

    Raises:
        ImportError: If new Axes are wanted and matplotlib is not installed.
    """
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                "Figures are drawn with matplotlib, which is not installed. Install the "
                "extra: pip install 'keras-branchy[plots]'."
            ) from error
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
    ax.patch.set_alpha(0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.tick_params(colors=INK)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.set_title(title, loc="left", color=INK)
    return ax


def exit_names(names: Sequence[str] | None, count: int) -> list[str]:
    """`names`, or `exit_1`, … as models call their exits.

    Raises:
        ValueError: If there are fewer names than exits.
    """
    if names is None:
        digits = len(str(count))
        return [f"exit_{index:0{digits}d}" for index in range(1, count + 1)]
    if len(names) < count:
        raise ValueError(
            f"`names` must name every exit. Received: {list(names)} for {count} exits."
        )
    return list(names)
