# SPDX-License-Identifier: Apache-2.0
"""`manifest.json`: what an exported model is, read back and checked before it is used.

`manifest.schema.json` beside this module describes the file. Its last entry is a SHA-256 of
the file itself, and it holds one for every other file, so that nothing damaged is handed to
an interpreter, which would crash the process.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from keras_branchy.criteria import COEFFICIENTS
from keras_branchy.runner.consistency import check_consistency
from keras_branchy.runner.schema import violations

__all__ = ["MANIFEST", "VERSION", "Call", "Exit", "Manifest", "StageEntry", "Tensor"]

MANIFEST = "manifest.json"
VERSION = 1
_DIGEST = re.compile(rb'"sha256": "([0-9a-f]{64})"\n}\n\Z')


@dataclass(frozen=True)
class Tensor:
    """A tensor that goes into a file or comes out of it."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True)
class Call:
    """How a computation is asked for: a file, its signature, and names of tensors."""

    file: str
    signature: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Exit:
    """The decision at an exit."""

    name: str
    criterion: str
    unit: str
    leaves_if: str
    threshold: float | None
    coefficients: dict[str, float] | None = None

    @property
    def gate(self) -> list[float] | None:
        """The coefficients of a learned gate, in order."""
        if self.coefficients is None:
            return None
        return [self.coefficients[name] for name in COEFFICIENTS]


@dataclass(frozen=True)
class StageEntry:
    """A stage, its exit, and what crosses to the next."""

    name: str
    exit: str
    call: Call | None
    live: tuple[str, ...]
    bytes_carried: int
    macs: int | None


@dataclass(frozen=True)
class Manifest:
    """A checked manifest and the folder it describes; `data` is all that it says."""

    folder: Path
    data: dict[str, Any]
    exits: tuple[Exit, ...]
    stages: tuple[StageEntry, ...]
    cascade: Call | None
    full: Call | None
    inputs: tuple[Tensor, ...]

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Reads and checks `folder/manifest.json` and looks at every file it names.

        Raises:
            FileNotFoundError: If the folder, the manifest or a file is missing.
            ValueError: If the manifest is damaged, of another version, or contradicts
                itself, or a file lies outside the folder, is truncated or was changed.
        """
        folder = Path(folder)
        manifest = cls.parse(_read(folder), folder)
        for entry in manifest.data["files"]:
            manifest.read(entry["name"])
        return manifest

    @classmethod
    def parse(cls, content: bytes, folder: Path) -> Manifest:
        """Checks the bytes of a manifest, without a look at the files."""
        data = _parse(content, folder / MANIFEST)
        return cls(
            folder=folder,
            data=data,
            exits=tuple(Exit(**row) for row in data["exits"]),
            stages=tuple(
                StageEntry(
                    **{**row, "call": _call(row["call"]), "live": tuple(row["live"])}
                )
                for row in data["stages"]
            ),
            cascade=_call(data["cascade"]),
            full=_call(data["full"]),
            inputs=_tensors(data["inputs"]),
        )

    def read(self, name: str) -> bytes:
        """The bytes of a file that the manifest names, once their hash is right."""
        entry = next(row for row in self.data["files"] if row["name"] == name)
        path = self.folder / PurePosixPath(name)
        _check_inside(path, self.folder, name)
        if not path.is_file():
            raise FileNotFoundError(
                f"The manifest names '{name}', which is missing. Received: "
                f"{self.folder}. Copy every file that export_stages wrote, or export again."
            )
        content = path.read_bytes()
        if len(content) != entry["bytes"]:
            raise ValueError(
                f"'{name}' is truncated or was replaced. Received: {len(content)} bytes. "
                f"Expected: {entry['bytes']}. Copy it again, or export again."
            )
        found = hashlib.sha256(content).hexdigest()
        if found != entry["sha256"]:
            raise ValueError(
                f"'{name}' is not the file that was exported. Received: sha256 {found}. "
                f"Expected: {entry['sha256']}. Copy it again, or export again."
            )
        return content


def sealed(data: dict[str, Any]) -> bytes:
    """`data` as the bytes of a manifest, closed by their own SHA-256."""
    data = {**{key: value for key, value in data.items() if key != "sha256"}}
    text = json.dumps({**data, "sha256": "0" * 64}, indent=2, ensure_ascii=False)
    content = (text + "\n").encode()
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(b"0" * 64 + b'"\n}\n', digest.encode() + b'"\n}\n')


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON schema of a manifest."""
    path = Path(__file__).with_name("manifest.schema.json")
    return json.loads(path.read_text(encoding="utf-8"))


def _read(folder: Path) -> bytes:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no such folder. Received: {folder}. Expected the folder that "
            "model.export_stages(path) wrote."
        )
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(
            f"The folder holds no {MANIFEST}. Received: {folder}. Expected the folder "
            "that model.export_stages(path) wrote."
        )
    return (folder / MANIFEST).read_bytes()


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    digest = _DIGEST.search(content)
    if digest is None:
        raise ValueError(
            f"The manifest is truncated, or export_stages did not write it. Received: "
            f"{path}, {len(content)} bytes, which do not end in their sha256. Copy it "
            "again, or export again."
        )
    blank = content[: digest.start(1)] + b"0" * 64 + content[digest.end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != digest[1]:
        raise ValueError(
            f"The manifest was changed after the export. Received: {path}, whose bytes do "
            "not have the sha256 that it names. Copy it again; to change thresholds pass "
            "them to the runner, to change anything else export again."
        )
    data = json.loads(content)
    version = data.get("manifest_version")
    if version != VERSION:
        raise ValueError(
            f"The manifest is of a version that this release does not read. Received: "
            f"version {version!r}. Expected: {VERSION}. Upgrade keras-branchy, or export "
            "again with this release."
        )
    wrong = [*violations(data, schema()), *check_consistency(data)]
    if wrong:
        raise ValueError(
            f"The manifest does not describe an exported model. Received: {path}, where "
            f"{'; '.join(wrong[:3])}. Export again."
        )
    return data


def _check_inside(path: Path, folder: Path, name: str) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"'{name}' leads out of the folder. Received: a link to {path.resolve()}. "
            f"Expected a file inside {folder}. Copy the file itself there."
        )


def _tensors(rows: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(**{**row, "shape": tuple(row["shape"])}) for row in rows)


def _call(row: dict[str, Any] | None) -> Call | None:
    if row is None:
        return None
    return Call(
        row["file"], row["signature"], _tensors(row["inputs"]), _tensors(row["outputs"])
    )
