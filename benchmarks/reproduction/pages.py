# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/results.md, each from the file that its target wrote."""

import json
from pathlib import Path

import numpy as np

from benchmarks.reproduction import interior, losses
from benchmarks.reproduction.output import hours

RESULTS = Path(__file__).resolve().parents[1] / "results" / "reproduce"
ESTIMATES = RESULTS / "full_times"


def found(target):
    path = RESULTS / f"{target}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def page(target, render):
    """What `render` makes of a document, or the command that makes the document."""
    document = found(target)
    if document is None:
        return f"Not run yet: `python benchmarks/reproduce.py {target}` does.\n"
    return render(document) + made_with(document)


def made_with(document):
    """Schedule, data, machine and command, and the figure where there is one."""
    made, rows = document["made_with"], document["rows"]
    schedules = "; ".join(dict.fromkeys(row["schedule"] for row in rows))
    if "heads" in rows[0]:
        schedules += f"; heads {rows[0]['heads']}"
    data = "; ".join(dict.fromkeys(row["data"] for row in rows))
    seeds = ", ".join(map(str, document["seeds"]))
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    target = document["target"]
    figures = {target: "", f"{target} by time": "_time"}
    picture = "".join(
        f"\n![{name}](../benchmarks/results/reproduce/{figure})\n"
        for name, suffix in figures.items()
        if (RESULTS / (figure := f"{target.replace('-', '_')}{suffix}.png")).exists()
    )
    seeds = (
        f"Seed {seeds}"
        if len(document["seeds"]) == 1
        else (f"Seeds {seeds}; mean ± standard deviation over them")
    )
    cores = "1 core" if made["cores"] == 1 else f"{made['cores']} cores"
    return (
        f"{picture}\nSchedule {schedules}. Data {data}. {seeds}. {cores} of "
        f"{made['processor']}, {made['date'][:10]}; {versions}. `{made['command']}`\n"
    )


# ---- Tables like BranchyNet's --------------------------------------------------------
HEADER = (
    "",
    "plain, %",
    "with exits, %",
    "leave at each exit, %",
    "times fewer MACs, trunk only",
    "times fewer MACs, everything",
    "times as fast, trunk only, batch 1",
    "times as fast, everything, batch 1",
    "times as fast, everything, batch 512",
)


def table(document):
    published = document["published"]
    figures = published if isinstance(published, list) else list(published.values())
    groups = [document["rows"]]
    if not isinstance(published, list):
        groups = [
            [row for row in document["rows"] if row["table_row"] == name]
            for name in published
        ]
    lines = []
    for one, rows in zip(figures, groups, strict=True):
        lines.append(published_line(one))
        for chosen in dict.fromkeys(row["chosen"] for row in rows):
            lines.append(line([row for row in rows if row["chosen"] == chosen]))
    return markdown(HEADER, lines)


def published_line(figures):
    return (
        f"published: {figures['source']}",
        f"{100 * figures['plain']:.2f}",
        f"{100 * figures['accuracy']:.2f}",
        ", ".join(f"{100 * share:.1f}" for share in figures["shares"]),
        *(f"{gain:.2f}" if gain else "" for gain in figures.get("macs") or ("", "")),
        f"{figures['gain']:.2f}",
        "",
        "",
    )


def line(rows):
    """One way to choose thresholds, over the seeds."""
    name = named(rows[0], f", {rows[0]['chosen']}")
    shares = zip(*(row["shares"] for row in rows), strict=True)
    return (
        name,
        over([100 * row["plain_accuracy"] for row in rows]),
        over([100 * row["accuracy"] for row in rows]),
        ", ".join(f"{100 * sum(share) / len(share):.1f}" for share in shares),
        over([row["macs"]["gain_trunk_only"] for row in rows]),
        over([row["macs"]["gain_everything"] for row in rows]),
        *(timed(rows, size) for size in ("batch_1_trunk_only", "batch_1", "batch_512")),
    )


def named(row, more=""):
    """The network, what comes after its name, and what it stands in for."""
    name = f"`{row['network']}`{more}"
    if row["stands_in_for"]:
        name += f" (stands in for `{row['stands_in_for']}`)"
    return name


def timed(rows, size):
    gains = [row["times"][size]["gain"] for row in rows if row["times"]]
    return over(gains) if gains else "not timed"


def over(values):
    """Mean and, of several, standard deviation."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.2f} ± {spread:.2f}"


def markdown(header, rows):
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


# ---- The other targets ---------------------------------------------------------------
def grouped(rows, *keys):
    """Rows by the values of some keys, in the order in which they come."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def percents(rows, value):
    return over([100 * value(row) for row in rows])


