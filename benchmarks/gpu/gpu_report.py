# SPDX-License-Identifier: Apache-2.0
"""The results of all parts in a few files, and the summary that is printed."""

import shutil

from gpu_rows import read_json, write_json

# File -> the parts whose rows are in it.
FILES = {
    "checks.json": ("machine", "grid", "memcheck", "racecheck", "initcheck", "synccheck"),
    "kernel.json": ("kernel_", "counters"),
    "staged.json": ("staged_", "torch_"),
    "parity.json": ("tensorflow", "parity_"),
}
WORST = {"done": 0, "could not run": 2, "failed": 1, "timed out": 1, "not run": 1}


def assemble(out, parts):
    """Writes the files from what the parts have recorded so far."""
    for name, starts in FILES.items():
        found = [
            record
            for part in parts
            if part.name.startswith(starts)
            and (record := read_json(out / f"{part.name}.json"))
        ]
        if found:
            write_json(out / name, document(found))


def document(records):
    """One document of the records of several parts."""
    return {
        "rehearsal": any(record["rehearsal"] for record in records),
        "parts": [
            {key: record[key] for key in ("part", "state", "reason", "seconds")}
            | {"made_with": record["made_with"]}
            for record in records
        ],
        "rows": [
            {"part": record["part"], **row} for record in records for row in record["rows"]
        ],
    }


def summary(records):
    """The text, and the exit status."""
    lines, states = ["", "Summary"], []
    for name, record in records.items():
        state = record["state"] if record else "not run"
        states.append(state)
        reason = record and record["reason"] or ("" if record else "time was up")
        rows = f"{len(record['rows'])} rows" if record and record["rows"] else ""
        lines.append(f"  {name:22} {state:14} {rows:10} {reason or ''}".rstrip())
    status = 0 if set(states) == {"done"} else min(WORST[s] for s in states if WORST[s])
    counts = ", ".join(f"{states.count(s)} {s}" for s in WORST if s in states)
    if records and any(record and record["rehearsal"] for record in records.values()):
        counts += "; a rehearsal on the CPU: no figure here says anything of a GPU"
    return "\n".join([*lines, counts, ""]), status


def publish(out, target):
    """Copies the assembled files; returns an error's text, or None."""
    names = [name for name in FILES if (out / name).exists()]
    for name in names:
        if read_json(out / name)["rehearsal"]:
            return f"{name} is of a rehearsal on the CPU, and no result."
    if not names:
        return f"There are no results in {out}. Run the check first."
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(out / name, target / name)
    print(f"Copied: {', '.join(names)}. Now run benchmarks/tables.py.")
    return None
