# SPDX-License-Identifier: Apache-2.0
"""The compiled exit gate: found, checked and loaded here; its sources are `custom_ops`.

`KERAS_BRANCHY_CUSTOM_OPS` is the one switch: `auto` (the default) uses the op where it
can be had and warns once where not, `on` insists on it, `off` never looks for it.
Where the op is not there yet, the first use builds it: g++ needed, half a minute, once.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_branchy.compiled import SWITCH, build_file, builder, mode

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["Status", "exit_gate", "in_xla_context", "load", "mode", "status"]

_lock = threading.Lock()


@dataclass(frozen=True)
class Status:
    """What computes the exit gate in this process, and why; `str` is a report.

    Attributes:
        mode: The switch: `"auto"`, `"on"` or `"off"`.
        native: Whether the compiled op runs (outside XLA).
        library: The op's file, if it was loaded.
        instruction_set: What the CPU kernel uses: `"AVX-512"`, `"AVX2"`, `"baseline"`.
        cuda: `"ready"`, or why the CUDA kernel does not run.
        cause: Why the reference runs, if it does.
    """

    mode: str
    native: bool
    library: Path | None = None
    instruction_set: str | None = None
    cuda: str | None = None
    cause: str | None = None

    def __str__(self) -> str:
        lines = [
            "exit gate: "
            + ("native op" if self.native else "reference, in plain TensorFlow"),
            f"  switch   {SWITCH}={self.mode}",
        ]
        details = {
            "library": self.library,
            "CPU": self.instruction_set,
            "CUDA": self.cuda,
            "cause": self.cause,
        }
        lines += [f"  {name:8} {text}" for name, text in details.items() if text]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Attempt:
    """The outcome of the one attempt to load the op."""

    module: Any = None
    library: Path | None = None
    instruction_set: str | None = None
    cuda: str | None = None
    error: Exception | None = None


def load() -> Any | None:
    """The module of the compiled op, or `None` where the reference shall run.

    Raises:
        RuntimeError: If the switch is `on` and the op cannot be had; the cause is
            chained.
    """
    wanted = mode()
    if wanted == "off":
        return None
    attempt = _attempt_once()
    if attempt.error is not None:
        if wanted == "on":
            raise RuntimeError(
                f"{SWITCH}=on, but the native exit gate cannot run. {_advice()}"
            ) from attempt.error
        _warn_once()
    return attempt.module


def exit_gate(
    logits: tf.Tensor, threshold: tf.Tensor, criterion: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The compiled op; as `reference.exit_gate`, to float32 rounding.

    Raises:
        RuntimeError: If the op is not there.
    """
    module = load()
    if module is None:
        raise RuntimeError(
            "The native exit gate is not loaded. Call `keras_branchy.exit_gate`, which "
            "runs the reference where the op is missing.\n" + str(status())
        )
    answer = module.keras_branchy_exit_gate(
        logits=logits, threshold=threshold, criterion=criterion
    )
    return answer.exit, answer.label, answer.score


def status() -> Status:
    """What runs, and why. Loads the op, and builds it, as the first use would."""
    wanted = mode()
    if wanted == "off":
        return Status(wanted, native=False, cause=f"{SWITCH}=off")
    attempt = _attempt_once()
    return Status(
        wanted,
        native=attempt.module is not None,
        library=attempt.library,
        instruction_set=attempt.instruction_set,
        cuda=attempt.cuda,
        cause=str(attempt.error) if attempt.error else None,
    )


def in_xla_context() -> bool:
    """Whether the graph being traced will be compiled by XLA, which lacks the op."""
    import tensorflow as tf

    graph: Any = tf.compat.v1.get_default_graph()
    while graph is not None:
        # TensorFlow has no public word for this. Without the method, or under another
        # name, the answer is no, and XLA itself refuses the op by name.
        context = getattr(graph, "_get_control_flow_context", lambda: None)()
        while context is not None:
            if getattr(context, "IsXLAContext", lambda: False)():
                return True
            context = getattr(context, "outer_context", None)
        graph = getattr(graph, "outer_graph", None)
    return False


def _advice() -> str:
    error = _attempt_once().error
    return (
        f"{error} To build it again: {sys.executable} {build_file()} --force. To do "
        f"without it: {SWITCH}=off."
    )


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        f"The exit gate runs in plain TensorFlow, several times slower. {_advice()}",
        RuntimeWarning,
        stacklevel=4,
    )


def _attempt_once() -> _Attempt:
    with _lock:  # Two threads must not build or load it twice.
        return _attempt()


@functools.cache
def _attempt() -> _Attempt:
    try:
        return _load()
    except Exception as error:  # Whatever it was, the reference can take over.
        return _Attempt(error=error)


def _load() -> _Attempt:
    import tensorflow as tf

    made = builder()
    path = made.find(tf.__version__)
    if path is None:
        logging.getLogger("keras_branchy").warning(
            "Building the native exit gate for TensorFlow %s: half a minute, once.",
            tf.__version__,
        )
        path = made.build()
    stamp = made.stamp_of(path)
    built_for = stamp["tensorflow"]
    if made.minor(built_for) != made.minor(tf.__version__):
        raise RuntimeError(
            f"{path} was built for TensorFlow {built_for}. Received: TensorFlow "
            f"{tf.__version__}."
        )
    module = tf.load_op_library(str(path))
    instruction_set, problem = _ask(path)
    problem = stamp["cuda_problem"] or problem
    if problem and tf.config.get_visible_devices("GPU"):
        raise RuntimeError(
            f"TensorFlow sees a GPU, and the op's CUDA kernel cannot run there: {problem}."
        )
    return _Attempt(module, path, instruction_set, problem or "ready")


def _ask(path: Path) -> tuple[str, str | None]:
    """The instruction set in use, and why CUDA does not run."""
    library = ctypes.CDLL(str(path))
    answers: list[str | None] = []
    for name in ("keras_branchy_instruction_set", "keras_branchy_cuda_problem"):
        function = library[name]
        function.restype = ctypes.c_char_p
        text = function()
        answers.append(text.decode() if text else None)
    return answers[0] or "", answers[1]
