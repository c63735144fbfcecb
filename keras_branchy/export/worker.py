# SPDX-License-Identifier: Apache-2.0
"""The child's side of an export: reads jobs as lines of JSON, answers in lines of JSON."""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["main"]

Say = Callable[[str], None]


def main(folder: str) -> None:
    """Answers jobs until the parent is done; removes `folder` if it is gone before."""
    # The converter prints to the standard output, which carries the answers: move them.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(jobs, folder), daemon=True).start()

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")

    import tensorflow  # noqa: F401 (takes seconds, while the parent traces the stages)

    while True:
        request = json.loads(jobs.get())
        try:
            job = _jobs()[request["job"]]
            result = job(say=lambda text: answer(progress=text), **request["arguments"])
            answer(result=result)
        except Exception as error:
            traceback.print_exc()
            answer(error=f"'{request['job']}' failed: {type(error).__name__}: {error}")


def _read(jobs: queue.Queue[str], folder: str) -> None:
    for line in sys.stdin:
        jobs.put(line)
    # A parent that ends well kills this process first.
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            break
        time.sleep(0.1)  # a file was written meanwhile
    os._exit(1)


def _jobs() -> dict[str, Callable[..., Any]]:
    from keras_branchy.export import conversion, measurement

    return {
        "convert": conversion.convert_to_litert,
        "convert_to_onnx": conversion.convert_to_onnx,
        "describe": conversion.describe_saved_model,
        "measure": measurement.measure,
    }


if __name__ == "__main__":
    main(sys.argv[1])
