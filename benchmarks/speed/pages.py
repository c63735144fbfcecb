# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/performance.md, from benchmarks/results/inference.json."""

import json
from pathlib import Path

import numpy as np

PATH = Path(__file__).resolve().parents[1] / "results" / "inference.json"
NOT_YET = "Not run yet: `python benchmarks/inference.py --json {}`.\n"
STREAM = "stage_runner, stream"
SHOWN = ("tensorflow", "litert", "onnxruntime", "torch", "torch.compile")
STAGED = ("predict_early", "early_exit", "stage_runner", STREAM, "stage_runner, one")
LOOPS = ("torch, loop", "torch.compile, loop")


def regions():
    """Functions by the name of the region that they write."""
    found = {
        "inference_real": real,
        "inference_runtimes": runtimes,
        "inference_efficiency": efficiency,
        "inference_break_even": break_even,
        "inference_memory": memory,
        "inference_first_answer": first_answer,
        "inference_streaming": streaming,
        "inference_setting": setting,
    }
    return {name: _region(write) for name, write in found.items()} | {
        "engine_trials": trials
    }


def _region(write):
    def region():
        if not PATH.exists():
            return NOT_YET.format("benchmarks/results/inference.json")
        return write(json.loads(PATH.read_text("utf-8")))

    return region


# ---- What is in the file -------------------------------------------------------------
def rows_of(document, **wanted):
    return [
        row
        for row in document["rows"]
        if not row.get("absent") and all(row[key] == value for key, value in wanted.items())
    ]


def cells(document):
    """(network, batch, threads) in the order of the file."""
    found = ((r["network"], r["batch"], r["threads"]) for r in rows_of(document))
    return list(dict.fromkeys(found))


def most_threads(document):
    return max(row["threads"] for row in document["rows"])


def best_ours(rows):
    """Of one cell and setting: our fastest, a batch at a time."""
    ours = [row for row in rows if row["ours"] and row["runtime"] != STREAM]
    return min(ours, key=lambda row: row["us_per_image"], default=None)


def fastest_plain(rows):
    return min((r for r in rows if r["plain"]), key=lambda row: row["us_per_image"])


# ---- Tables --------------------------------------------------------------------------
def real(document):
    """Calibrated thresholds on test images."""
    lines = []
    for network, batch, threads in cells(document):
        rows = rows_of(document, network=network, batch=batch, threads=threads)
        some = [row for row in rows if row["setting"] == "calibrated"]
        ours = best_ours(some)
        if ours is None or threads != most_threads(document):
            continue
        plain = fastest_plain(rows)
        stream = next((row for row in some if row["runtime"] == STREAM), None)
        lines.append(
            (
                f"`{network}`",
                batch,
                f"{micros(plain)} ({plain['runtime']})",
                f"{micros(ours)} ({ours['runtime']})",
                f"**{ours['gain_fastest_plain']:.2f}**",
                f"{stream['gain_fastest_plain']:.2f}" if stream else "",
                share(ours.get("efficiency")),
                ", ".join(f"{100 * x:.1f}" for x in ours["shares"]),
                tested(document["networks"][network]),
            )
        )
    header = (
        *("network", "batch", "fastest plain, µs an image", "ours, µs an image"),
        *("gain", "gain, stream", "efficiency", "leave, %", "accuracy, %"),
    )
    return markdown(header, lines)


def tested(info):
    """On the whole test set: batches of one are timed on some of it only."""
    found = info["test_accuracy"]
    return f"{100 * found['plain']:.2f} → {100 * found['early']:.2f}"


def runtimes(document):
    """µs an image of every runtime, at calibrated thresholds or three in four leaving."""
    threads, parts = most_threads(document), []
    for network in document["networks"]:
        rows = rows_of(document, network=network, threads=threads)
        batches = sorted({row["batch"] for row in rows})
        chosen = chosen_setting(rows)
        lines = []
        for runtime in (*SHOWN, *STAGED, *LOOPS):
            some = {
                row["batch"]: row
                for row in rows
                if row["runtime"] == runtime and row["setting"] in (None, chosen)
            }
            if some:
                told = (some.get(batch) for batch in batches)
                lines.append((f"`{runtime}`", *(micros(row) for row in told)))
        if lines:
            left = "as calibrated" if chosen == "calibrated" else "75 % leave at exit 1"
            header = (f"`{network}`, {left}", *(f"batch {batch}" for batch in batches))
            parts.append(markdown(header, lines))
    return "\n".join(parts)


def chosen_setting(rows):
    return "calibrated" if any(r["setting"] == "calibrated" for r in rows) else "0.75"


def efficiency(document):
    """Of our fastest at each share: the least and the median over shares."""
    lines = []
    for network, batch, threads in cells(document):
        rows = rows_of(document, network=network, batch=batch, threads=threads)
        found = [best_by_setting(rows)[key] for key in best_by_setting(rows)]
        found = [row for row in found if row.get("efficiency") is not None]
        if not found:
            continue
        worst = min(found, key=lambda row: row["efficiency"])
        median = float(np.median([row["efficiency"] for row in found]))
        stream = [row.get("efficiency") for row in rows if row["runtime"] == STREAM]
        stream = [value for value in stream if value is not None]
        lines.append(
            (
                f"`{network}`",
                batch,
                threads,
                share(worst["efficiency"]),
                f"{worst['setting']} ({worst['runtime']})",
                share(median),
                *(share(make(stream)) if stream else "" for make in (min, np.median)),
            )
        )
    header = (
        *("network", "batch", "threads", "least", "at", "median over shares"),
        *("stream, least", "stream, median"),
    )
    return markdown(header, lines)


def best_by_setting(rows):
    names = dict.fromkeys(row["setting"] for row in rows if row["setting"] is not None)
    found = {name: best_ours([r for r in rows if r["setting"] == name]) for name in names}
    return {name: row for name, row in found.items() if row is not None}


