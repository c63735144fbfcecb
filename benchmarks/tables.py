# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README and docs from the files in benchmarks/results.

    python benchmarks/tables.py            writes them
    python benchmarks/tables.py --check    says which differ from their results

A document marks the place: `<!-- results: NAME -->` and `<!-- /results -->`, NAME being a
function of this file, or a region of benchmarks/reproduction/pages.py or
benchmarks/speed/pages.py.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks.reproduction import pages  # noqa: E402
from benchmarks.speed import pages as speed_pages  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
REGION = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def mnist_b_lenet():
    """The demo's report, `make demo` on MNIST."""
    report = json.loads((RESULTS / "mnist_b_lenet.json").read_text("utf-8"))
    test, cost, time = report["test"], report["cost"], report["time_per_image"]
    shares = " and ".join(f"{100 * share:.1f} %" for share in test["exit_shares"])
    exits = ", ".join(f"{100 * accuracy:.2f} %" for accuracy in test["exits"].values())
    rows = [
        (
            "accuracy on the test set",
            f"{100 * test['plain']:.2f} %",
            f"{100 * test['staged']:.2f} %",
            f"{100 * (test['staged'] - test['plain']):+.2f} points",
        ),
        ("every image at exit 1, at exit 2", "", exits, ""),
        ("leave at exit 1, at exit 2", "", shares, ""),
    ]
    for key, name in (("heads_counted", "everything"), ("heads_left_out", "trunk only")):
        rows.append(
            (
                f"multiplications an image, {name}",
                f"{cost['plain_macs'] / 1e6:.3f} M",
                f"{cost['expected_macs'][key] / 1e6:.3f} M",
                f"{cost['times_less'][key]:.2f} times fewer",
            )
        )
    for size, taken in time.items():
        rows.append(
            (
                f"µs an image, {size.replace('_', ' of ')}",
                f"{1e3 * taken['plain']['median']:.1f}",
                f"{1e3 * taken['staged']['median']:.1f}",
                speed(taken["times_as_fast"]["median"]),
            )
        )
    made = report["made_with"]
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    return (
        markdown(("", "plain LeNet", "B-LeNet", ""), rows)
        + f"\n{report['data']}. Seed {report['seed']}, {report['seconds']:.0f} s in all, "
        f"{made['cores']} cores of {made['processor']}, {made['date'][:10]}; {versions}. "
        "Times are medians, both networks taking turns as concrete `tf.function`s, from "
        "NumPy to NumPy.\n"
    )


# What a reader chooses among; the rest is in litert.json.
RUNTIMES = [
    ("tensorflow", "a `tf.function`"),
    ("onnxruntime", "onnxruntime"),
    ("litert", "LiteRT"),
    ("cascade", "LiteRT, the cascade file"),
    ("stage_runner", "`StageRunner`"),
]


def litert_runtimes():
    """One image at a time, by runtime: the plain LeNet, B-LeNet, and its light exit."""
    report = json.loads((RESULTS / "litert.json").read_text("utf-8"))
    base = plain_in_litert(report)["mean_us"]
    rows = []
    for runtime, name in RUNTIMES:
        for row in report["rows"]:
            shown = NETWORKS.get(row["network"])
            if row["runtime"] == runtime and shown and in_short(row):
                title = name + (f", {row['quantization']}" if row["quantization"] else "")
                rows.append((title, shown, *figures(row, base)))
    return markdown(("runtime", "network", *FIGURES), rows) + surroundings(report)


NETWORKS = {"lenet": "plain LeNet", "b_lenet": "B-LeNet", "light_exit": "light exit"}
FIGURES = ("µs an image", "99th percentile", "accuracy", "leave at exit 1", "times as fast")


def in_short(row):
    """Float files, and dynamic ones of LiteRT: of the plain network as of cascades."""
    return row["quantization"] in (None, "dynamic")


def litert_exits():
    """Every first exit that was tried under the trunk of LeNet, in float32 cascades."""
    report = json.loads((RESULTS / "litert.json").read_text("utf-8"))
    base = plain_in_litert(report)["mean_us"]
    rows = [
        (f"`{row['network']}`", *figures(row, base))
        for row in sorted(report["rows"], key=lambda row: row["mean_us"])
        if row["runtime"] == "cascade" and row["quantization"] is None
    ]
    return markdown(("first exit", *FIGURES), rows) + surroundings(report)


