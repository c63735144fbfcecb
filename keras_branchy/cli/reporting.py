# SPDX-License-Identifier: Apache-2.0
"""How a command speaks: a result on stdout, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

import typer
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

__all__ = ["Report", "reporting"]

# What the library and the system raise for what a user can mend; anything else is a bug.
MISTAKES = (ValueError, TypeError, OSError, RuntimeError, ImportError)

PATIENCE = 2.0  # seconds without a word
BETWEEN_LINES = 10.0  # seconds, in a log
LOG_WIDTH = 120  # where there is no terminal to ask


class Report:
    """One command's way to speak.

    Attributes:
        as_json: Whether the result is for a machine.
        progress: Console of progress, notes and errors, on stderr.
    """

    def __init__(self, as_json: bool, stdout: TextIO):
        self.as_json = as_json
        self.progress = Console(stderr=True, highlight=False)
        self._console = Console(file=stdout, highlight=False, width=_width(stdout))
        self._stdout = stdout

    def result(
        self, data: dict[str, Any], show: Callable[[dict[str, Any]], Iterable]
    ) -> None:
        """Prints the result, as JSON or as what `show` makes of it."""
        if self.as_json:
            self._stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
            self._stdout.flush()
            return
        for part in show(data):
            self._console.print(part)

    def note(self, text: RenderableType) -> None:
        """Says something beside the result."""
        self.progress.print(text, soft_wrap=not self.progress.is_terminal)

    @contextlib.contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Shows that something is going on, for as long as it does."""
        with self._bar(text, None):
            yield

    def track(self, items: Iterable, text: str, total: int) -> Iterator:
        """Passes items on, and shows how many of `total` are done."""
        with self._bar(text, total) as step:
            for item in items:
                yield item
                step(1)

    @contextlib.contextmanager
    def _bar(self, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        if not self.progress.is_terminal:
            with self._lines(text, total) as step:
                yield step
            return
        counted = [BarColumn(), MofNCompleteColumn()] if total is not None else []
        columns = [SpinnerColumn(), TextColumn("{task.description}"), *counted]
        with Progress(
            *columns, TimeElapsedColumn(), console=self.progress, transient=True
        ) as bar:
            task = bar.add_task(text, total=total)
            yield lambda count: bar.advance(task, count)

    @contextlib.contextmanager
    def _lines(self, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """For logs: what is over in a moment goes without a word."""
        started = told = time.perf_counter()
        done = 0
        timer = threading.Timer(PATIENCE, self.note, [f"{text} ..."])
        timer.daemon = True
        timer.start()

        def step(count: int) -> None:
            nonlocal done, told
            done += count
            if time.perf_counter() - told > BETWEEN_LINES:
                told = time.perf_counter()
                self.note(f"{text}: {done:,} of {total:,}")

        try:
            yield step
        finally:
            timer.cancel()
        seconds = time.perf_counter() - started
        if seconds > PATIENCE:
            self.note(f"{text}: {seconds:.1f} s")

    def error(self, error: BaseException, debug: bool) -> None:
        """Says what went wrong, for the person and for the machine."""
        text = str(error) or type(error).__name__
        if self.as_json:
            data = {"error": {"type": type(error).__name__, "message": text}}
            self._stdout.write(json.dumps(data, indent=2) + "\n")
        if debug:
            self.progress.print_exception(show_locals=False)
        self.note(Text.assemble(("Error: ", "bold red"), text))
        if not debug:
            self.note(Text("--debug shows where it happened.", style="dim"))


@contextlib.contextmanager
def reporting(as_json: bool, debug: bool) -> Iterator[Report]:
    """Gives a `Report`, and turns a user's mistake into a message and exit status 1.

    Whatever else prints meanwhile prints on stderr, so that stdout holds the result only.
    """
    report = Report(as_json, sys.stdout)

    def show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        report.note(Text.assemble(("Warning: ", "bold yellow"), str(message)))

    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            _only_ours()
            warnings.showwarning = show_warning
            yield report
    except typer.BadParameter:
        raise  # usage: typer tells it, with status 2
    except MISTAKES as error:
        report.error(error, debug)
        raise typer.Exit(1) from None


def _only_ours() -> None:
    """Leaves warnings that a user can act on; frameworks deprecate their own calls."""
    if sys.warnoptions:
        return  # python -W has the last word
    warnings.simplefilter("default")
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)


def _width(stream: TextIO) -> int | None:
    asked = stream.isatty() or "COLUMNS" in os.environ
    return None if asked else LOG_WIDTH


def indented(part: RenderableType) -> Padding:
    """A part of a result, set in under its heading."""
    return Padding(part, (0, 0, 0, 2), expand=False)


def unbroken(text: str) -> Text:
    """A line to be copied, which is not folded."""
    return Text(text, no_wrap=True, overflow="ignore")
