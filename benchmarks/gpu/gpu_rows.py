# SPDX-License-Identifier: Apache-2.0
"""What a part's program and its runner agree on: rows, reasons, exit statuses.

Standard library only. A part writes each row as soon as it is measured, so that one that
is killed goes on where it was.
"""

import argparse
import ctypes
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
COULD_NOT = 10  # exit status of a part that lacks something
PACKAGES = ("tensorflow", "keras", "numpy", "torch", "triton", "jax", "jaxlib", "cupy")


class CouldNotRunError(Exception):
    """Something that the part needs is not here; the text says what."""


def need(module):
    """The module, or what is missing.

    Raises:
        CouldNotRunError: If it cannot be imported.
    """
    try:
        return __import__(module, fromlist=["_"])
    except Exception as error:  # a broken installation is as good as none
        raise CouldNotRunError(f"{module} cannot be imported: {short(error)}") from error


def short(error):
    """An exception in one line, without this machine's paths."""
    text = " ".join(str(error).split())
    for place in (str(ROOT), str(Path.home())):
        text = text.replace(place, "…")
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__


# ---- Files ---------------------------------------------------------------------------
def write_json(path, value):
    """Writes all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", "utf-8")
    os.replace(draft, path)


def read_json(path):
    """The value, or None where there is no whole file."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def digest_of(patterns, root=ROOT):
    """A digest of the files that `patterns` name."""
    digest = hashlib.sha256()
    for path in sorted({path for each in patterns for path in root.glob(each)}):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Rows:
    """The rows of a part, each written at once and kept by the next call.

    `stamp` is what they depend on: rows of another stamp are not kept.
    """

    def __init__(self, path, stamp, rehearsal):
        self.path, self.rehearsal = Path(path), rehearsal
        before = read_json(self.path) or {}
        self.header = {"stamp": stamp, "rehearsal": rehearsal}
        same = all(before.get(key) == value for key, value in self.header.items())
        self.rows = before["rows"] if same else []

    def has(self, **key):
        """Whether a row of this key is there."""
        return any(key.items() <= row.items() for row in self.rows)

    def find(self, **key):
        """All rows of this key."""
        return [row for row in self.rows if key.items() <= row.items()]

    def add(self, **row):
        """Adds a row, prints it, and writes the file."""
        if self.rehearsal:
            row["rehearsal"] = True
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        write_json(self.path, {**self.header, "made_with": made_with(), "rows": self.rows})


# ---- Where it ran --------------------------------------------------------------------
def driver():
    """The GPUs and the driver as `nvidia-smi` names them; empty without one."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def made_with():
    """Date, hardware, driver and versions."""
    global _made_with
    if _made_with is None:
        versions = {}
        for name in PACKAGES:
            for package in (name, "cupy-cuda13x") if name == "cupy" else (name,):
                try:
                    versions[name] = metadata.version(package)
                except metadata.PackageNotFoundError:
                    continue
        _made_with = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "gpus": driver(),
            "processor": processor(),
            "python": platform.python_version(),
            "versions": versions,
        }
    return _made_with


_made_with = None


def processor():
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def need_gpu():
    """Says why no CUDA program can run here.

    Raises:
        CouldNotRunError: Without a driver or a device.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise CouldNotRunError(
            "there is no NVIDIA driver: libcuda.so.1 cannot be loaded"
        ) from error
    count = ctypes.c_int(0)
    status = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        raise CouldNotRunError(f"the NVIDIA driver shows no GPU (CUresult {status})")


# ---- A part's program ----------------------------------------------------------------
def options(parser=None):
    """The options that the runner gives to every part."""
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--stamp", default="")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--carried", type=Path)
    return parser


def run(main, parser=None):
    """Runs a part's `main(args, rows)`, and ends the process with its exit status."""
    die_with_parent()
    args = options(parser).parse_args()
    rows = Rows(args.rows, args.stamp, args.rehearse)
    try:
        failures = main(args, rows)
    except CouldNotRunError as error:
        print(f"COULD NOT RUN: {error}", flush=True)
        sys.exit(COULD_NOT)
    except Exception as error:
        traceback.print_exc()
        print(f"FAILED: {short(error)}", flush=True)
        sys.exit(1)
    for failure in failures or []:
        print(f"FAILED: {failure}", flush=True)
    sys.exit(1 if failures else 0)


def die_with_parent():
    """Linux ends this process when the one that started it is gone."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