def layers(document):
    header = (
        "convolutions in branch 1",
        "branch 1, %",
        "with exits, %",
        "times fewer MACs, everything",
    )
    rows = [
        (
            convs,
            percents(found, lambda row: row["exit_accuracies"][0]),
            percents(found, lambda row: row["accuracy"]),
            over([row["macs"]["gain_everything"] for row in found]),
        )
        for (convs,), found in grouped(document["rows"], "branch1_convs").items()
    ]
    found = interior.of_rows(document["rows"], "branch1_convs")
    said = interior.sentence(found, "With early exits", lambda n: f"{n} convolutions")
    return f"{markdown(header, rows)}\n{said}\n"


def branch1(document):
    shown = {0.0, 0.25, 0.5, 0.75, 1.0}
    header = (
        *("network", "leave at branch 1", "accuracy, %", "largest entropy, nats"),
        "times fewer MACs, everything",
    )
    rows = []
    for (network, share), found in grouped(document["rows"], "network", "share").items():
        if round(share, 2) in shown:
            largest = [row["largest_entropy"] for row in found]
            entropy = "" if None in largest else over(largest)
            accuracy = percents(found, lambda row: row["accuracy"])
            gain = over([row["macs"]["gain_everything"] for row in found])
            rows.append((f"`{network}`", f"{100 * share:.0f} %", accuracy, entropy, gain))
    said = [
        interior.sentence(
            interior.of_rows(found, "share"),
            f"`{network}`",
            lambda share: f"{100 * share:.0f} % leaving",
        )
        for (network,), found in grouped(document["rows"], "network").items()
    ]
    return f"{markdown(header, rows)}\n" + "".join(f"- {line}\n" for line in said)


def ways(document):
    header = (
        "way",
        "exit 1, %",
        "last exit, %",
        "leave at exit 1, %",
        "with exits, %",
        "times fewer MACs, everything",
    )
    rows = [
        (
            way,
            percents(found, lambda row: row["exit_accuracies"][0]),
            percents(found, lambda row: row["exit_accuracies"][-1]),
            percents(found, lambda row: row["shares"][0]),
            percents(found, lambda row: row["accuracy"]),
            over([row["macs"]["gain_everything"] for row in found]),
        )
        for (way,), found in grouped(document["rows"], "way").items()
    ]
    return f"{markdown(header, rows)}\n{gradients(document)}"


def gradients(document):
    """What exits do to the first layer's gradient, and the figure of all layers."""
    said = []
    for (network, state), found in grouped(
        document["gradients"], "network", "weights"
    ).items():
        times = [first(row["with_exits"]) / first(row["without_exits"]) for row in found]
        said.append(f"`{network}`, {state}: {over(times)}")
    return (
        "The norm of the first layer's gradient with exits, in times of that without, at "
        f"the same weights: {'; '.join(said)}.\n\n"
        "![gradients by layer](../benchmarks/results/reproduce/gradient_norms.png)\n"
    )


def first(norms):
    return next(iter(norms.values()))


def places(document):
    header = (
        "network",
        "first exit at",
        "of the trunk's MACs",
        "its accuracy, %",
        "leave, %",
        "with it, %",
        "times fewer MACs, everything",
    )
    rows = [
        (
            f"`{network}`",
            f"`{place}`",
            f"{100 * found[0]['trunk_share_of_macs']:.0f} %",
            percents(found, lambda row: row["exit_accuracy"]),
            percents(found, lambda row: row["share"]),
            percents(found, lambda row: row["accuracy"]),
            over([row["gain_everything"] for row in found]),
        )
        for (network, place), found in grouped(document["rows"], "network", "place").items()
    ]
    told = (
        f"- `{network}`: {best_place(rows)}\n"
        for (network,), rows in grouped(document["rows"], "network").items()
    )
    return f"{markdown(header, rows)}\n{''.join(told)}"


def best_place(rows):
    """Where one exit saves most, and whether by more than the noise."""
    gains = {
        place: np.array([row["gain_everything"] for row in found])
        for (place,), found in grouped(rows, "place").items()
    }
    best, second = sorted(gains, key=lambda place: -gains[place].mean())[:2]
    found = interior.against_noise(gains[best] - gains[second])
    start = (
        f"one exit saves most at `{best}`, {over(gains[best])} times fewer MACs, and next "
        f"most at `{second}`, {over(gains[second])}"
    )
    if found["standard_error"] is None:
        return f"{start}; one training cannot say whether that is noise."
    verdict = "exceeds" if found["exceeds_noise"] else "does not exceed"
    return f"{start}: the difference, {found['gain']:.2f}, {verdict} the noise over seeds."


