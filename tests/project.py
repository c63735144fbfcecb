# SPDX-License-Identifier: Apache-2.0
"""The project as tests look at it from outside: its files, and a fresh Python."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_branchy"


def source_files():
    """Files that git tracks, or would; outside git, all but hidden and built ones."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
    )
    if listed.returncode == 0:
        names = listed.stdout.decode().split("\0")
        return sorted({ROOT / name for name in names if (ROOT / name).is_file()})
    skipped = re.compile(r"^(\.(?!ci)|build|dist|.*egg-info)|__pycache__")
    return sorted(
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not skipped.search(str(path.relative_to(ROOT)))
    )


def fresh_python(code):
    """What `code` prints in a Python that has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
