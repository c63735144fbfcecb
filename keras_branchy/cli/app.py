# SPDX-License-Identifier: Apache-2.0
"""The commands and what they have in common."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from keras_branchy.cli import bench, calibrate, doctor, evaluate, export, inspect

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    # A mistake is told by `reporting`; anything else is a bug, whose traceback helps.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keras-branchy {sys.modules['keras_branchy'].__version__}")
        raise typer.Exit()


@app.callback()
def _about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Early exits for Keras classifiers: where they can go, what they keep and save.

    Every command takes --json, which prints one JSON object and nothing else on stdout.
    Exit status: 0 fine, 1 a mistake or a request that cannot be met, 2 wrong usage.
    """


app.command("inspect")(inspect.command)
app.command("calibrate")(calibrate.command)
app.command("evaluate")(evaluate.command)
app.command("export")(export.command)
app.command("bench")(bench.command)
app.command("doctor")(doctor.command)