def break_even(document):
    """The share at exit 1 from which leaving early is faster."""
    lines = []
    for network, batch, threads in cells(document):
        rows = rows_of(document, network=network, batch=batch, threads=threads)
        swept = [r for r in rows if r["setting"] not in (None, "calibrated")]
        default = [row for row in swept if row["runtime"] == "predict_early"]
        best = [row for row in best_by_setting(swept).values()]
        lines.append(
            (
                f"`{network}`",
                batch,
                threads,
                crossing(default, "gain_same_runtime"),
                crossing(best, "gain_fastest_plain"),
                crossing(best, "mac_limit"),
            )
        )
    header = (
        *("network", "batch", "threads", "`predict_early` over a `tf.function`"),
        *("our fastest over the fastest plain", "by multiplications"),
    )
    return markdown(header, lines)


def crossing(rows, key):
    """The share from which a gain is above 1; time being linear in the share between."""
    points = sorted((r["shares"][0], 1 / r[key]) for r in rows if r.get(key))
    if not points:
        return ""
    if all(taken <= 1 for _, taken in points):
        return "any"
    if points[-1][1] > 1:
        return "none"
    place = max(i for i, (_, taken) in enumerate(points) if taken > 1)
    (low, above), (high, below) = points[place], points[place + 1]
    return f"{100 * (low + (high - low) * (above - 1) / (above - below)):.0f} %"


def memory(document):
    """Peaks at equal batch; of staged inference the largest over shares."""
    lines = []
    for network, batch, threads in cells(document):
        rows = rows_of(document, network=network, batch=batch, threads=threads)
        if threads != most_threads(document):
            continue
        peaks = {}
        for row in rows:
            before = peaks.get(row["runtime"], 0.0)
            peaks[row["runtime"]] = max(before, row["peak_mib"] or 0.0)
        names = ("tensorflow", "predict_early", "early_exit", "litert", "stage_runner")
        told = (f"{peaks[name]:.1f}" if name in peaks else "" for name in names)
        lines.append((f"`{network}`", batch, *told))
    header = (
        *("network", "batch", "plain `tf.function`", "`predict_early`", "`early_exit`"),
        *("plain LiteRT", "`StageRunner`"),
    )
    return markdown(header, lines)


def first_answer(document):
    """Milliseconds from the start of a process to its first answer, on one core."""
    threads, lines = min(row["threads"] for row in document["rows"]), []
    for network in document["networks"]:
        rows = rows_of(document, network=network, threads=threads)
        first = {row["runtime"]: row["time_to_first_answer_ms"] for row in rows}
        names = (*SHOWN[:4], *STAGED[:3])
        told = (f"{first[n]:,}" if first.get(n) is not None else "" for n in names)
        if any(first.values()):
            lines.append((f"`{network}`", *told))
    return markdown(("ms", *(f"`{name}`" for name in names)), lines)


def streaming(document):
    """A million images through the iterator."""
    lines = [
        (
            f"`{row['network']}`",
            f"{row['images']:,}",
            row["batch"],
            f"{row['images_per_second']:,}",
            f"{max(row['single_batch_images_per_second'].values()):,}",
            f"{100 * row['of_single_batch']:.1f} %",
            f"{row['rss_mib_early']:.0f} → {row['rss_mib_late']:.0f}",
            "yes" if row["checksum"] == row["expected_checksum"] else "no",
        )
        for row in document.get("streaming", [])
    ]
    if not lines:
        return NOT_YET.format("benchmarks/results/inference.json --streaming")
    header = (
        *("network", "images", "batch", "images a second", "single batches at best"),
        *("of that", "MiB, early and late", "order and answers kept"),
    )
    return markdown(header, lines)


def setting(document):
    """What it was measured with."""
    made = document["made_with"]
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    reasons = {}
    for row in document["missing"]:
        place = f"{row['network']} at batch {row['batch']}, threads: {row['threads']}"
        reasons.setdefault(row["why"], []).append(place)
    told = "".join(
        f" Not measured ({why}): {'; '.join(places)}." for why, places in reasons.items()
    )
    note = f" {made['note']}" if "note" in made else ""
    return (
        f"`{made['command']}`, {made['date'][:10]}, {made['cores']} cores of "
        f"{made['processor']}, Python {made['python']}; {versions}.{note}{told}\n"
    )


def micros(row):
    if row is None:
        return ""
    value = row["us_per_image"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def share(value):
    return "" if value is None else f"{value:.2f}"


def markdown(header, rows):
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


# ---- What was tried ------------------------------------------------------------------
TRIALS = PATH.with_name("engine_trials.json")


def trials():
    """Every try of benchmarks/engine_trials.py, in µs an image, or a call of the gate."""
    if not TRIALS.exists():
        return "Not run yet: `python benchmarks/engine_trials.py --json FILE`.\n"
    report = json.loads(TRIALS.read_text("utf-8"))
    lines = ["| what | on | µs an image |", "| --- | --- | --- |"]
    for row in report["rows"]:
        where = [row.get("network", ""), f"batch {row['batch']}" if "batch" in row else ""]
        where += [f"{row['share']:.0%} leave" if "share" in row else ""]
        times = ", ".join(
            f"{name}: {1e3 * found['median'] / row['images']:.3g}"
            for name, found in row["ms"].items()
        )
        lines.append(f"| {row['trial']} | {', '.join(filter(None, where))} | {times} |")
    made = report["made_with"]
    lines.append(
        f"\n`{made['command']}`, {made['date']}; {made['processor']}, one thread, "
        "but where two are on trial; medians of rounds in turn, quartiles in the file."
    )
    return "\n".join(lines) + "\n"
