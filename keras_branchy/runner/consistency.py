# SPDX-License-Identifier: Apache-2.0
"""What a schema cannot say of a manifest: that its parts fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from keras_branchy.criteria import CRITERIA

__all__ = ["check_consistency"]


def check_consistency(data: dict[str, Any]) -> Iterator[str]:
    """Yields the contradictions in a manifest that follows the schema."""
    for check in (_exits, _files, _layout, _stages, _cascade, _classes):
        try:
            yield from check(data)
        except (KeyError, TypeError, AttributeError, IndexError):
            return  # the schema's violations say what is missing


def _exits(data: dict) -> Iterator[str]:
    exits = data["exits"]
    for row in exits[:-1]:
        criterion = CRITERIA[row["criterion"]]
        sign = "<" if criterion.exits_below else ">="
        if (row["unit"], row["leaves_if"]) != (criterion.unit, f"score {sign} threshold"):
            yield f"exit '{row['name']}' is not decided as {criterion.name} is"
        if ("coefficients" in row) != (criterion.name == "learned"):
            yield f"exit '{row['name']}' and its coefficients do not agree"
    if exits[-1]["leaves_if"] != "always" or exits[-1]["threshold"] is not None:
        yield "the last exit does not take every sample"
    yield from _twice([row["name"] for row in exits], "exit")
    stages = [row["exit"] for row in data["stages"]]
    if stages != [row["name"] for row in exits]:
        yield f"the stages end at {stages}, which are not the exits"


def _files(data: dict) -> Iterator[str]:
    for row in data["files"]:
        name = row["name"]
        path = PurePosixPath(name)
        absolute = path.is_absolute() or PureWindowsPath(name).anchor
        if absolute or ".." in path.parts or "\\" in name or "\0" in name:
            yield f"file '{name}' lies outside the folder"
    names = [row["name"] for row in data["files"]]
    yield from _twice(names, "file")
    for call in _calls(data):
        folder = f"{call['file']}/"
        if not any(name == call["file"] or name.startswith(folder) for name in names):
            yield f"'{call['file']}' is not among the files"


def _layout(data: dict) -> Iterator[str]:
    staged = data["layout"] != "cascade"
    if staged != all(row["call"] is not None for row in data["stages"]):
        yield f"layout '{data['layout']}' and the stages' calls do not agree"
    if not staged and data["cascade"] is None:
        yield "layout 'cascade' comes without a cascade"


def _stages(data: dict) -> Iterator[str]:
    known = {row["name"]: row for row in data["inputs"]}
    for stage in data["stages"]:
        if stage["call"] is None:
            continue
        for tensor in stage["call"]["inputs"]:
            source = known.get(tensor["name"])
            if source is None:
                yield f"{stage['name']} reads '{tensor['name']}', which nothing makes"
            elif (source["shape"], source["dtype"]) != (tensor["shape"], tensor["dtype"]):
                yield f"{stage['name']} reads '{tensor['name']}' in another shape or dtype"
        made = {row["name"]: row for row in stage["call"]["outputs"]}
        expected = ([data["batch_size"], data["num_classes"]], "float32")
        logits = made.pop("logits", None)
        if logits is None or (logits["shape"], logits["dtype"]) != expected:
            yield f"{stage['name']} gives no float32 logits of shape {expected[0]}"
        known.update(made)


def _cascade(data: dict) -> Iterator[str]:
    if data["cascade"] is None:
        return
    given = {row["name"]: row for row in data["cascade"]["inputs"]}
    wanted = {*(row["name"] for row in data["inputs"]), "thresholds"}
    if set(given) != wanted:
        yield f"the cascade reads {sorted(given)} instead of {sorted(wanted)}"
    elif given["thresholds"]["shape"] != [len(data["exits"]) - 1]:
        yield "the cascade does not read one threshold for each exit but the last"
    made = {row["name"] for row in data["cascade"]["outputs"]}
    if made != {"probabilities", "label", "exit", "score"}:
        yield f"the cascade gives {sorted(made)}"


def _classes(data: dict) -> Iterator[str]:
    names = data["class_names"]
    if names is not None and len(names) != data["num_classes"]:
        yield f"{len(names)} class names for {data['num_classes']} classes"
    if not data["calibrated"] and any(
        row["threshold"] is not None for row in data["exits"]
    ):
        yield "there are thresholds, though none were set"


def _calls(data: dict) -> list[dict[str, Any]]:
    calls = [*(row["call"] for row in data["stages"]), data["cascade"], data["full"]]
    return [call for call in calls if call is not None]


def _twice(names: list[str], kind: str) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{kind} '{name}' is there {count} times"
