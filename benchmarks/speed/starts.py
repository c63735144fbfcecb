# SPDX-License-Identifier: Apache-2.0
"""One row from those of several starts: new processes, minutes apart.

What a cell takes differs more from one start to the next than within one, as memory lies
elsewhere and as a machine has its hours. A figure is the median over starts, so that a gain
is no quotient of times in the same row; an interval spans those of all starts.
"""

from statistics import median

from benchmarks.speed.rows import digits

MEDIANS = (
    *("us_per_image", "spread", "gain_same_runtime", "gain_fastest_plain"),
    *("efficiency", "stages_us", "time_to_first_answer_ms"),
)
INTERVALS = ("gain_interval", "efficiency_interval")
PLACE = ("network", "runtime", "batch", "threads", "setting")
STAGE = ("network", "batch", "threads", "stage", "samples")


def merged(parts):
    """Rows and stages of a cell.

    Args:
        parts: What each start found, `{"rows": […], "stages": […]}`.
    """
    return {
        "rows": [row_of(rows) for rows in grouped(parts, "rows", PLACE)],
        "stages": [
            {**middle(rows, "us"), "us": usual(rows, "us")}
            for rows in grouped(parts, "stages", STAGE)
        ],
    }


def grouped(parts, name, place):
    """Lists of rows of one place, in the order of the first start."""
    found = {}
    for part in parts:
        for row in part[name]:
            found.setdefault(tuple(row.get(key) for key in place), []).append(row)
    return found.values()


def row_of(rows):
    """The row of a place; what is no figure is of the start in the middle."""
    if rows[0].get("absent"):
        return rows[0]
    made = {**middle(rows, "us_per_image"), "starts": len(rows)}
    for name in MEDIANS:
        if made.get(name) is not None:
            made[name] = usual(rows, name)
    for name in INTERVALS:
        if made.get(name) is not None:
            lows, highs = zip(*(row[name] for row in rows), strict=True)
            made[name] = [min(lows), max(highs)]
    times = [row["us_per_image"] for row in rows]
    made["us_of_starts"] = [min(times), max(times)]
    # What a process holds more is what other batch sizes, met before, have left.
    made["peak_mib"] = min(row["peak_mib"] for row in rows)
    made["rounds"] = sum(row["rounds"] for row in rows)
    return made


def usual(rows, name):
    return digits(median(row[name] for row in rows))


def middle(rows, name):
    return sorted(rows, key=lambda row: row[name])[(len(rows) - 1) // 2]
