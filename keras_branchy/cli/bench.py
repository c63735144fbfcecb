# SPDX-License-Identifier: Apache-2.0
"""`keras-branchy bench`: the last exit against staged inference, on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from keras_branchy.cli.options import (
    Data,
    Debug,
    ImportModules,
    Json,
    Limit,
    Model,
    PixelScale,
    Split,
)
from keras_branchy.cli.reporting import Report, reporting
from keras_branchy.cli.scaling import Pixels
from keras_branchy.cli.tables import heading, percent, table

__all__ = ["command"]


def command(
    model: Model,
    data: Data,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Samples at a time; may be repeated. [default: 1, 32]"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long to measure each batch size.")
    ] = 10.0,
    split: Split = None,
    limit: Limit = 2000,
    pixels: PixelScale = Pixels.auto,
    modules: ImportModules = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Times the plain last exit against early exit, taking turns on the same batches.

    Both are traced functions from NumPy arrays to NumPy labels, as a server would call
    them. Their answers are checked first. Times depend on who leaves early, so use data
    like those in use, and a machine that does nothing else.
    """
    with reporting(json, debug) as report:
        from keras_branchy.cli.models import check_calibrated, load_branchy
        from keras_branchy.cli.samples import open_samples

        loaded = load_branchy(model, modules, report)
        check_calibrated(loaded, model)
        samples = open_samples(
            data,
            loaded,
            split=split,
            default="test",
            limit=limit,
            pixels=pixels,
            report=report,
        )
        result = {
            "model": str(model),
            "data": samples.describe(),
            **_measure(loaded, samples.arrays()[0], batch_size or [1, 32], seconds, report),
        }
        report.result(result, lambda found: show(found, str(samples)))


def _measure(
    model: Any, x: Any, sizes: list[int], seconds: float, report: Report
) -> dict[str, Any]:
    from keras_branchy.cli import machine, timing

    rows = []
    for size in dict.fromkeys(sizes):
        batches = timing.batches(x, size)
        with report.doing(f"Checking answers, batches of {size}"):
            contestants = timing.contestants(model, batches[0])
            shares = timing.check(model, contestants, batches)
        with report.doing(f"Measuring batches of {size} for {seconds:g} s"):
            rows.append(
                {
                    "batch_size": size,
                    "shares": shares,
                    **timing.take_turns(contestants, batches, seconds),
                }
            )
    return {"batch_sizes": rows, "machine": machine.describe()}


def show(found: dict[str, Any], samples: str) -> Iterable:
    """The same for people."""
    yield f"Data: {samples}. Machine: {found['machine']['summary']}."
    yield heading("Milliseconds a batch: median, and the middle half of the measurements")
    columns = ("batch", "last exit", "early exit", "times as fast", "measured")
    yield table(
        columns,
        (
            (
                str(row["batch_size"]),
                _spread(row["last_exit"]),
                _spread(row["early_exit"]),
                f"{row['times_as_fast']:.2f}",
                f"{row['measurements']} ×",
            )
            for row in found["batch_sizes"]
        ),
    )
    shares = found["batch_sizes"][0]["shares"]
    leave = ", ".join(percent(share, 1) for share in shares)
    yield f"Left at each exit: {leave}. Answers were checked before any was timed."


def _spread(row: dict[str, float]) -> str:
    return f"{row['median_ms']:.3g} ({row['lower_ms']:.3g}…{row['upper_ms']:.3g})"