def litert_stages():
    """What a cascade costs beside its stages."""
    report = json.loads((RESULTS / "litert.json").read_text("utf-8"))
    rows = [
        (
            f"`{row['network']}`",
            row["quantization"] or "float32",
            " and ".join(f"{micros:.1f}" for micros in row["stage_us"]),
            f"{row['weighted_us']:.1f}",
            f"{row['in_turn_us']:.1f}",
            f"{row['cascade_us']:.1f}",
            f"{row['ratio']:.2f} and {row['ratio_in_turn']:.2f}",
        )
        for row in report["cascade_against_stages"]
    ]
    header = ("first exit", "numbers", "stages, µs", "weighted", "in turn", "cascade", "")
    return markdown(header, rows)


def litert_cascade():
    """Where a cascade's time goes for an image that leaves at exit 1."""
    report = json.loads((RESULTS / "litert_cascade.json").read_text("utf-8"))
    found = {}
    for row in report["rows"]:
        found.setdefault(row["network"], {})[row["part"]] = row
    parts = {
        "stage 1": "stage 1 alone",
        "carried": "… with the tensors it carries",
        "gate": "… with softmax, label and score",
        "if": "… and an `IF` with nothing in its branches",
        "cascade": "the whole cascade",
    }
    networks = list(found)
    rows = [
        (name, *(with_spread(found[network][part], 2) for network in networks))
        for part, name in parts.items()
    ]
    made = report["made_with"]
    return (
        markdown(("part", *(f"`{network}`, µs" for network in networks)), rows)
        + f"\nMedian of {report['rounds']} rounds, ± half the distance between the "
        f"quartiles; one thread of {made['processor']}, {made['date'][:10]}.\n"
    )


def plain_in_litert(report):
    return next(
        row
        for row in report["rows"]
        if row["runtime"] == "litert" and row["quantization"] is None
    )


def figures(row, base):
    return (
        f"{row['mean_us']:.1f}",
        f"{row['p99_us']:.1f}",
        f"{100 * row['accuracy']:.2f} %",
        "" if row["plain"] else f"{100 * row['shares'][0]:.1f} %",
        f"{base / row['mean_us']:.2f}",
    )


def surroundings(report):
    made = report["made_with"]
    return (
        f"\n{report['images']:,} test images of MNIST, batch of one, one thread of "
        f"{made['processor']}, {made['date'][:10]}. From NumPy to a label; for each image "
        f"the median of {report['rounds']} rounds in turn.\n"
    )


def litert_parity():
    """Exported files against Keras, thresholds at the median scores."""
    report = json.loads((RESULTS / "litert_parity.json").read_text("utf-8"))
    rows = [
        (
            f"`{row['network']}`",
            f"`{row['layout']}`",
            row["quantization"] or "float32",
            f"{row['images']:,}",
            row["differ"],
            row["near_threshold"],
            f"{100 * row['exits_moved']:.2f} %",
            f"{100 * row['accuracy_lost']:+.2f} points",
        )
        for row in report["rows"]
    ]
    header = (
        "network",
        "layout",
        "numbers",
        "images",
        "differ",
        "near the threshold",
        "exits that differ",
        "accuracy lost",
    )
    return markdown(header, rows)


def training_modes():
    """README's ways to train, `python benchmarks/training_modes.py`."""
    runs = json.loads((RESULTS / "training_modes.json").read_text("utf-8"))["rows"]
    (data,) = {run["settings"]["data"] for run in runs}
    (batch_size,) = {run["settings"]["batch_size"] for run in runs}
    by_way = {}
    for run in runs:
        by_way.setdefault(run["way"], []).append(run)
    rows = [
        (
            way,
            spread([run["exits"].get("exit_1") for run in taken]),
            spread([run["exits"]["exit_2"] for run in taken]),
            spread([run.get("early_exit") for run in taken]),
            spread([run.get("cost") for run in taken]),
            f"{sum(run['core_seconds'] for run in taken) / len(taken):.0f} s",
        )
        for way, taken in by_way.items()
    ]
    header = ("way", "exit 1", "exit 2", "leaving early", "of the multiplications", "core")
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    return (
        markdown(header, rows)
        + f"\n{data}. Mean and range over the seeds {seeds}; batches of {batch_size}, "
        "epochs as in the lines. Lines that freeze the trunk start from the plain network "
        "of the same seed, whose training is not in their seconds. "
        f"{circumstances([run['made_with'] for run in runs])}.\n"
    )


def spread(shares):
    """Mean and range in percent; empty where nothing was measured."""
    shares = [100 * share for share in shares if share is not None]
    if not shares:
        return ""
    mean = sum(shares) / len(shares)
    return f"{mean:.2f} % ({min(shares):.2f} – {max(shares):.2f})"


