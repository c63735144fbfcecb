# SPDX-License-Identifier: Apache-2.0
"""The file of results: rows one a line, and what they were measured with."""

import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "keras-branchy",
    "keras",
    "tensorflow",
    "numpy",
    "ai-edge-litert",
    "onnxruntime",
)


def write(path, document):
    """As a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(as_text(document), "utf-8")
    os.replace(beside, path)


def as_text(document):
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            rows = ",\n".join(json.dumps(row) for row in value)
            lines.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, indent=1)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def surroundings(torch):
    """Date, versions and hardware; TensorFlow is not imported for it."""
    return {
        "command": " ".join(["python", *map(inside, sys.argv)]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {**{name: version_of(name) for name in PACKAGES}, **of_torch(torch)},
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
    }


def version_of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def of_torch(torch):
    if torch.absent is not None:
        return {"torch": torch.absent}
    code = "import sys; sys.path += sys.argv[1:]; import torch; print(torch.__version__)"
    command = [torch.python, "-c", code, *torch.paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"torch": done.stdout.strip() or "does not import"}


def inside(word):
    """A word of the command: of a path, what is inside the repository, or else its name."""
    path = Path(word).absolute()
    if path.is_relative_to(ROOT) and path.exists():
        return str(path.relative_to(ROOT))
    return Path(word).name


def processor():
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
