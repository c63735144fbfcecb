# SPDX-License-Identifier: Apache-2.0
"""`keras-branchy bench`: early exit against the plain backbone, on this machine."""

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
    """Times early exit against the plain backbone, and says where the time goes.

    Both are traced functions from NumPy arrays to NumPy labels, as a server would call
    them, and take turns on the same batches; their answers are checked first. Then the
    stages are timed alone. Times depend on who leaves early, so use data like those in
    use, and a machine that does nothing else.

    With --json the times of the stages are what `calibrate --profile` takes.
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
    import numpy as np

    from keras_branchy.cli import machine, timing
    from keras_branchy.cli.race import race
    from keras_branchy.scoring import all_logits

    batched = {size: timing.batches(x, size) for size in dict.fromkeys(sizes)}
    with report.doing("Running every exit"):
        logits = np.stack(all_logits(model, x, batch_size=256, verbose=0)[0])
    rows = []
    for size, batches in batched.items():
        with report.doing(f"Checking answers, batches of {size}"):
            contestants = timing.contestants(model, batches[0])
            timing.check(model, contestants, batches, logits)
        with report.doing(f"Measuring batches of {size} for {seconds:g} s"):
            rows.append(race(model, contestants, batches, logits, seconds))
    return {"batch_sizes": rows, "machine": machine.describe()}


def show(found: dict[str, Any], samples: str) -> Iterable:
    """The same for people."""
    yield f"Data: {samples}. Machine: {found['machine']['summary']}."
    rows = found["batch_sizes"]
    yield heading("µs an image: mean, and the middle half of the measurements")
    columns = ("batch", "plain backbone", "early exit", "gain", "MACs allow", "efficiency")
    yield table(columns, map(_row, rows))
    yield (
        "gain: plain / early exit. MACs allow: the gain if time were MACs, heads counted. "
        "efficiency: the stages alone / early exit; what lacks to 1 is lost between them."
    )
    yield heading("Where the time goes, µs an image")
    names = [part["exit_name"] for part in rows[0]["stages"]]
    yield table(("batch", *names, "between stages"), map(_parts, rows))
    yield (
        "A stage and its head, for the samples that reach it; then gates, gathering who "
        "goes on, and calls."
    )
    if lost := sum(row["disturbed"] for row in rows):
        all_rounds = sum(row["measurements"] for row in rows)
        yield (
            f"{lost:,} of {all_rounds:,} rounds took three times as long as usual, as when "
            "something else runs, and are left out."
        )
    leave = ", ".join(percent(share, 1) for share in rows[0]["shares"])
    yield f"Left at each exit: {leave}. Answers were checked before any was timed."


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    allowed = row["gain_macs_allow"]
    return (
        str(row["batch_size"]),
        _spread(row["plain"]),
        _spread(row["early_exit"]),
        f"{row['gain']:.2f}",
        "–" if allowed is None else f"{allowed:.2f}",
        f"{row['efficiency']:.2f}",
    )


def _parts(row: dict[str, Any]) -> tuple[str, ...]:
    stages = [_three(part["us_per_image"]) for part in row["stages"]]
    return str(row["batch_size"]), *stages, _three(row["between_stages_us_per_image"])


def _spread(row: dict[str, float]) -> str:
    ends = "…".join(_three(row[name]) for name in ("lower", "upper"))
    return f"{_three(row['us_per_image'])} ({ends})"


def _three(value: float) -> str:
    """Three figures, and no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"
