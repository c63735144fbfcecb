# SPDX-License-Identifier: Apache-2.0
"""The figures of a target, drawn from what it wrote."""

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

matplotlib.use("agg")

from keras_branchy.plots.canvas import CHOSEN, EARLY, INK, WRONG, canvas, legend, panels

COLOURS = (EARLY, CHOSEN, WRONG, "#5a9e6f", "#8a63b8", INK)
SEED_ALPHA = 0.45  # of one seed's line where there are several


def draw(document, folder):
    """Draws into the folder; returns the paths."""
    draw_target = DRAWN.get(document["target"], lambda document: {})
    paths = []
    for name, ax in draw_target(document).items():
        path = folder / f"{name}.png"
        ax.figure.savefig(path, dpi=110, facecolor="white")
        matplotlib.pyplot.close(ax.figure)
        paths.append(path)
    return paths


# ---- Tables: accuracy against MACs and against time ----------------------------------
def table(document):
    """Accuracy against both countings of MACs, the published points drawn in."""
    name = document["target"]
    ((network, curves),) = document["curves"].items()
    rows = document["rows"]
    left, right = panels(None, (5.2, 4.0), ["heads counted", "trunk only, as published"])
    for ax, counting in ((left, "everything"), (right, "trunk_only")):
        for curve in curves:
            costs = [100 / point["macs"][f"gain_{counting}"] for point in curve]
            accuracies = [100 * point["accuracy"] for point in curve]
            order = np.argsort(costs, kind="stable")
            ax.plot(
                np.array(costs)[order],
                np.array(accuracies)[order],
                color=EARLY,
                alpha=SEED_ALPHA,
                linewidth=1.5,
            )
        plain = [100 * row["plain_accuracy"] for row in rows]
        ax.plot(np.full(len(plain), 100), plain, "D", color=INK, ms=6)
        chosen = [row for row in rows if row["chosen"].startswith("no loss")]
        ax.plot(
            [100 / row["macs"][f"gain_{counting}"] for row in chosen],
            [100 * row["accuracy"] for row in chosen],
            "o",
            color=CHOSEN,
            ms=7,
        )
        ax.set_xlabel("mean MACs of an image, % of the plain network's")
        ax.set_ylabel("accuracy on the test images, %")
        ax.set_xlim(left=0)
        ax.grid(alpha=0.25, color=INK)
    for ax, counting in ((left, 1), (right, 0)):
        published(ax, document, counting)
    narrowed([left, right], plain + [100 * row["accuracy"] for row in chosen])
    if rows[0]["stands_in_for"]:
        for ax in (left, right):
            ax.set_title(
                f"stands in for {rows[0]['stands_in_for']}",
                loc="right",
                fontsize=8,
                color=INK,
            )
    below(
        left,
        {
            f"{network}, over thresholds": EARLY,
            "no loss on validation images": CHOSEN,
            "plain network": INK,
        },
    )
    return {name: left, **against_time(document)}


TIMED = {
    "batch_1_trunk_only": ("trunk only, batch 1", INK),
    "batch_1": ("everything, batch 1", EARLY),
    "batch_512": ("everything, batch 512", CHOSEN),
}


def against_time(document):
    """Accuracy gained against time in shares of the plain network's, where it was taken."""
    rows = [row for row in document["rows"] if row["times"]]
    if not rows:
        return {}
    ax = canvas(None, (6.4, 4.0), f"{rows[0]['network']}: each choice of thresholds")
    timed_points(ax, rows, document["published"])
    below(ax, {**dict(TIMED.values()), "published, trunk only": WRONG})
    return {f"{document['target']}_time": ax}


