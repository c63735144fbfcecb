# SPDX-License-Identifier: Apache-2.0
"""Lists of numbers on a command line, with commas between."""

from __future__ import annotations

import typer

__all__ = ["numbers", "thresholds"]


def numbers(text: str | None, option: str) -> list[float] | None:
    """`"0.5,0.2"` as floats.

    Raises:
        typer.BadParameter: If one is no number.
    """
    given = thresholds(text, option)
    if given is not None and None in given:
        raise typer.BadParameter(_wrong(text, "0.5,0.2"), param_hint=option)
    return given  # type: ignore[return-value]


def thresholds(text: str | None, option: str) -> list[float | None] | None:
    """`"0.05,never"` as floats, with None for an exit that nobody takes.

    Raises:
        typer.BadParameter: If one is neither.
    """
    if text is None:
        return None
    try:
        return [
            None if part.strip() in ("never", "none") else float(part)
            for part in text.split(",")
        ]
    except ValueError:
        raise typer.BadParameter(_wrong(text, "0.05,never"), param_hint=option) from None


def _wrong(text: str | None, example: str) -> str:
    return f"{text!r} are no numbers with commas between. Expected for example {example}."
