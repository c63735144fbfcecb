# SPDX-License-Identifier: Apache-2.0
"""What a target leaves: JSON with all of it, and CSV for a spreadsheet."""

import csv
import json
import os

# Of tables like BranchyNet's, in the order of its columns.
TABLE = ("Network", "Acc. (%)", "Time (ms)", "Gain", "Thrshld. T", "Exit (%)")
OURS = (
    "Chosen",
    "Seed",
    "MAC gain, trunk only",
    "MAC gain, everything",
    "Time gain, everything, batch 1",
    "Time gain, everything, batch 512",
    "Schedule",
    "Data",
)


def write(path, document):
    """The document as JSON, whole or not at all, and its rows as CSV beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    os.replace(beside, path)
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for line in lines(document):
            writer.writerow(line)


def lines(document):
    """Header and lines of the CSV."""
    rows = document["rows"]
    if rows and "chosen" in rows[0]:
        yield TABLE + OURS
        for row in rows:
            yield from as_published(row)
        return
    flat = [flattened(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    yield columns
    for row in flat:
        yield [row.get(column, "") for column in columns]


def as_published(row):
    """The plain network's line and that of the network with exits."""
    times = row["times"] or {}
    trunk = times.get("batch_1_trunk_only", {})
    both = {size: times.get(size, {}).get("gain", "") for size in ("batch_1", "batch_512")}
    tail = (row["schedule"], row["data"])
    name = row["network"]
    if row["stands_in_for"]:
        name += f" (stands in for {row['stands_in_for']})"
    plain = (f"{name}, plain", 100 * row["plain_accuracy"], trunk.get("plain_ms", ""), 1)
    yield (*plain, "", "", "", row["seed"], 1, 1, 1, 1, *tail)
    yield (
        name,
        100 * row["accuracy"],
        trunk.get("branchy_ms", ""),
        trunk.get("gain", ""),
        joined(row["thresholds"]),
        joined([100 * share for share in row["shares"]]),
        row["chosen"],
        row["seed"],
        row["macs"]["gain_trunk_only"],
        row["macs"]["gain_everything"],
        both["batch_1"],
        both["batch_512"],
        *tail,
    )


def joined(values):
    return "; ".join("never" if value is None else f"{value:.5g}" for value in values)


def flattened(row, before=""):
    """Nested dicts as columns, lists as one cell."""
    flat = {}
    for key, value in row.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            flat.update(flattened(value, f"{name}."))
        else:
            flat[name] = joined(value) if isinstance(value, list) else value
    return flat


def hours(count):
    """A time in hours, for a person."""
    if count < 1:
        return f"{60 * count:.0f} min"
    return f"{count:.1f} h" if count < 48 else f"{count / 24:.1f} days"
