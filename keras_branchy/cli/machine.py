# SPDX-License-Identifier: Apache-2.0
"""This machine and what is installed on it."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

__all__ = ["describe", "extras", "installed", "processor"]


def describe() -> dict[str, Any]:
    """What a time was measured on."""
    import tensorflow as tf

    found = tf.config.get_visible_devices("GPU")
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in found
    ]
    cores = len(os.sched_getaffinity(0))
    parts = [f"{cores} cores of {processor()}", *gpus]
    parts += [f"{name} {installed(name)}" for name in ("tensorflow", "keras")]
    return {
        "cores": cores,
        "processor": processor(),
        "gpus": gpus,
        "tensorflow": installed("tensorflow"),
        "keras": installed("keras"),
        "summary": ", ".join(parts),
    }


def processor() -> str:
    """The CPU's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    """A package's version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def extras() -> dict[str, dict[str, str | None]]:
    """For each extra that people use, its packages and their versions."""
    try:
        lines = requires("keras-branchy") or []
    except PackageNotFoundError:
        return {}
    found: dict[str, dict[str, str | None]] = {}
    for line in lines:
        named = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if named is None or named[1] in ("test", "dev"):
            continue
        package = re.match(r"[A-Za-z0-9._-]+", line)
        if package is not None:
            found.setdefault(named[1], {})[package[0]] = installed(package[0])
    return found