def timed_points(ax, rows, published_figures):
    """A dot for each row and counting, a cross for what was published."""
    for name, (_, colour) in TIMED.items():
        timed = [row for row in rows if name in row["times"]]
        ax.plot(
            [100 / row["times"][name]["gain"] for row in timed],
            [100 * (row["accuracy"] - row["plain_accuracy"]) for row in timed],
            "o",
            color=colour,
            alpha=0.7,
        )
    for figures in published_figures:
        gained = 100 * (figures["accuracy"] - figures["plain"])
        ax.plot([100 / figures["gain"]], [gained], "x", color=WRONG, ms=8, mew=2)
    ax.axvline(100, color=INK, linewidth=1, linestyle=":")
    ax.axhline(0, color=INK, linewidth=1, linestyle=":")
    ax.set_xlim(left=0)
    ax.set_xlabel("time of an image, % of the plain network's")
    ax.set_ylabel("accuracy, points above the plain network's")
    ax.grid(alpha=0.25, color=INK)


def chainer_table(document):
    """The same for the three rows of the Chainer version's table, a panel each."""
    rows = [row for row in document["rows"] if row["times"]]
    if not rows:
        return {}
    names = list(document["published"])
    by_name = {name: [r for r in rows if r["table_row"] == name] for name in names}
    axes = panels(None, (4.4, 3.8), [by_name[name][0]["network"] for name in names])
    for ax, name in zip(axes, names, strict=True):
        timed_points(ax, by_name[name], [document["published"][name]])
    below(axes[0], {**dict(TIMED.values()), "published, trunk only": WRONG})
    return {"chainer_table": axes[0]}


def below(ax, entries, more=()):
    """Names colours under all panels of the figure, and what `more` shows."""
    handles = [Patch(color=colour, label=name) for name, colour in entries.items()]
    handles += more
    ax.figure.legend(
        handles=handles,
        labelcolor=INK,
        frameon=False,
        ncols=len(handles),
        loc="outside lower center",
        handlelength=1.8 if more else 1.0,
        fontsize="small",
    )


def published(ax, document, counting):
    """The published accuracies, at the MACs of the published network and shares."""
    for figures in document["published"]:
        x = 100 / figures["macs"][counting]
        ax.plot(
            [x, 100], [100 * figures["accuracy"], 100 * figures["plain"]], "x", color=WRONG
        )
        # Where both lie close together, the higher one is named above.
        above = max(figures["accuracy"], figures["plain"]) if x > 50 else None
        for at, value, label in (
            (x, figures["accuracy"], "published, with exits"),
            (100, figures["plain"], "published, plain"),
        ):
            up = value == above
            ax.annotate(
                f"{label}\n{100 * value:.2f} %",
                (at, 100 * value),
                xytext=(0, 8 if up else -8),
                textcoords="offset points",
                ha="left" if at < 60 else "right",
                va="bottom" if up else "top",
                color=WRONG,
                fontsize=8,
            )


def narrowed(axes, values):
    """Shows the range that matters; curves fall far below it where everything leaves."""
    published = [
        value for ax in axes for line in ax.lines[-1:] for value in line.get_ydata()
    ]
    low, high = min([*values, *published]), max([*values, *published])
    room = max(high - low, 0.3)
    for ax in axes:
        ax.set_ylim(low - 1.6 * room, high + 0.5 * room)


# ---- The curves of the Chainer version -----------------------------------------------
def by_share(document):
    """Accuracy, and largest entropy that left, against the share at branch 1."""
    networks = list(dict.fromkeys(row["network"] for row in document["rows"]))
    axes = panels(None, (4.4, 3.6), networks)
    for ax, network in zip(axes, networks, strict=True):
        twin = ax.twinx()
        twin.tick_params(colors=INK)
        rows = [
            {**row, "percent": 100 * row["share"]}
            for row in document["rows"]
            if row["network"] == network
        ]
        errorbars(ax, rows, "percent", lambda row: row["accuracy"], EARLY)
        left = [row for row in rows if row["largest_entropy"] is not None]
        percents = sorted({row["percent"] for row in left})
        entropy = [
            np.mean([row["largest_entropy"] for row in left if row["percent"] == percent])
            for percent in percents
        ]
        twin.plot(percents, entropy, color=CHOSEN, linestyle="--", linewidth=1)
        ax.set_xlabel("images that leave at branch 1, %")
        ax.set_ylabel("accuracy, %", color=EARLY)
        twin.set_ylabel("largest entropy that left, nats", color=CHOSEN)
    return {"chainer_branch1": axes[0]}


