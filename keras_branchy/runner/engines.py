# SPDX-License-Identifier: Apache-2.0
"""Exported files in LiteRT, an interpreter each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_branchy.runner.manifest import Call, Manifest

__all__ = ["Program", "Tensors", "open_program", "opener"]

Tensors = Mapping[str, np.ndarray]


class Program:
    """A computation in a file: tensors by name in, tensors by name out.

    `run` gives what is wanted at once, `rest` the other outputs, which cost a copy each
    and are of no use to a sample that leaves.
    """

    def __init__(self, call: Call, content: bytes, first: str, num_threads: int):
        interpreter = _interpreter(content, call.file, num_threads)
        self.largest_row = _largest_row(interpreter)
        self._names = [tensor.name for tensor in call.inputs]
        self._outputs = [tensor.name for tensor in call.outputs]
        self.first = first
        self._open(interpreter, call)

    def _open(self, interpreter: Any, call: Call) -> None:
        given, made = _indices(interpreter, call.signature)
        self._interpreter = interpreter
        self._feeds = [(name, given[name]) for name in self._names]
        self._fetches = [(name, made[name]) for name in self._outputs if name != self.first]
        self._first = made[self.first]
        self._free = {
            tensor.name: tensor.shape[1:]
            for tensor in call.inputs
            if tensor.shape and tensor.shape[0] is None
        }
        self._counted = next(iter(self._free), None)  # the input that tells the size
        self._size: int | None = None
        if self._counted is None:
            interpreter.allocate_tensors()

    def run(self, tensors: Tensors) -> np.ndarray:
        """Computes everything and returns the output called `first`."""
        if self._counted is not None and len(tensors[self._counted]) != self._size:
            self._resize(len(tensors[self._counted]))
        set_tensor = self._interpreter.set_tensor
        for name, index in self._feeds:
            set_tensor(index, tensors[name])
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._first)

    def rest(self) -> dict[str, np.ndarray]:
        """The other outputs of the last `run`."""
        get_tensor = self._interpreter.get_tensor
        return {name: get_tensor(index) for name, index in self._fetches}

    def views(self) -> dict[str, np.ndarray]:
        """The other outputs where they lie; none may be left when `run` is called."""
        if not self._fetches:
            return {}
        view = self._interpreter.tensor
        return {name: view(index)() for name, index in self._fetches}

    def _resize(self, size: int) -> None:
        for name, index in self._feeds:
            if name in self._free:
                self._interpreter.resize_tensor_input(index, (size, *self._free[name]))
        self._interpreter.allocate_tensors()
        self._size = size


class _SignatureProgram(Program):
    """One of several signatures in a file; LiteRT reaches it by copying everything."""

    def _open(self, interpreter: Any, call: Call) -> None:
        self._runner = interpreter.get_signature_runner(call.signature)
        self._made: dict[str, np.ndarray] = {}

    def run(self, tensors: Tensors) -> np.ndarray:
        self._made = self._runner(**{name: tensors[name] for name in self._names})
        return self._made[self.first]

    def rest(self) -> dict[str, np.ndarray]:
        return {name: self._made[name] for name in self._outputs if name != self.first}

    def views(self) -> dict[str, np.ndarray]:
        return self.rest()


def open_program(
    manifest: Manifest, call: Call, first: str, num_threads: int = 1
) -> Program:
    """Opens the file of a call, after its hash was checked.

    Args:
        manifest: The manifest that names the file.
        call: What is to be run.
        first: The output that `run` returns.
        num_threads: Threads within one call.
    """
    return opener(manifest, call, first)(num_threads)


def opener(manifest: Manifest, call: Call, first: str) -> Callable[[int], Program]:
    """What opens the file of a call with a number of threads, now or later.

    It is read now: an export that is replaced or removed meanwhile makes no difference.
    """
    shared = manifest.data["layout"] == "signatures"
    kind = _SignatureProgram if shared else Program
    return functools.partial(kind, call, manifest.read(call.file), first)


def _indices(
    interpreter: Any, signature: str | None
) -> tuple[dict[str, int], dict[str, int]]:
    """Indices of a signature's tensors by name."""
    # The runner must go again: while it is there the interpreter allocates nothing.
    runner = interpreter.get_signature_runner(signature)
    return tuple(  # type: ignore[return-value]
        {name: detail["index"] for name, detail in details.items()}
        for details in (runner.get_input_details(), runner.get_output_details())
    )


def _largest_row(interpreter: Any) -> int:
    """Bytes of the largest tensor of one sample; 0 where no tensor's batch is free."""
    rows = [
        np.prod(detail["shape"][1:]) * np.dtype(detail["dtype"]).itemsize
        for detail in interpreter.get_tensor_details()
        if len(detail["shape_signature"]) > 1 and detail["shape_signature"][0] == -1
    ]
    return int(max(rows, default=0))


def _interpreter(content: bytes, name: str, num_threads: int) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "The stage runner runs LiteRT files and needs the package ai-edge-litert, "
            "which is not installed. Install it: pip install 'keras-branchy[runtime]'."
        ) from error
    try:
        return Interpreter(model_content=content, num_threads=num_threads)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"LiteRT cannot open '{name}'. Received: {error}. Expected a file that this "
            "version of LiteRT reads: upgrade ai-edge-litert, or export again."
        ) from error
