# SPDX-License-Identifier: Apache-2.0
"""Tables and numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["count", "heading", "number", "percent", "rule", "size", "table"]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Table:
    """A table whose first `left` columns are names, and the others numbers.

    Numbers are never cut or folded; names are folded where a terminal is narrow.
    """
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        if index < left:
            made.add_column(column, overflow="fold")
        else:
            made.add_column(column, justify="right", overflow="fold")
    for row in rows:
        # As text, since names in brackets are not meant as markup.
        made.add_row(*map(Text, row))
    return made


def heading(text: str) -> Text:
    """A line that says what follows."""
    return Text(text, style="bold")


def percent(share: float | None, digits: int = 2) -> str:
    """A share; a dash for none."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def count(value: float | None) -> str:
    """A number of multiplications or parameters in three or four figures."""
    if value is None:
        return "–"
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:.{3 if value < 10 * unit else 1}f}{name}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Bytes."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value:.0f} B"


def number(value: float | None) -> str:
    """A threshold."""
    return "never" if value is None else f"{value:.4g}"


def rule(criterion: str, threshold: float | None) -> str:
    """When a sample leaves."""
    from keras_branchy.criteria import CRITERIA

    if threshold is None:
        return "never"
    found = CRITERIA[criterion]
    unit = f" {found.unit}" if found.unit == "nats" else ""
    return f"{criterion} {'<' if found.exits_below else '≥'} {number(threshold)}{unit}"
