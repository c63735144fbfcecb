# SPDX-License-Identifier: Apache-2.0
"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_branchy.cli.scaling import Pixels

__all__ = [
    "BatchSize",
    "Data",
    "Debug",
    "ImportModules",
    "Json",
    "Limit",
    "Model",
    "PixelScale",
    "Split",
]

_DATA = "Data"

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A .keras file of a BranchyModel.", show_default=False
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A dataset of TensorFlow Datasets (mnist, cifar10), or an .npz file with x "
        "and y.",
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Part of the dataset, such as test or 'train[50000:]'.",
        show_default=False,
        rich_help_panel=_DATA,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Take only so many samples, the first.",
        show_default=False,
        rich_help_panel=_DATA,
    ),
]
PixelScale = Annotated[
    Pixels,
    typer.Option(
        help="What the model takes: unit (0 to 1), signed (-1 to 1), raw (as stored), or "
        "auto: bytes become 0 to 1 unless the model rescales them itself.",
        rich_help_panel=_DATA,
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Samples at a time.", rich_help_panel=_DATA)
]
ImportModules = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="Import this first: it registers the classes of your own layers. Runs its "
        "code. May be repeated.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and only JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error happened.")]
