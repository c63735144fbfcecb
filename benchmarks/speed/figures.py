# SPDX-License-Identifier: Apache-2.0
"""Two figures a network: the gain against the share that leaves, and µs by batch size.

Drawn on nothing, in ink that shows on white and on near-black.
"""

import textwrap

import matplotlib

matplotlib.use("Agg")

from keras_branchy.plots.canvas import CHOSEN, EARLY, INK, panels  # noqa: E402

PANELS = (1, 32, 256)  # batches, as far as they were measured
DPI = 110
MEASURED = {"predict_early": (EARLY, "o"), "stage_runner": (CHOSEN, "s")}
BY_BATCH = {
    "predict_early": (EARLY, "o", "-"),
    "stage_runner": (CHOSEN, "s", "-"),
    "stage_runner, stream": (CHOSEN, "D", "--"),
    "stage_runner, one": (CHOSEN, "*", "-"),
    "tensorflow": (INK, "^", "-"),
    "litert": (INK, "v", "--"),
    "onnxruntime": (INK, "x", "-."),
    "torch": (INK, "+", ":"),
    "torch, loop": ("#5f9e6e", "+", "-"),
}


def draw(document, folder):
    """Writes the figures; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in document["rows"] if not row.get("absent")]
    found = []
    for name in document["networks"]:
        some = [row for row in rows if row["network"] == name]
        for kind, make in (("gain", gain), ("time", time)):
            ax = make(name, some)
            if ax is not None:
                path = folder / f"{kind}_{name}.png"
                ax.figure.savefig(path, dpi=DPI, transparent=True)
                matplotlib.pyplot.close(ax.figure)
                found.append(path)
    return found


def gain(name, rows):
    """Gain over the fastest plain backbone, a panel for each batch size."""
    rows, threads = of_most_threads([row for row in rows if swept(row)])
    batches = [batch for batch in PANELS if any(row["batch"] == batch for row in rows)]
    if not batches:
        return None
    axes = panels(None, (3.2, 2.8), [f"batch {batch}" for batch in batches])
    for ax, batch in zip(axes, batches, strict=True):
        gain_panel(ax, [row for row in rows if row["batch"] == batch])
    axes[0].set_ylabel("gain")
    title = f"{name}, {threads} thread{'s' * (threads > 1)}: times as fast as the"
    named(axes[0], f"{title} fastest plain backbone of any runtime")
    return axes[0]


def gain_panel(ax, rows):
    best = None
    for runtime, (colour, marker) in MEASURED.items():
        line = by_share(rows, runtime)
        if line:
            best = line
            x, y = zip(
                *[(r["shares"][0], r["gain_fastest_plain"]) for r in line], strict=True
            )
            ax.plot(x, y, color=colour, marker=marker, markersize=4, label=runtime)
    if best and "stages_us" in best[0]:
        x = [row["shares"][0] for row in best]
        ax.plot(
            x, [stage_limit(row) for row in best], "--", color=INK, label="stages alone"
        )
        ax.plot(x, [row["mac_limit"] for row in best], ":", color=INK, label="MACs allow")
    ax.axhline(1, color=INK, linewidth=0.6)
    ax.set_xlabel("share that leaves at exit 1")
    ax.set_ylim(bottom=0)


def stage_limit(row):
    """The gain if a batch took no longer than its stages alone."""
    return row["gain_fastest_plain"] * row["us_per_image"] / row["stages_us"]


def by_share(rows, runtime):
    some = [row for row in rows if row["runtime"] == runtime]
    return sorted(some, key=lambda row: row["shares"][0])


def time(name, rows):
    """µs an image against the batch size, both axes logarithmic."""
    setting = "calibrated" if any(r["setting"] == "calibrated" for r in rows) else "0.75"
    shown = [row for row in rows if row["setting"] in (None, setting)]
    shown, threads = of_most_threads(shown)
    if len({row["batch"] for row in shown}) < 2:
        return None
    (ax,) = panels(None, (6.4, 3.2), [""])
    for runtime, (colour, marker, line) in BY_BATCH.items():
        some = sorted(
            (row["batch"], row["us_per_image"])
            for row in shown
            if row["runtime"] == runtime
        )
        if some:
            x, y = zip(*some, strict=True)
            style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5}
            ax.plot(x, y, label=runtime, **style)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    for set_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        set_formatter(rounds_only)
    ticks = sorted({row["batch"] for row in shown})
    ax.set_xticks(ticks, [str(batch) for batch in ticks])
    ax.set_xlabel("batch")
    ax.set_ylabel("µs an image")
    left = "as calibrated" if setting == "calibrated" else "three in four leave at exit 1"
    named(ax, f"{name}, {threads} thread{'s' * (threads > 1)}, {left}")
    return ax


def rounds_only(value, _):
    """Numbers that begin with 1, 2 or 5, as they are; other ticks stay without one."""
    return f"{value:,.0f}" if f"{value:e}"[0] in "125" else ""


def of_most_threads(rows):
    threads = max((row["threads"] for row in rows), default=0)
    return [row for row in rows if row["threads"] == threads], threads


def swept(row):
    return row["setting"] not in (None, "calibrated")


def named(ax, title):
    """Title and legend of the figure, outside the panels."""
    figure = ax.figure
    title = textwrap.fill(title, int(11 * figure.get_figwidth()))
    figure.suptitle(title, color=INK, x=0.01, ha="left", fontsize="medium")
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(2, int(figure.get_figwidth() / 1.75)),
        frameon=False,
        labelcolor=INK,
        fontsize="small",
    )
