# SPDX-License-Identifier: Apache-2.0
"""The compiled step between two stages: found, built at first use, and called here.

It does in one call what `walk.Walk` else does in NumPy, which takes longer and gives the
same answers. Its source is `custom_ops/stage_step.h`, and the switch
`KERAS_BRANCHY_CUSTOM_OPS` is its switch too.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_branchy.compiled import SWITCH, builder, mode
from keras_branchy.waiting import Waiting

__all__ = ["MOST_CLASSES", "Answers", "NativeStep", "address", "load", "problem"]

MOST_CLASSES = 4096
_CRITERIA = ("entropy", "max_probability", "margin", "distance", "learned")
_NOT_FINITE = -1

_lock = threading.Lock()


class Answers(ctypes.Structure):
    """`StageAnswers` of custom_ops/stage_step.h, which all steps of a walk write into."""

    _fields_ = (
        ("first", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("labels", "probabilities", "exits", "scores"),
                *("previous", "agreed"),
            )
        ),
    )


class _Step(ctypes.Structure):
    """`StageStep` of custom_ops/stage_step.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("classes", "criterion", "stage", "is_last")),
        ("patience", ctypes.c_int64),
        ("threshold", ctypes.c_double),
        ("coefficients", ctypes.c_double * 4),
        *((name, ctypes.c_void_p) for name in ("answers", "waiting")),
        *((name, ctypes.c_int64) for name in ("end", "tensors")),
        *((name, ctypes.c_void_p) for name in ("from_", "to", "bytes")),
    )


