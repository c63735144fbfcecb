# SPDX-License-Identifier: Apache-2.0
"""What all figures share: Axes without decoration, a palette, and names of exits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "CHOSEN",
    "EARLY",
    "INK",
    "WRONG",
    "canvas",
    "exit_names",
    "legend",
    "panels",
]

INK = "#7a7a7a"  # text and lines: more than 4 to 1 on white and on near-black
EARLY = "#2f81c7"  # what is about exits
CHOSEN = "#d9772b"  # what one should look at
WRONG = "#d1495b"

COLUMNS = 4  # of panels


def canvas(ax: Axes | None, size: tuple[float, float], title: str) -> Axes:
    """`ax`, or new Axes of a size in inches, in ink that shows on any background.

    Raises:
        ImportError: If new Axes are wanted and matplotlib is not installed.
    """
    if ax is None:
        _, ax = _pyplot().subplots(figsize=size, layout="constrained")
        ax.figure.patch.set_alpha(0)
    return _inked(ax, title)


def panels(
    axes: Sequence[Axes] | None, size: tuple[float, float], titles: Sequence[str]
) -> list[Axes]:
    """`axes`, or new Axes in rows of at most four, one for each title, in the same ink.

    Raises:
        ImportError: If new Axes are wanted and matplotlib is not installed.
        ValueError: If the Axes given are not one for each title.
    """
    count = len(titles)
    if axes is None:
        columns = min(count, COLUMNS)
        rows = -(-count // columns)
        figure, made = _pyplot().subplots(
            rows,
            columns,
            figsize=(size[0] * columns, size[1] * rows),
            layout="constrained",
            squeeze=False,
        )
        figure.patch.set_alpha(0)
        axes = list(made.flat)
        for unused in axes[count:]:
            unused.remove()
    else:
        axes = list(getattr(axes, "flat", axes if isinstance(axes, Sequence) else [axes]))
        if len(axes) != count:
            raise ValueError(
                f"`axes` holds one Axes per exit: {count}. Received: {len(axes)}. Leave "
                "it out for new ones."
            )
    return [_inked(ax, title) for ax, title in zip(axes, titles, strict=False)]


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Figures are drawn with matplotlib, which is not installed. Install the "
            "extra: pip install 'keras-branchy[plots]'."
        ) from error
    return plt


def _inked(ax: Axes, title: str) -> Axes:
    ax.patch.set_alpha(0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.tick_params(colors=INK, which="both")
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.set_title(title, loc="left", color=INK)
    return ax


def legend(ax: Axes, entries: dict[str, str], title: str | None = None) -> None:
    """Names colours above the Axes, where no data are."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in entries.items()]
    ax.legend(
        handles=handles,
        title=title,
        labelcolor=INK,
        frameon=False,
        ncols=len(entries),
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
        handlelength=1.0,
        fontsize="small",
    )


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
