# SPDX-License-Identifier: Apache-2.0
"""What the files of an export hold, as they say themselves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Contents"]


@dataclass(frozen=True)
class Contents:
    """Signatures and files, as rows of a manifest.

    Attributes:
        calls: By signature: file, signature, inputs and outputs.
        files: Name, size, hash and operations of every file.
    """

    calls: dict[str, dict[str, Any]]
    files: list[dict[str, Any]]

    @classmethod
    def of(cls, folder: Path, found: dict[str, dict[str, Any]]) -> Contents:
        """From what the child found: by path, `operations` and `signatures`."""
        calls, files = {}, []
        for path, row in found.items():
            name = Path(path).relative_to(folder).as_posix()
            for signature, tensors in row["signatures"].items():
                calls[signature] = {"file": name, "signature": signature, **tensors}
            whole = Path(path)
            parts = [whole] if whole.is_file() else sorted(whole.rglob("*"))
            files += [
                _file(part, folder, row["operations"]) for part in parts if part.is_file()
            ]
        return cls(calls, files)


def _file(path: Path, folder: Path, operations: list[str] | None) -> dict[str, Any]:
    content = path.read_bytes()
    return {
        "name": path.relative_to(folder).as_posix(),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "operations": operations,
    }
