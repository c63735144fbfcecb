# SPDX-License-Identifier: Apache-2.0
"""`keras-branchy doctor`: what runs here, and what is missing."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from collections.abc import Iterable
from typing import Any

from keras_branchy.cli.options import Debug, Json
from keras_branchy.cli.reporting import indented, reporting
from keras_branchy.cli.tables import heading, table

__all__ = ["command"]

_RUNTIMES = {
    "litert": ("ai-edge-litert", "runtime"),
    "onnx": ("onnxruntime", "onnx"),
    "saved_model": ("tensorflow", None),
}


def command(json: Json = False, debug: Debug = False) -> None:
    """Says what is installed, what computes the exit gate, and what else could run.

    The first run compiles the native parts where it can, which takes half a minute.
    """
    with reporting(json, debug) as report:
        with report.doing("Looking"):
            found = _look()
        report.result(found, show)


def _look() -> dict[str, Any]:
    import keras

    from keras_branchy import native, native_step
    from keras_branchy.cli import machine

    backend = keras.backend.backend()
    extras = machine.extras()
    return {
        "versions": {
            "keras-branchy": sys.modules["keras_branchy"].__version__,
            "python": platform.python_version(),
            **{x: machine.installed(x) for x in ("tensorflow", "keras", "numpy", "jax")},
        },
        "machine": {
            "processor": machine.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "devices": _devices(),
        },
        "keras_backend": backend,
        "staged_inference": backend == "tensorflow",
        "exit_gate": _plain(native.status()),
        "step": {"native": native_step.problem() is None, "cause": native_step.problem()},
        "extras": {
            name: {"installed": None not in packages.values(), "packages": packages}
            for name, packages in extras.items()
        },
        "runtimes": {
            name: machine.installed(package) for name, (package, _) in _RUNTIMES.items()
        },
        "tfds_data_dir": os.environ.get("TFDS_DATA_DIR"),
    }


def _devices() -> list[str]:
    import tensorflow as tf

    return [device.name for device in tf.config.get_visible_devices()]


def _plain(status: Any) -> dict[str, Any]:
    data = dataclasses.asdict(status)
    library = data["library"]
    return {**data, "library": None if library is None else str(library)}


def show(found: dict[str, Any]) -> Iterable:
    """The same for people."""
    yield heading("Versions")
    rows = [(name, text or "missing") for name, text in found["versions"].items()]
    yield indented(_pairs(rows))
    yield heading("Machine")
    yield indented(
        _pairs(
            [
                ("processor", found["machine"]["processor"]),
                ("cores", str(found["machine"]["cores"])),
                ("TensorFlow's devices", ", ".join(found["machine"]["devices"])),
                ("Keras' backend", _backend(found)),
                ("TFDS_DATA_DIR", found["tfds_data_dir"] or "not set"),
            ]
        )
    )
    yield heading("Exit gate")
    yield indented(_pairs(_gate(found["exit_gate"])))
    yield heading("Extras, installed with pip install 'keras-branchy[NAME]'")
    rows = [
        (name, "installed" if extra["installed"] else f"lacks {_lacking(extra)}")
        for name, extra in found["extras"].items()
    ]
    yield indented(_pairs(rows or [("unknown", "the package itself is not installed")]))
    yield heading("Runtimes for exported stages")
    rows = [_runtime(*item) for item in found["runtimes"].items()]
    yield indented(_pairs([*rows, ("between stages", _step(found["step"]))]))


def _pairs(rows: Iterable[tuple[str, str]]) -> Any:
    made = table(("", ""), rows, left=2)
    made.show_header = False
    return made


def _backend(found: dict[str, Any]) -> str:
    if found["staged_inference"]:
        return found["keras_backend"]
    return (
        f"{found['keras_backend']}: trains and calibrates; staged inference and export "
        "need KERAS_BACKEND=tensorflow"
    )


def _gate(gate: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("runs", "native op" if gate["native"] else "reference, in plain TensorFlow"),
        ("KERAS_BRANCHY_CUSTOM_OPS", gate["mode"]),
        ("library", gate["library"]),
        ("CPU", gate["instruction_set"]),
        ("CUDA", gate["cuda"]),
        ("cause", gate["cause"]),
    ]
    return [(name, text) for name, text in rows if text]


def _step(step: dict[str, Any]) -> str:
    return "native step" if step["native"] else f"NumPy: {step['cause']}"


def _lacking(extra: dict[str, Any]) -> str:
    return ", ".join(name for name, text in extra["packages"].items() if text is None)


def _runtime(name: str, text: str | None) -> tuple[str, str]:
    package, extra = _RUNTIMES[name]
    if text is not None:
        return name, f"{package} {text}"
    return name, f"missing: pip install 'keras-branchy[{extra}]'" if extra else "missing"
