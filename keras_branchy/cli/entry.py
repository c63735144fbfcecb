# SPDX-License-Identifier: Apache-2.0
"""The console script: what is said before typer is there, and before TensorFlow talks."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Runs `keras-branchy`.

    Raises:
        SystemExit: Always, with 0, 1 (a mistake, or a request that cannot be met) or 2 (a
            command line that cannot be read).
    """
    # TensorFlow's C++ side logs its start-up; that there is no GPU it calls an error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from keras_branchy.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(
            f"keras-branchy's command line needs typer and rich. Received: {error}. "
            "Install them: pip install 'keras-branchy[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    _keep_to_python("--debug" in sys.argv)
    app(prog_name="keras-branchy")


def _keep_to_python(debug: bool) -> None:
    """Leaves stdout and stderr to Python; what native libraries print there is dropped.

    TensorFlow logs some lines before it has read its log level, and whatever a converter
    prints on stdout would break JSON. With --debug it all goes to stderr.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        copy = os.fdopen(os.dup(stream.fileno()), "w", buffering=1, encoding="utf-8")
        setattr(sys, name, copy)
    target = os.dup(2) if debug else os.open(os.devnull, os.O_WRONLY)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
