# SPDX-License-Identifier: Apache-2.0
"""The process that converts: a crash or a hang there is an exception here."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Child", "child_process"]


class Child:
    """A running worker; `ask` gives it a job and waits."""

    def __init__(self, process: subprocess.Popen, log: Path, timeout: float, verbose: bool):
        self._process = process
        self._log = log
        self._timeout = timeout
        self._verbose = verbose
        self._buffer = b""

    def ask(self, job: str, **arguments: Any) -> Any:
        """Does a job in the child and returns what it gives.

        Raises:
            TimeoutError: If it takes longer than the export may.
            RuntimeError: If the child crashes, or the job fails.
        """
        line = json.dumps({"job": job, "arguments": arguments}) + "\n"
        with contextlib.suppress(BrokenPipeError):  # it has crashed: told below
            self._process.stdin.write(line.encode())  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        for message in self._messages(job, time.monotonic() + self._timeout):
            if "progress" in message:
                self.say(message["progress"])
            elif "error" in message:
                raise RuntimeError(f"{message['error']}\n{self._last_lines()}".rstrip())
            else:
                return message["result"]
        raise self._crash(job)

    def say(self, text: str) -> None:
        """Prints progress, where it is wanted."""
        if self._verbose:
            print(f"export: {text}", flush=True)

    def _messages(self, job: str, deadline: float) -> Iterator[dict[str, Any]]:
        pipe = self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)  # type: ignore[arg-type]
            while True:
                while b"\n" in self._buffer:
                    line, _, self._buffer = self._buffer.partition(b"\n")
                    yield json.loads(line)
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise TimeoutError(
                        f"The conversion ('{job}') took too long. Received: timeout="
                        f"{self._timeout:g} seconds. Pass a longer timeout=, or a smaller "
                        f"model.\n{self._last_lines()}".rstrip()
                    )
                read = os.read(pipe.fileno(), 65536)  # type: ignore[union-attr]
                if not read:
                    return
                self._buffer += read

    def _crash(self, job: str) -> RuntimeError:
        code = self._process.wait()
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {signal.Signals(-code).name}"
        return RuntimeError(
            f"The process that converts crashed during '{job}'. Received: {how}. "
            "TensorFlow's converter is known to crash on int8 with a recurrent layer: use "
            "quantization='dynamic' there. It is killed where memory runs out, too.\n"
            f"{self._last_lines()}".rstrip()
        )

    def _last_lines(self, count: int = 8) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text("utf-8", "replace").splitlines()
            wanted = [line for line in lines if line.strip()][-count:]
            return "\n".join(["Its last words:", *wanted]) if wanted else ""
        return ""


@contextlib.contextmanager
def child_process(folder: Path, timeout: float, verbose: bool) -> Iterator[Child]:
    """Starts a worker that may write into `folder`, and ends it with the block.

    Should this process be killed, the worker sees its end of the pipe close, and removes
    `folder`.
    """
    log = folder / ".child.log"
    paths = [entry or os.getcwd() for entry in sys.path]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": "tensorflow",
    }
    command = [sys.executable, "-m", "keras_branchy.export.worker", str(folder)]
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        )
    try:
        yield Child(process, log, timeout, verbose)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        log.unlink(missing_ok=True)
