# SPDX-License-Identifier: Apache-2.0
"""`keras-branchy evaluate`: what early exits keep and save on labelled data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from keras_branchy.cli.figures import check_figures, draw
from keras_branchy.cli.lists import thresholds as read_thresholds
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
from keras_branchy.cli.reporting import reporting
from keras_branchy.cli.scaling import Pixels
from keras_branchy.cli.tables import count, heading, percent, rule, table

__all__ = ["command"]


def command(
    model: Model,
    data: Data,
    thresholds: Annotated[
        str | None,
        typer.Option(
            help="Try these instead of the model's own, one for each exit but the last: "
            "0.05,never",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Draw figures into this folder: who leaves where, scores, reliability, "
            "confusion and costs.",
            show_default=False,
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
    """Measures accuracy, who leaves where, and the expected cost of a calibrated model.

    Of a TFDS dataset, the test split unless --split says otherwise.
    """
    given = read_thresholds(thresholds, "--thresholds")
    with reporting(json, debug) as report:
        check_figures(figures)
        from keras_branchy.cli.models import check_calibrated, load_branchy
        from keras_branchy.cli.samples import open_samples

        loaded = load_branchy(model, modules, report)
        if given is not None:
            loaded.thresholds = given
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
        from keras_branchy.held_out import warn_of_guessing
        from keras_branchy.scoring import all_logits

        batches = samples.tracked(batch_size, report, "Running every exit")
        logits, labels = all_logits(loaded, batches, verbose=0)
        if labels is not None:
            warn_of_guessing(loaded, logits[-1].argmax(-1), labels)
        result = {
            "model": str(model),
            "data": samples.describe(),
            **measured(loaded, logits, labels),
            "figures": [],
        }
        if figures is not None:
            with report.doing("Drawing"):
                result["figures"] = _draw(figures, loaded, logits, labels, result["exits"])
        report.result(result, lambda found: show(found, str(samples)))


def _draw(folder: Path, model: Any, logits: Any, labels: Any, exits: Any) -> list[str]:
    import numpy as np

    shares = [row["share"] for row in exits]
    right = [row["accuracy_where_taken"] for row in exits]
    names = draw(folder, model, np.stack(logits), labels, shares, right)
    return [str(folder / name) for name in names]


def measured(model: Any, logits: Any, labels: Any) -> dict[str, Any]:
    """Accuracy, shares and expected cost, as plain data."""
    from keras_branchy.outcome import outcome

    found = outcome(model, logits, labels, model.thresholds)
    last = len(model.criteria)
    exits = [
        {
            "name": name,
            "criterion": None if index == last else model.criteria[index],
            "threshold": None if index == last else model.thresholds[index],
            "share": found.shares[index],
            "by_agreement": found.by_agreement[index],
            "accuracy_where_taken": found.accuracy_where_taken[index],
            "accuracy": found.exit_accuracy[index],
        }
        for index, name in enumerate(model.exit_names)
    ]
    return {
        "accuracy": found.accuracy,
        "last_accuracy": found.last_accuracy,
        "exits": exits,
        "cost": costs(model, found.shares),
    }


def costs(model: Any, shares: list[float]) -> dict[str, Any] | None:
    """Expected MACs in both countings; None, with a warning, where a layer is not known."""
    from keras_branchy import cost
    from keras_branchy.outcome import expected_cost

    try:
        stages = cost.stage_costs(model)
    except ValueError as error:
        warnings.warn(f"No expected cost: {error}", stacklevel=2)
        return None
    found: dict[str, Any] = {"backbone_macs": stages[-1].trunk_macs_to_leave}
    for name, heads in (("heads_counted", True), ("trunk_only", False)):
        expected = expected_cost(stages, shares, heads=heads)
        found[name] = {
            "macs": expected.macs,
            "of_backbone": expected.of_backbone,
            "times_less": 1 / expected.of_backbone,
        }
    return found


def show(found: dict[str, Any], samples: str) -> Iterable:
    """The same for people."""
    lost = 100 * (found["last_accuracy"] - found["accuracy"])
    change = f"{lost:.2f} points lost" if lost >= 0 else f"{-lost:.2f} points gained"
    yield f"Data: {samples}."
    yield heading(
        f"{percent(found['accuracy'])} right with early exits, "
        f"{percent(found['last_accuracy'])} at the last exit ({change})"
    )
    columns = ("exit", "leaves if", "share", "right there", "right on all")
    yield table(columns, map(_exit_row, found["exits"]), left=2)
    if found["cost"] is not None:
        yield ""
        costed = ("mean cost of a sample", "MACs", "of backbone", "times less")
        yield table(costed, _cost_rows(found["cost"]))
    if found["figures"]:
        yield Text(f"Drawn: {', '.join(found['figures'])}.")


def _exit_row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        _rules(row),
        percent(row["share"]),
        percent(row["accuracy_where_taken"]),
        percent(row["accuracy"]),
    )


def _rules(row: dict[str, Any]) -> str:
    if row["criterion"] is None:
        return "it gets here"
    by_score = rule(row["criterion"], row["threshold"])
    if not row["by_agreement"]:
        return by_score
    agree = f"exits agree ({percent(row['by_agreement'])})"
    return agree if row["threshold"] is None else f"{by_score} or {agree}"


def _cost_rows(cost: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    yield "backbone without exits", count(cost["backbone_macs"]), percent(1.0, 1), "1.00"
    for key, name in (("heads_counted", "heads counted"), ("trunk_only", "trunk only")):
        row = cost[key]
        yield (
            f"early exit, {name}",
            count(row["macs"]),
            percent(row["of_backbone"], 1),
            f"{row['times_less']:.2f}",
        )
