# SPDX-License-Identifier: Apache-2.0
"""`keras-branchy inspect`: where exits are, or where they can go, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_branchy.cli.options import Debug, ImportModules, Json
from keras_branchy.cli.reporting import reporting, unbroken
from keras_branchy.cli.tables import count, heading, percent, rule, size, table

__all__ = ["command"]


def command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A .keras file: a BranchyModel, or a classifier without exits.",
            show_default=False,
        ),
    ],
    places: Annotated[
        int, typer.Option(min=1, help="About how many places for exits to list.")
    ] = 10,
    input_shape: Annotated[
        str | None,
        typer.Option(
            help="Sizes of one sample where the model leaves some open: 224,224,3",
            show_default=False,
        ),
    ] = None,
    modules: ImportModules = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Says what the exits of a model cost, or where a classifier could get some.

    MACs are multiply-accumulates for one sample. An exit breaks even, alone, where the
    share of the samples that leaves there saves what its head costs all of them.
    """
    shape = _sizes(input_shape)
    with reporting(json, debug) as report:
        from keras_branchy.cli.models import load_model

        loaded = load_model(model, modules, report)
        with report.doing("Counting"):
            found = _inspect(loaded, places, shape)
        report.result(found, show)


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} are no whole numbers with commas between. Expected for example "
            "224,224,3.",
            param_hint="--input-shape",
        ) from None


def _inspect(model: Any, places: int, shape: tuple[int, ...] | None) -> dict[str, Any]:
    from keras_branchy.branchy_model import BranchyModel

    if isinstance(model, BranchyModel):
        return with_exits(model, shape)
    return without_exits(model, places, shape)


def with_exits(model: Any, shape: tuple[int, ...] | None) -> dict[str, Any]:
    """What the exits of a model cost, and when they pay."""
    from keras_branchy import cost

    *early, last = cost.stage_costs(model, shape)
    thresholds = model.thresholds or [None] * len(early)
    worth = cost.judge_exits(model, shape)
    exits: list[dict[str, Any]] = [
        {
            **asdict(row),
            "tap": judged.tap,
            "criterion": criterion,
            "threshold": threshold,
            "break_even_share": judged.break_even_share,
            "pays": judged.pays,
            "advice": str(judged),
        }
        for row, judged, criterion, threshold in zip(
            early, worth, model.criteria, thresholds, strict=True
        )
    ]
    nothing = dict.fromkeys(
        ("tap", "criterion", "threshold", "break_even_share", "pays", "advice")
    )
    whole = last.trunk_macs_to_leave
    return {
        "kind": "branchy_model",
        "name": model.name,
        "classes": model.num_classes,
        "calibrated": model.thresholds is not None,
        "patience": model.patience,
        "backbone_macs": whole,
        "exits": [*exits, {**asdict(last), **nothing}],
        "remarks": [
            *(str(judged) for judged in worth if not judged.pays),
            *(judged.remark for judged in worth if judged.pays and judged.remark),
        ],
    }


def without_exits(model: Any, places: int, shape: Any) -> dict[str, Any]:
    """Where a classifier could get exits."""
    from keras_branchy import cost

    found = cost.suggest_exits(model, places=places, input_shape=shape)
    return {
        "kind": "backbone",
        "name": model.name,
        "classes": model.outputs[0].shape[-1],
        "backbone_macs": cost.count_macs(model, shape),
        "places": [
            {
                **asdict(place),
                "shape": list(place.shape),
                "break_even_share": place.break_even_share,
                "pays": place.pays,
            }
            for place in found
        ],
        "advice": found.advice,
    }


def show(found: dict[str, Any]) -> Iterable:
    """The same for people."""
    whole = found["backbone_macs"]
    if found["kind"] == "backbone":
        size_of = f"{found['classes']} classes, {count(whole)} MACs"
        yield heading(f"{found['name']}: {size_of}, no exits yet")
        yield from _show_places(found)
        return
    state = "calibrated" if found["calibrated"] else "not calibrated yet"
    yield heading(
        f"{found['name']}: {len(found['exits'])} exits, {found['classes']} classes, "
        f"{state}; {count(whole)} MACs without exits"
    )
    yield from _show_exits(found)


def _show_places(found: dict[str, Any]) -> Iterable:
    columns = ("tap", "features", "MACs", "done", "carries", "", "head", "breaks even")
    yield table(
        columns,
        (
            (
                row["tap"],
                "×".join(map(str, row["shape"])),
                count(row["macs"]),
                percent(row["share"], 0),
                str(row["live_tensors"]),
                size(row["bytes_carried"]),
                count(row["head_macs"]),
                _even(row),
            )
            for row in found["places"]
        ),
    )
    yield (
        "done: share of the backbone's MACs by there. carries: tensors and bytes that the "
        "rest needs. head: MACs of ExitBranch(classes). breaks even: share of the samples "
        "that must leave there, as the only exit."
    )
    yield found["advice"]
    good = [row["tap"] for row in found["places"] if row["pays"]]
    if good:
        chosen = sorted({0, len(good) // 2})
        inner = ", ".join(f'"{good[k]}": ExitBranch({found["classes"]})' for k in chosen)
        yield unbroken(f"BranchyModel(backbone, exits={{{inner}}})")


def _show_exits(found: dict[str, Any]) -> Iterable:
    columns = (
        "exit",
        "tap",
        "leaves if",
        "to leave",
        "head",
        "carries",
        "even",
    )
    yield table(
        columns,
        (
            (
                row["exit_name"],
                row["tap"] or "(output)",
                _rule(row, found["calibrated"]),
                count(row["macs_to_leave"]),
                count(row["head_macs"]),
                size(row["bytes_carried"]),
                "" if row["tap"] is None else _even(row),
            )
            for row in found["exits"]
        ),
        left=3,
    )
    yield (
        "to leave: MACs that a sample has paid there, heads counted. head: the exit's own. "
        "carries: bytes that cross to the next stage. even: share of the samples that "
        "must leave there, were it the only exit."
    )
    yield from found["remarks"]


def _rule(row: dict[str, Any], calibrated: bool) -> str:
    if row["tap"] is None:
        return "always"
    return rule(row["criterion"], row["threshold"]) if calibrated else row["criterion"]


def _even(row: dict[str, Any]) -> str:
    if row["pays"] is None:
        return "needs layers="
    return percent(row["break_even_share"], 1) if row["pays"] else "never"
