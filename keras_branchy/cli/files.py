# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["check_target", "in_place_of", "write_json"]


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
