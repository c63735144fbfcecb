# SPDX-License-Identifier: Apache-2.0
"""`keras-branchy calibrate`: thresholds from held-out data, into a new file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from keras_branchy.cli.budget import budget, measured_costs
from keras_branchy.cli.files import check_target, in_place_of, write_json
from keras_branchy.cli.fitting import check_gates, fit
from keras_branchy.cli.lists import numbers
from keras_branchy.cli.options import (
    BatchSize,
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

__all__ = ["command"]

MOST_POINTS = 0.5  # that anybody means to lose
_TARGET = "Target: exactly one"
_COST = "Cost in measured time"
_FIT = "To fit before; thresholds are chosen on the other samples"


def command(
    model: Model,
    data: Data,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Accuracy that may be lost against the last exit, a fraction: 0.01 is one "
            "point.",
            show_default=False,
            rich_help_panel=_TARGET,
        ),
    ] = None,
    exit_shares: Annotated[
        str | None,
        typer.Option(
            help="Shares of all samples to leave at each exit but the last: 0.5,0.2",
            show_default=False,
            rich_help_panel=_TARGET,
        ),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Accuracy to keep, a fraction.",
            show_default=False,
            rich_help_panel=_TARGET,
        ),
    ] = None,
    max_lost_answers: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the answers that the last exit would have right and that may be "
            "wrong, whatever others gain.",
            show_default=False,
            rich_help_panel=_TARGET,
        ),
    ] = None,
    max_disagreement: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the answers that may not be the last exit's.",
            show_default=False,
            rich_help_panel=_TARGET,
        ),
    ] = None,
    max_cost: Annotated[
        str | None,
        typer.Option(
            help="Mean cost of a sample: MACs, heads counted (2.5e5), or a time (0.8ms).",
            show_default=False,
            rich_help_panel=_TARGET,
        ),
    ] = None,
    confidence: Annotated[
        str | None,
        typer.Option(
            help="Probability with which the target is to hold for new samples, such as "
            "0.95, or mean for on average. Without it, it holds on these.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Count costs in ms, as this output of bench --json has them. A time "
            "without it is measured here.",
            show_default=False,
            rich_help_panel=_COST,
        ),
    ] = None,
    profile_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of which batch size; the first in the profile, or 1.",
            show_default=False,
            rich_help_panel=_COST,
        ),
    ] = None,
    temperatures: Annotated[
        bool,
        typer.Option(
            "--fit-temperatures",
            help="First fit a temperature to each exit, on every fifth sample.",
            rich_help_panel=_FIT,
        ),
    ] = False,
    gates: Annotated[
        bool,
        typer.Option(
            "--fit-gates",
            help="First teach exits with criterion='learned', on every fifth sample.",
            rich_help_panel=_FIT,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write the calibrated model to this .keras file; it may be MODEL itself.",
            show_default=False,
        ),
    ] = None,
    report_path: Annotated[
        Path | None,
        typer.Option(
            "--report", help="Write the report to this .json file.", show_default=False
        ),
    ] = None,
    split: Split = None,
    limit: Limit = None,
    pixels: PixelScale = Pixels.auto,
    batch_size: BatchSize = 256,
    modules: ImportModules = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Chooses thresholds on held-out data, and writes the model that has them.

    Use samples that training has not seen, and never the test set: thresholds that were
    chosen on it look better there than they are. A TFDS dataset that has a validation
    split gives that; of others, name a part: --split 'train[50000:]'.
    """
    limit_of_cost, is_time = budget(max_cost)
    target = _target(
        max_accuracy_drop=max_accuracy_drop,
        min_accuracy=min_accuracy,
        max_lost_answers=max_lost_answers,
        max_disagreement=max_disagreement,
        max_cost=limit_of_cost,
        exit_shares=numbers(exit_shares, "--exit-shares"),
    )
    if confidence is not None:
        target["confidence"] = _confidence(confidence)
    in_time = _in_time(limit_of_cost, is_time, profile, profile_batch_size)
    with reporting(json, debug) as report:
        check_target(out, "--out", ".keras")
        check_target(report_path, "--report", ".json")
        from keras_branchy.cli.models import load_branchy
        from keras_branchy.cli.samples import open_samples

        loaded = load_branchy(model, modules, report)
        samples = open_samples(
            data,
            loaded,
            split=split,
            default="validation",
            limit=limit,
            pixels=pixels,
            report=report,
        )
        if max_accuracy_drop is not None and max_accuracy_drop >= MOST_POINTS:
            report.note(
                f"Warning: --max-accuracy-drop {max_accuracy_drop:g} allows "
                f"{100 * max_accuracy_drop:g} points to be lost; one point is 0.01."
            )
        if (split or "").startswith("test"):
            report.note(
                "Warning: these are test samples. Accuracy measured on them afterwards is "
                "too good; choose thresholds on others."
            )
        fitted: dict[str, Any] = {}
        if temperatures or gates:
            some, samples = samples.fifth()
            fitted = fit(loaded, some, temperatures, gates, batch_size, report)
        check_gates(loaded, model)
        costs = None
        if in_time:
            costs = measured_costs(loaded, profile, profile_batch_size, report)
            target["costs"] = costs.milliseconds
            costs.check_affordable(max_cost)
        batches = samples.tracked(batch_size, report, "Scoring every exit")
        found = loaded.calibrate(batches, verbose=0, **target)
        _write(loaded, found, out, report_path, report)
        result = {
            "model": str(model),
            "data": samples.describe(),
            "out": None if out is None else str(out),
            "report": None if report_path is None else str(report_path),
            "costs": None if costs is None else costs.describe(),
            "fitted": {name: made.to_json() for name, made in fitted.items()},
            "calibration": found.to_json(),
        }
        parts = [*fitted.values(), f"Data: {samples}.", costs, found]
        report.result(result, lambda _: show(parts, out, report_path))