def circumstances(made):
    """What runs were made with; all that occurs, where they differ."""

    def each(values):
        return " and ".join(sorted(set(values)))

    names = made[0]["versions"]
    versions = ", ".join(
        f"{name} {each(one['versions'][name] for one in made)}" for name in names
    )
    machines = each(f"{one['cores']} cores of {one['processor']}" for one in made)
    return f"{machines}, {each(one['date'][:10] for one in made)}; {versions}"


def exit_gate():
    """The gate inside a graph, beside what it replaces."""
    report = json.loads((RESULTS / "exit_gate.json").read_text("utf-8"))
    shapes = {}
    for row in report["rows"]:
        key = row["threads"], row["batch"], row["classes"]
        shapes.setdefault(key, {})[row["implementation"]] = row
    rows = []
    for (threads, batch, classes), found in shapes.items():
        native = found["native"]
        rows.append(
            (
                f"{batch}×{classes}",
                threads,
                with_spread(native, 2),
                *(
                    f"{found[name]['median_us'] / native['median_us']:.1f}"
                    for name in ("composite", "xla", "reference")
                ),
            )
        )
    header = ("B×C", "threads", "native, µs", "composite", "XLA", "reference")
    return markdown(header, rows) + gate_setting(report)


def gate_in_stages():
    """Staged inference with the native gate and with the reference."""
    report = json.loads((RESULTS / "exit_gate_stages.json").read_text("utf-8"))
    runs = {}
    for row in report["staged"]:
        runs.setdefault((row["model"], row["batch"]), {})[row["implementation"]] = row
    rows = [
        (
            model,
            batch,
            with_spread(found["native"], 1),
            with_spread(found["reference"], 1),
            speed(found["reference"]["median_us"] / found["native"]["median_us"]),
        )
        for (model, batch), found in sorted(runs.items())
    ]
    header = ("model", "batch", "native, µs", "reference, µs", "")
    return markdown(header, rows) + gate_setting(report)


def gate_compaction():
    """What choosing the survivors of a batch costs in a graph."""
    report = json.loads((RESULTS / "exit_gate_stages.json").read_text("utf-8"))
    batches = {}
    for row in report["compaction"]:
        batches.setdefault(row["batch"], {})[row["work"]] = row
    works = ("where", "where and gather", "boolean_mask")
    rows = [
        (batch, *(with_spread(row[work], 1) for work in works))
        for batch, row in batches.items()
    ]
    header = ("batch", *(f"`{work}`, µs" for work in works))
    return markdown(header, rows) + gate_setting(report)


NOT_MEASURED = "Not measured yet: `make gpu-check` on a machine with an NVIDIA GPU.\n"


def gpu_results(name):
    """Rows of a file of `make gpu-check`, and where they come from; None without it."""
    path = RESULTS / "gpu" / name
    if not path.exists():
        return None
    report = json.loads(path.read_text("utf-8"))
    if report["rehearsal"]:
        raise ValueError(f"{path.name} is of a rehearsal on the CPU, and no result.")
    made = [part["made_with"] for part in report["parts"] if part["made_with"]]
    gpus = sorted({gpu for one in made for gpu in one["gpus"]})
    versions = {k: v for one in made for k, v in one["versions"].items()}
    named = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    dates = " and ".join(sorted({one["date"] for one in made}))
    return report["rows"], f"\n{'; '.join(gpus)}; {dates}; {named}.\n"


def gpu_kernel():
    """The CUDA kernel beside what others would write."""
    found = gpu_results("kernel.json")
    if found is None:
        return NOT_MEASURED
    shapes = {}
    for row in found[0]:
        if row.get("implementation"):
            key = row["batch"], row["classes"], row["dtype"]
            shapes.setdefault(key, {})[row["implementation"]] = row
    others = ("torch", "torch.compile", "triton", "cupy", "jax")
    rows = []
    for (batch, classes, dtype), at in shapes.items():
        native = at.get("native", {})
        base, share = native.get("median_us"), native.get("copy_share")
        rows.append(
            (
                f"{batch}×{classes}",
                dtype,
                f"{base:.2f}" if base else "",
                f"{100 * share:.0f} %" if share else "",
                *(times_of(at.get(name), base) for name in others),
            )
        )
    header = ("B×C", "dtype", "native, µs", "of the copy", *others)
    return markdown(header, rows) + found[1]


def times_of(row, base):
    """How many times as long as the kernel; empty where either was not measured."""
    return f"{row['median_us'] / base:.1f}" if base and row and row["median_us"] else ""


