# SPDX-License-Identifier: Apache-2.0
"""The switch of the compiled parts, and the script that builds them."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["SWITCH", "build_file", "builder", "mode"]

SWITCH = "KERAS_BRANCHY_CUSTOM_OPS"


def mode() -> str:
    """The switch `KERAS_BRANCHY_CUSTOM_OPS`: `"auto"`, `"on"` or `"off"`.

    Raises:
        ValueError: If it is set to something else.
    """
    value = os.environ.get(SWITCH, "auto")
    if value not in ("auto", "on", "off"):
        raise ValueError(
            f"{SWITCH} must be 'auto', 'on' or 'off'. Received: {value!r}. Unset it "
            "to let the library decide."
        )
    return value


def build_file() -> Path:
    """`build.py`: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for home in (package, package.parent):
        if (file := home / "custom_ops" / "build.py").exists():
            return file
    raise RuntimeError(f"The sources of the native parts are missing beside {package}.")


@functools.cache
def builder() -> ModuleType:
    """The module `custom_ops/build.py`."""
    spec = importlib.util.spec_from_file_location("keras_branchy_build", build_file())
    if spec is None or spec.loader is None:
        raise RuntimeError(f"Cannot import {build_file()}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look it up there
    spec.loader.exec_module(module)
    return module