class NativeStep:
    """The step behind one stage of a walk.

    Args:
        library: What `load` gives.
        stage: Its index.
        criterion: Of its exit.
        coefficients: Of its exit, or None.
        threshold: At which samples leave; None at the last exit.
        num_classes: Number of classes, at most `MOST_CLASSES`.
        patience: As in `walk.Rules`.
        live: Names of what those who stay take along.
        answers: Where it writes.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        stage: int,
        criterion: str,
        coefficients: Sequence[float] | None,
        threshold: float | None,
        num_classes: int,
        patience: int | None,
        live: Sequence[str],
        answers: Answers,
    ):
        self._call = library.keras_branchy_stage_step
        self._live = list(live)
        self._from = (ctypes.c_void_p * len(live))()
        self._to = (ctypes.c_void_p * len(live))()
        self._bytes = (ctypes.c_int64 * len(live))()
        self._moved = 0
        self._logits_bytes = 4 * num_classes
        self._answers = answers  # must live as long
        self._step = _Step(
            classes=num_classes,
            criterion=_CRITERIA.index(criterion),
            stage=stage,
            is_last=threshold is None,
            patience=patience or 0,
            threshold=0.0 if threshold is None else threshold,
            coefficients=tuple(coefficients or (0.0,) * 4),
            answers=ctypes.addressof(answers),
            tensors=len(live),
            from_=ctypes.addressof(self._from),
            to=ctypes.addressof(self._to),
            bytes=ctypes.addressof(self._bytes),
        )
        self._pointer = ctypes.byref(self._step)
        if not live:  # somebody alone is told apart without a place to wait in
            self._number = ctypes.c_int64()
            self._step.waiting = ctypes.addressof(self._number)

    def run(
        self,
        logits: np.ndarray,
        who: np.ndarray | range,
        carried: Mapping[str, np.ndarray],
        waiting: Waiting | None,
    ) -> bool:
        """Answers those who leave; the others wait. False, and nothing, for NaN logits.

        Args:
            logits: [count, C] float32.
            who: [count] int64, or a range.
            carried: What those who stay take along, [count or more, …] each.
            waiting: Where they wait; None behind the last stage.
        """
        count = len(who)
        logits = np.ascontiguousarray(logits)
        if logits.nbytes != count * self._logits_bytes:
            raise self._unfit(logits, count)
        if waiting is not None:
            waiting.room(count, carried)
            if waiting.moved != self._moved:
                self._wait_in(waiting)
            self._step.end = waiting.end
            # Held until the call is over: some may be copies made just now.
            arrays = [np.ascontiguousarray(carried[name]) for name in self._live]
            for index, array in enumerate(arrays):
                self._check(index, array, count)
                self._from[index] = address(array)
        numbers, start = (None, who.start) if type(who) is range else (address(who), 0)
        stayed = self._call(self._pointer, address(logits), numbers, start, count)
        if stayed == _NOT_FINITE:
            return False
        if waiting is not None:
            waiting.end += stayed
        return True

    def one(self, logits: np.ndarray, number: int) -> int:
        """Answers a sample if it leaves; for a step with nothing to take along.

        Args:
            logits: [1, C] float32, contiguous.
            number: The sample's.

        Returns:
            1 if it stays, 0 if it leaves, and -1, with nothing written, for NaN logits.
        """
        if logits.nbytes != self._logits_bytes:
            raise self._unfit(logits, 1)
        return self._call(self._pointer, address(logits), None, number, 1)

    def _unfit(self, logits: np.ndarray, count: int) -> ValueError:
        return ValueError(
            f"Expected float32 logits [{count}, {self._step.classes}]. Received: "
            f"{logits.dtype} {list(logits.shape)}."
        )

    def _check(self, index: int, array: np.ndarray, count: int) -> None:
        """Rows that are too few or of another size would not be told apart later."""
        rows = len(array)
        if rows < count or array.nbytes != rows * self._bytes[index]:
            raise ValueError(
                f"Expected {count} rows of {self._bytes[index]} bytes of "
                f"'{self._live[index]}', as before. Received: {array.dtype} "
                f"{list(array.shape)}."
            )

    def _wait_in(self, waiting: Waiting) -> None:
        self._moved = waiting.moved
        self._step.waiting = address(waiting.who)
        for index, name in enumerate(self._live):
            array = waiting.tensors[name]
            self._to[index] = address(array)
            self._bytes[index] = array.nbytes // len(array)


def address(array: np.ndarray) -> int:
    """Where the first element of an array lies, which must be kept meanwhile."""
    try:  # in a fifth of the time that NumPy's own way takes
        return _addressof(_first_byte(array))
    except (BufferError, TypeError, ValueError):  # it is empty, or may not be written to
        return array.ctypes.data


_first_byte: Any = ctypes.c_char.from_buffer
_addressof = ctypes.addressof


def load() -> ctypes.CDLL | None:
    """The library, or None where NumPy shall do the work.

    Raises:
        RuntimeError: If the switch is `on` and the library cannot be had.
    """
    wanted = mode()
    if wanted == "off":
        return None
    with _lock:  # Two threads must not build it twice.
        library = _attempt()
    if isinstance(library, ctypes.CDLL):
        return library
    if wanted == "on":
        raise RuntimeError(
            f"{SWITCH}=on, but the native step cannot run. {library} To do without it: "
            f"{SWITCH}=off."
        ) from library
    return None


def problem() -> str | None:
    """Why NumPy does the work, or None where the library does."""
    if mode() == "off":
        return f"{SWITCH}=off"
    with _lock:
        library = _attempt()
    return None if isinstance(library, ctypes.CDLL) else str(library)


@functools.cache
def _attempt() -> ctypes.CDLL | Exception:
    try:
        return _load()
    except Exception as error:  # Whatever it was, NumPy can take over.
        return error


def _load() -> ctypes.CDLL:
    made: Any = builder()
    path: Path | None = made.find_step()
    if path is None:
        logging.getLogger("keras_branchy").info(
            "Building the native step: a few seconds, once."
        )
        path = made.build_step()
    made.stamp_of(path)  # or it is not whole
    # A step is over before another thread would have run.
    library = ctypes.PyDLL(str(path))
    size = library.keras_branchy_stage_step_bytes
    size.restype = ctypes.c_int64
    if size() != ctypes.sizeof(_Step) + ctypes.sizeof(Answers):
        raise RuntimeError(f"{path} is of another version. Delete it.")
    call = library.keras_branchy_stage_step
    call.restype = ctypes.c_int64
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    call.argtypes = [pointer, pointer, pointer, number, number]
    return library