def drops(document):
    """Gates, or linear exits, on a frozen network."""
    header = ("", "last exit, %", "with exits, %", "leave at each exit, %", "MACs saved, %")
    rows = [published_gates(figures) for figures in document.get("published", ())]
    for (network, kind, drop), found in grouped(
        [{"gates": "", **row} for row in document["rows"]],
        "network",
        "gates",
        "allowed_drop",
    ).items():
        shares = zip(*(row["shares"] for row in found), strict=True)
        name = named(
            {**found[0], "network": network},
            f"{' ' * bool(kind)}{kind}, {100 * drop:g} points allowed",
        )
        rows.append(
            (
                name,
                percents(found, lambda row: row["exit_accuracies"][-1]),
                percents(found, lambda row: row["accuracy"]),
                ", ".join(f"{100 * sum(share) / len(share):.1f}" for share in shares),
                over([100 - 100 / row["macs"]["gain_everything"] for row in found]),
            )
        )
    curves = document.get("curves")
    if not curves:
        return markdown(header, rows)
    most = ", ".join(
        f"{kind} {100 * share:.0f} %" for kind, share in losses.saved(document).items()
    )
    return (
        f"{markdown(header, rows)}\nMost MACs saved within 2 points of the last exit on "
        "the test images, at thresholds chosen for a cost on validation images: "
        f"{most}. "
        f"{losses.sentence(curves)}\n"
    )


def published_gates(figures):
    dropped = figures["accuracy_drop"]
    saved = (
        f"{100 * figures['share_saved']:.0f} % of FLOPs"
        if "share_saved" in figures
        else f"{figures['flops_saved'] / 1e6:.0f} MFLOPs"
    )
    at = ", ".join(f"{threshold:g}" for threshold in figures.get("thresholds", ()))
    return (
        f"published: d-gates, hinge{f', thresholds {at}' if at else ''}",
        "",
        f"{100 * dropped:.1f} points less" if dropped else "unchanged",
        "",
        saved,
    )


def depth(document):
    header = (
        *("", "survival of the last block", "plain, %", "exits, %", "with exits, %"),
        "times fewer MACs, everything",
    )
    rows = []
    for (survival,), found in grouped(
        document["rows"], "survival_of_the_last_block"
    ).items():
        exits = zip(*(row["exit_accuracies"] for row in found), strict=True)
        rows.append(
            (
                named(found[0]),
                "all are kept" if survival is None else survival,
                percents(found, lambda row: row["plain_accuracy"]),
                ", ".join(over([100 * value for value in one]) for one in exits),
                percents(found, lambda row: row["accuracy"]),
                over([row["macs"]["gain_everything"] for row in found]),
            )
        )
    return markdown(header, rows)


RENDERED = {
    "lenet": table,
    "alexnet": table,
    "resnet": table,
    "chainer-table": table,
    "chainer-branch1": branch1,
    "chainer-layers": layers,
    "training-modes": ways,
    "exit-placement": places,
    "dgate-resnet101": drops,
    "dgate-densenet201": drops,
    "cdl": drops,
    "stochastic-depth": depth,
}


# ---- How long the published schedules take --------------------------------------------
def full_times():
    """Of every target that was estimated with `--full`: trainings and hours of a seed."""
    documents = [
        json.loads(path.read_text("utf-8")) for path in sorted(ESTIMATES.glob("*.json"))
    ]
    if not documents:
        command = "python benchmarks/reproduce.py TARGET --full --estimate"
        return f"Not estimated yet: `{command}` does.\n"
    documents.sort(key=lambda document: document["hours"])
    rows = [
        (
            f"`{document['made_with']['command']}`",
            ", ".join(
                f"`{row['training'].replace('-full-0', '')}` {row['epochs']} epochs"
                for row in document["rows"]
            ),
            hours(document["hours"]),
        )
        for document in documents
    ]
    made = documents[0]["made_with"]
    cores = "1 core" if made["cores"] == 1 else f"{made['cores']} cores"
    return (
        markdown(("command", "trains", f"a seed, on {cores}"), rows)
        + f"\n{cores} of {made['processor']}, {made['date'][:10]}; a few steps of each "
        "training were timed.\n"
    )


def regions():
    """By name of the region in docs/results.md: a function that writes it."""
    return {
        "reproduced_full_times": full_times,
        **{
            f"reproduced_{target.replace('-', '_')}": (
                lambda target=target, render=render: page(target, render)
            )
            for target, render in RENDERED.items()
        },
    }