def gpu_staged():
    """Staged inference on the GPU against the plain backbone, both countings."""
    found = gpu_results("staged.json")
    if found is None:
        return NOT_MEASURED
    rows = [
        (
            f"`{row['network']}`, {row['framework']}",
            row["batch"],
            ", ".join(f"{100 * share:.0f} %" for share in row["shares"]),
            f"{row['gain']:.2f}",
            f"{row['gain_over_xla']:.2f}" if row.get("gain_over_xla") else "",
            f"{row['gain_published_counting']:.2f}",
            f"{row['mac_limit']:.2f}" if row.get("mac_limit") else "",
            f"{row['efficiency']:.2f}",
        )
        for row in found[0]
        if row.get("kind") == "staged"
    ]
    header = (
        *("network", "batch", "shares", "gain", "over XLA", "trunk only"),
        *("limit of MACs", "efficiency"),
    )
    return markdown(header, rows) + found[1]


def gpu_parity():
    """Answers on the GPU against those on the CPU."""
    found = gpu_results("parity.json")
    if found is None:
        return NOT_MEASURED
    rows = [
        (
            f"`{row['network']}`",
            f"{row['images']:,}",
            row["differ"],
            f"{row['near']} ({100 * row['near_share']:.2f} %)",
        )
        for row in found[0]
        if "network" in row
    ]
    header = ("network", "images", "differ", "near a threshold")
    return markdown(header, rows) + found[1]


def with_spread(row, digits):
    return f"{row['median_us']:.{digits}f} ± {row['spread_us']:.{digits}f}"


def gate_setting(report):
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return (
        f"\n`{report['command']}`, {report['date']}, {report['hardware']}; {versions}. "
        "Medians; ± is half the distance between the quartiles.\n"
    )


def guarantees():
    """How often promises were broken in the simulation, one row for each setting."""
    report = json.loads((RESULTS / "guarantees.json").read_text("utf-8"))
    settings = {}
    for row in report["rows"]:
        place = row["exits"], row["calibrated"], row["samples"], row["limit"]
        settings.setdefault(place, {})[row["confidence"]] = row
    rows = []
    for (exits, kind, samples, limit), found in settings.items():
        naive, sure, mean = found.get(None), found[0.95], found["mean"]
        rows.append(
            (
                exits,
                kind,
                f"{samples:,}",
                f"{100 * limit:g} %",
                f"{sure['repeats']:,}",
                *(broken(found[level]) for level in (0.95, 0.9)),
                f"{100 * mean['mean_drop']:.2f} %",
                broken(naive) if naive else "",
                *(share_of(found[level]["mean_cost"]) for level in (0.95, 0.9)),
                share_of(sure["least_cost_at_drop"]),
            )
        )
    header = (
        "exits",
        "calibrated",
        "samples",
        "may drop",
        "draws",
        "dropped more, at 95 %",
        "at 90 %",
        "dropped, on average",
        "dropped more, no confidence",
        "cost at 95 %",
        "at 90 %",
        "least",
    )
    refused = sum(row["refused"] for row in report["rows"])
    must = sum(row["repeats"] for row in report["rows"] if row["must_be_refused"])
    return (
        markdown(header, rows)
        + f"\n`{report['command']}`, {report['date']}; {each_version(report)}. Populations "
        f"of {report['population']:,}; {report['wanted_repeats']:,} draws of each setting "
        f"are wanted, the first {report['naive_repeats']} of them without a confidence, "
        f"too. Refused: {refused:,} requests, of {must:,} that the arithmetic demands."
        f"{unfinished(report, settings)}\n\n{times_the_least(settings)}\n"
    )


def times_the_least(settings):
    """What a promise costs with the most samples, beside the least that is possible."""
    most = max(samples for _, _, samples, _ in settings)
    told = []
    for level in (0.95, 0.9):
        ratios = {
            place: found[level]["mean_cost"] / found[level]["least_cost_at_drop"]
            for place, found in settings.items()
            if place[2] == most
        }
        exits, kind, _, limit = worst = max(ratios, key=ratios.get)
        told.append(
            f"at {100 * level:g} % on average {sum(ratios.values()) / len(ratios):.2f}, at "
            f"most {ratios[worst]:.2f} ({exits} exits, {kind}, {100 * limit:g} %), and "
            f"over 1.15 in {sum(ratio > 1.15 for ratio in ratios.values())} of "
            f"{len(ratios)}"
        )
    return f"Cost with {most:,} samples, in times the least: {'; '.join(told)}."


def unfinished(report, settings):
    """What a simulation that was cut off must say of itself."""
    wanted, sizes = report["settings"], report["wanted_repeats"]
    whole = sum(found[0.95]["repeats"] == sizes for found in settings.values())
    if whole == wanted:
        return ""
    return (
        f" **The simulation is not finished: {whole} of {wanted} settings have all their "
        f"draws, {len(settings) - whole} have some, the others are missing here.**"
    )