def by_depth(document):
    """Accuracy of the network and of branch 1 against its convolutions."""
    axes = panels(None, (5.0, 3.8), ["with early exits", "branch 1 on all images"])
    values = (lambda row: row["accuracy"], lambda row: row["exit_accuracies"][0])
    for ax, value in zip(axes, values, strict=True):
        errorbars(ax, document["rows"], "branch1_convs", value, EARLY)
        ax.set_xlabel("convolutions in branch 1")
        ax.set_ylabel("accuracy on the test images, %")
        ax.set_xticks(range(5))
    return {"chainer_layers": axes[0]}


def errorbars(ax, rows, key, value, colour):
    """Mean over seeds, its standard error as bars, and each seed as a dot."""
    places = sorted({row[key] for row in rows})
    means, errors = [], []
    for place in places:
        found = [100 * value(row) for row in rows if row[key] == place]
        ax.plot([place] * len(found), found, ".", color=colour, alpha=0.5)
        means.append(np.mean(found))
        errors.append(np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0)
    ax.errorbar(places, means, errors, color=colour, capsize=4, marker="o")
    ax.grid(alpha=0.25, color=INK)


# ---- Ways to train, places, gates, depth ---------------------------------------------
def ways(document):
    """Accuracy of both exits, way by way."""
    names = list(dict.fromkeys(row["way"] for row in document["rows"]))
    ax = canvas(None, (7.6, 3.8), "How to train B-LeNet's exit")
    for index, colour in ((0, EARLY), (1, INK)):
        for height, name in enumerate(names):
            found = [
                100 * row["exit_accuracies"][index]
                for row in document["rows"]
                if row["way"] == name
            ]
            ax.plot(found, [height] * len(found), "o", color=colour, alpha=0.5)
            ax.plot([np.mean(found)], [height], "|", color=colour, ms=18, mew=2)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("accuracy on the test images, %; a dot a seed, a bar their mean")
    ax.grid(alpha=0.25, color=INK, axis="x")
    legend(ax, {"exit 1": EARLY, "last exit": INK})
    return {"training_modes": ax, **gradients(document)}


