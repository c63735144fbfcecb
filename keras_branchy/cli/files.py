# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and names that are nearly right."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["check_target", "in_place_of", "meant", "meant_file", "write_json"]


def meant(name: str, known: Iterable[str]) -> str:
    """` Did you mean …?`, where one of the known names is near; else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def meant_file(path: Path) -> str:
    """The same for a file that is not there, among those in its folder."""
    if not path.parent.is_dir():
        return f" There is no folder {path.parent} either."
    return meant(path.name, sorted(other.name for other in path.parent.iterdir()))


def check_target(path: Path | None, option: str, suffix: str) -> None:
    """Refuses a place where a file cannot be put, before anything is computed.

    Raises:
        ValueError: If the name does not end in `suffix`, or there is a folder.
        FileNotFoundError: If the folder that it would be in is missing.
    """
    if path is None:
        return
    if path.suffix != suffix:
        raise ValueError(
            f"{option} names a {suffix} file. Received: {path}. Use "
            f"{path.with_suffix(suffix)}."
        )
    if path.is_dir():
        raise ValueError(f"{option} names a file. Received: {path}, which is a folder.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder for {option}. Received: {path}. Make it first: mkdir -p "
            f"{path.parent}"
        )


@contextlib.contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """A name to write to, on the same disk; the file takes its place when all is well."""
    # A link stays one: what it points to is replaced.
    path = path.resolve()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder, path.name)
        yield unfinished
        os.replace(unfinished, path)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a report."""
    with in_place_of(path) as unfinished:
        text = json.dumps(data, indent=2, allow_nan=False)
        unfinished.write_text(text + "\n", encoding="utf-8")