def guarantees_real():
    """The same on MNIST and CIFAR-10, all held-out images being the truth."""
    report = json.loads((RESULTS / "guarantees_real.json").read_text("utf-8"))
    names = {"mean": "on average", None: "none"}
    rows = []
    for row in sorted(
        report["rows"], key=lambda row: (row["data"] != "mnist", row["limit"])
    ):
        level = row["confidence"]
        rows.append(
            (
                row["data"],
                f"{100 * row['limit']:g}",
                names.get(level) or f"{100 * level:g} %",
                f"{100 * row['mean_drop']:+.2f}",
                broken(row),
                share_of(row["mean_cost"]),
                share_of(row["least_cost_at_drop"]),
            )
        )
    header = (
        "data",
        "points allowed",
        "confidence",
        "points dropped",
        "more than allowed",
        "cost",
        "least",
    )
    sources = {row["source"]: row for row in report["rows"]}
    told = "; ".join(
        f"{source}, exits right on "
        + ", ".join(f"{100 * share:.2f} %" for share in row["exits"])
        for source, row in sorted(sources.items(), reverse=True)
    )
    return (
        markdown(header, rows)
        + f"\n{report['rows'][0]['repeats']} draws of {report['rows'][0]['samples']:,}. "
        f"{told}. `{report['command']}`, {report['date']}; {each_version(report)}.\n"
    )


def broken(row):
    """How often accuracy drops by more than was allowed, where it was not refused."""
    return "refused" if row["drop_exceeds"] is None else share_of(row["drop_exceeds"])


def share_of(share):
    return "" if share is None else f"{100 * share:.1f} %"


def each_version(report):
    return ", ".join(f"{name} {number}" for name, number in report["versions"].items())


def mutation():
    """How many broken versions of each module its tests notice."""
    report = json.loads((RESULTS / "mutation.json").read_text("utf-8"))
    rows = [
        (
            f"`{row['module']}.py`",
            row["mutants"],
            row["noticed"],
            f"{100 * row['noticed'] / row['mutants']:.0f} %",
        )
        for row in report["rows"]
    ]
    return markdown(("module", "broken versions", "noticed", ""), rows)


def exit_costs():
    """Candidates for exits by measured time, and the networks that came of them."""
    report = json.loads((RESULTS / "exit_costs.json").read_text("utf-8"))
    batches = list(report["rows"][0]["us_an_image"])
    header = ("network", "exits", "accuracy", "leave early", "stages, µs at batch 1")
    rows = []
    for row in report["rows"]:
        early = " and ".join(f"{100 * share:.1f} %" for share in row["shares"][:-1])
        rows.append(
            (
                f"`{row['network']}`",
                row["exits"] if row["kind"] == "plain" else f"`{row['exits']}`",
                f"{100 * row['accuracy']:.2f} %",
                early or "–",
                ", ".join(f"{micros:.1f}" for micros in row["stage_us"]["1"]),
                *(f"{row['us_an_image'][batch]:.1f}" for batch in batches),
                *(f"{row['times_as_fast'][batch]:.2f}" for batch in batches),
            )
        )
    shown = [f"{text}, batch {n}" for text in ("µs an image", "gain") for n in batches]
    return markdown((*header, *shown), rows) + (
        "\nEach exit's stage and what is left behind it, as LiteRT files on one thread, "
        f"medians of turns; {circumstances([report['made_with']])}.\n"
    )


def speed(ratio):
    return f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times slower"


def markdown(header, rows):
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def rendered(text):
    """`text` with every marked region written anew."""

    def region(match):
        others = {**pages.regions(), **speed_pages.regions()}
        write = others.get(match[2]) or globals()[match[2]]
        return match[1] + write() + match[3]

    return REGION.sub(region, text)


def documents():
    pages = sorted((ROOT / "docs").glob("*.md"))
    return [ROOT / "README.md", ROOT / "custom_ops" / "README.md", *pages]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    stale = []
    for path in documents():
        text = path.read_text("utf-8")
        new = rendered(text)
        if new == text:
            continue
        stale.append(path.relative_to(ROOT))
        if not args.check:
            path.write_text(new, "utf-8")
    if stale and args.check:
        sys.exit(f"Out of date: {', '.join(map(str, stale))}. Run {sys.argv[0]}.")
    print("Written: " + ", ".join(map(str, stale)) if stale else "All up to date.")


if __name__ == "__main__":
    main()