def gradients(document):
    """How much of each layer's gradient is there without exits, and with them."""
    rows = document["gradients"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    axes = panels(None, (4.6, 3.6), networks)
    for ax, network in zip(axes, networks, strict=True):
        for state, marker in (("untrained", "o"), ("after the trunk", "^")):
            for kind, colour in (("without_exits", INK), ("with_exits", EARLY)):
                found = np.array(
                    [
                        list(row[kind].values())
                        for row in rows
                        if row["network"] == network and row["weights"] == state
                    ]
                )
                layers = range(1, found.shape[1] + 1)
                ax.fill_between(
                    layers, found.min(0), found.max(0), color=colour, alpha=0.2, linewidth=0
                )
                ax.plot(
                    layers,
                    found.mean(0),
                    color=colour,
                    marker=marker,
                    ms=4,
                    linestyle="-" if state == "untrained" else "--",
                )
        ax.set_yscale("log")
        ax.set_xlabel("layer with a kernel, from the input")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylabel("norm of the gradient")
        ax.grid(alpha=0.25, color=INK)
    kinds = {"without exits": INK, "with exits": EARLY}
    styles = {"untrained": "-", "after the trunk": "--"}
    lines = [
        Line2D([], [], color=INK, linestyle=x, label=name) for name, x in styles.items()
    ]
    below(axes[0], kinds, lines)
    return {"gradient_norms": axes[0]}


def places(document):
    """What one exit saves at each place."""
    networks = list(dict.fromkeys(row["network"] for row in document["rows"]))
    axes = panels(None, (6.4, 3.8), networks)
    for ax, network in zip(axes, networks, strict=True):
        rows = [row for row in document["rows"] if row["network"] == network]
        names = list(dict.fromkeys(row["place"] for row in rows))
        for key, colour in (("gain_everything", EARLY), ("gain_trunk_only", INK)):
            for x, name in enumerate(names):
                found = [row[key] for row in rows if row["place"] == name]
                ax.plot([x] * len(found), found, "o", color=colour, alpha=0.5)
                ax.plot([x], [np.mean(found)], "_", color=colour, ms=22, mew=2)
        labels = [
            f"{name}\n{100 * rows_at(rows, name)['trunk_share_of_macs']:.0f} % of MACs\n"
            f"{100 * np.mean([r['share'] for r in rows if r['place'] == name]):.0f} % leave"
            for name in names
        ]
        ax.set_xticks(range(len(names)), labels, fontsize=8)
        ax.axhline(1, color=WRONG, linewidth=1, linestyle=":")
        ax.set_ylabel("times fewer MACs")
        ax.grid(alpha=0.25, color=INK, axis="y")
    below(axes[0], {"everything counted": EARLY, "trunk only": INK})
    return {"exit_placement": axes[0]}


def rows_at(rows, place):
    return next(row for row in rows if row["place"] == place)


def gates(document):
    """Accuracy against FLOPs by the loss that the gates were trained with."""
    network = document["rows"][0]["network"]
    stands_in_for = document["rows"][0]["stands_in_for"]
    title = f"{network}: gates on a frozen network"
    if stands_in_for:
        title = f"{network}, which stands in for {stands_in_for}"
    ax = canvas(None, (6.4, 4.0), title)
    for kind, colour in (("hinge", EARLY), ("crossentropy", CHOSEN)):
        for seed in document["seeds"]:
            points = [
                point
                for point in document["curves"]
                if point["gates"] == kind and point["seed"] == seed
            ]
            ax.plot(
                [2 * point["macs"]["everything"] / 1e6 for point in points],
                [100 * point["accuracy"] for point in points],
                color=colour,
                marker="o",
                ms=3,
                alpha=0.7,
            )
    ax.set_xlabel("mean MFLOPs of an image, gates counted")
    ax.set_ylabel("accuracy on the test images, %")
    ax.grid(alpha=0.25, color=INK)
    below(ax, {"hinge": EARLY, "crossentropy": CHOSEN})
    return {document["target"].replace("-", "_"): ax}


def depth(document):
    """Accuracy of each exit with and without stochastic depth."""
    ax = canvas(None, (6.0, 3.8), f"{document['rows'][0]['network']}: stochastic depth")
    kinds = {"all blocks kept": None, "survival falls to 0.5": 0.5}
    for (label, survival), colour in zip(kinds.items(), (INK, EARLY), strict=True):
        rows = [r for r in document["rows"] if r["survival_of_the_last_block"] == survival]
        places = [
            "plain",
            *(f"exit {k + 1}" for k in range(len(rows[0]["exit_accuracies"]))),
        ]
        for row in rows:
            values = [
                100 * row["plain_accuracy"],
                *(100 * v for v in row["exit_accuracies"]),
            ]
            ax.plot(range(len(places)), values, "o", color=colour, alpha=0.6, label=label)
        ax.set_xticks(range(len(places)), places)
    ax.set_ylabel("accuracy on the test images, %")
    ax.grid(alpha=0.25, color=INK)
    below(ax, {"all blocks kept": INK, "survival falls to 0.5": EARLY})
    return {"stochastic_depth": ax}


DRAWN = {
    "lenet": table,
    "alexnet": table,
    "resnet": table,
    "chainer-table": chainer_table,
    "chainer-branch1": by_share,
    "chainer-layers": by_depth,
    "training-modes": ways,
    "exit-placement": places,
    "dgate-resnet101": gates,
    "dgate-densenet201": gates,
    "stochastic-depth": depth,
}
