# SPDX-License-Identifier: Apache-2.0
"""A folder that appears whole or not at all: written beside its place, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from keras_branchy.runner.manifest import MANIFEST

__all__ = ["new_folder", "remove_stale"]

_LOCK = ".lock"
_SUFFIX = ".partial"


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to write into, which becomes `path` when the block ends well.

    An earlier export at `path` stays until then, and stays if the block fails. What a
    killed process has left beside it is removed.

    Raises:
        FileExistsError: If something else than an export or an empty folder is there.
    """
    path = Path(os.path.abspath(path))
    _check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    partial = Path(
        tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent)
    )
    try:
        with open(partial / _LOCK, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield partial
            (partial / _LOCK).unlink()
            _flush(partial)
            _check_free(path)
            _put(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_stale(path: Path) -> None:
    """Removes what an export to `path` left behind when its process was killed."""
    for partial in path.parent.glob(f".{path.name}.*{_SUFFIX}"):
        try:
            with open(partial / _LOCK, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial, ignore_errors=True)
        except OSError:
            continue  # another process is writing it, or has just removed it


def _check_free(path: Path) -> None:
    if not path.exists() or (path / MANIFEST).is_file():
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    raise FileExistsError(
        f"There is something else at the place of the export. Received: {path}. Expected "
        "a new folder, an empty one, or an earlier export, which is replaced. Choose "
        "another path, or remove it."
    )


def _flush(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in [*(os.path.join(place, name) for name in names), place]:
            handle = os.open(name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _put(partial: Path, path: Path) -> None:
    partial.chmod(0o777 & ~_umask())
    if path.exists() and not _exchange(partial, path):
        # Where the kernel cannot exchange two names there is a moment without either.
        previous = partial.with_suffix(".previous")
        path.rename(previous)
        try:
            partial.rename(path)
        except OSError:
            previous.rename(path)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    elif not path.exists():
        partial.rename(path)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step, where the system can: Linux's renameat2."""
    current_folder, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return rename(current_folder, names[0], current_folder, names[1], exchange) == 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