def _in_time(
    limit: float | None, is_time: bool, profile: Path | None, batch_size: int | None
) -> bool:
    """Whether costs are milliseconds."""
    if limit is not None and not is_time and profile is not None:
        raise typer.BadParameter(
            "With --profile costs are times. Received: --max-cost without a unit. Expected "
            "for example 0.8ms.",
            param_hint="--max-cost",
        )
    if batch_size is not None and profile is None and not is_time:
        raise typer.BadParameter(
            "It says of which batches times are taken. Received: it without --profile or "
            "a time in --max-cost, such as 0.8ms.",
            param_hint="--profile-batch-size",
        )
    return is_time or profile is not None


def _target(**targets: Any) -> dict[str, Any]:
    given = {name: value for name, value in targets.items() if value is not None}
    options = [f"--{name.replace('_', '-')}" for name in targets]
    if len(given) != 1:
        received = [f"--{name.replace('_', '-')}" for name in given]
        raise typer.BadParameter(
            f"Expected exactly one target: {', '.join(options)}. Received: "
            f"{' and '.join(received) or 'none'}. For example --max-accuracy-drop 0.01 to "
            "lose at most one point of accuracy.",
            param_hint="target",
        )
    return given


def _confidence(text: str) -> float | str:
    try:
        return text if text == "mean" else float(text)
    except ValueError:
        raise typer.BadParameter(
            f"Expected a probability such as 0.95, or mean. Received: {text!r}.",
            param_hint="--confidence",
        ) from None


def _write(
    model: Any, found: Any, out: Path | None, report_path: Path | None, report: Report
) -> None:
    if out is not None:
        with report.doing(f"Writing {out.name}"), in_place_of(out) as unfinished:
            model.save(unfinished)
    if report_path is not None:
        write_json(report_path, found.to_json())


def show(parts: list[Any], out: Path | None, report_path: Path | None) -> Iterable:
    """What was fitted and chosen, for people."""
    yield from (Text(str(part)) for part in parts if part is not None)
    written = [str(path) for path in (out, report_path) if path is not None]
    if out is None:
        written.append("no model (--out FILE.keras writes it)")
    yield Text(f"Written: {', '.join(written)}.")
