# SPDX-License-Identifier: Apache-2.0
"""Every figure, for a light and for a dark page, with 2 and with 12 exits, to be looked at.

python tests/figure_gallery.py FOLDER
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from keras_branchy import plots
from keras_branchy.criteria import gate_scores

PAGES = {"light": "white", "dark": "#0d1117"}  # backgrounds
EXITS = (2, 12)


def answers(exits, classes, samples=5000, seed=0):
    """Labels [n] and logits [N, n, C] of exits that get better, and are too sure."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    ease = rng.gamma(2.0, 2.5, samples)
    logits = []
    for index in range(exits):
        noise = rng.normal(0, 1.0, (samples, classes))
        noise[np.arange(samples), labels] += ease * (0.5 + 0.7 * (index + 1) / exits)
        logits.append(2.5 * noise)
    return labels, np.stack(logits)


def staged(scores, threshold=0.05):
    """The exit at which each sample leaves."""
    leaves = np.concatenate([scores[:-1] < threshold, np.ones((1, scores.shape[1]), bool)])
    return leaves.argmax(0)


def figures(exits, classes):
    """Name and Axes of every figure."""
    labels, logits = answers(exits, classes)
    scores, given = gate_scores(logits)
    sure, _ = gate_scores(logits, "max_probability")
    correct = given == labels
    where = staged(scores)
    right = correct[where, np.arange(len(labels))]
    shares = np.bincount(where, minlength=exits) / len(labels)
    there = [
        right[where == k].mean() if (where == k).any() else np.nan for k in range(exits)
    ]
    yield "accuracy_against_cost", _front(scores, correct)
    yield "exit_shares", plots.exit_shares(shares, there)
    yield "exit_histograms", _histograms(logits, labels)
    yield "reliability", plots.reliability(sure, correct)
    yield "confusion", plots.confusion(labels, given)
    yield "confusion_where_taken", plots.confusion(labels, given, exits=where)
    yield "cost_stack_macs", _costs(exits, "MACs", 1e6)
    yield "cost_stack_ms", _costs(exits, "ms", 0.4)
    images = np.random.default_rng(1).random((len(labels), 8, 8))
    sheet = dict(labels=labels, predictions=given[where, np.arange(len(labels))])
    yield "contact_sheet", plots.contact_sheet(images, where, scores.min(0), **sheet)


def _front(scores, correct):
    costs = np.linspace(0.3, 1.1, len(scores))
    points = []
    for threshold in np.geomspace(1e-5, 2, 25):
        where = staged(scores, threshold)
        right = correct[where, np.arange(scores.shape[1])].mean()
        points.append((costs[where].mean(), right))
    cost, accuracy = zip(*points, strict=True)
    return plots.accuracy_against_cost(
        cost, accuracy, chosen=points[12], plain=(1.0, correct[-1].mean())
    )


def _histograms(logits, labels):
    criteria = [["entropy", "margin", "max_probability", "distance"][k // 3]
                for k in range(len(logits))]  # fmt: skip
    rows = [gate_scores(z, name) for z, name in zip(logits, criteria, strict=True)]
    thresholds = [{"entropy": 0.05, "distance": 15.0}.get(name, 0.9) for name in criteria]
    thresholds[-1] = None
    scores = np.stack([score for score, _ in rows])
    scores[0, :7] = np.nan
    correct = np.stack([label == labels for _, label in rows])
    return plots.exit_histograms(scores, correct, criteria, thresholds=thresholds)


def _costs(exits, unit, size):
    rng = np.random.default_rng(2)
    parts = {"trunk": size * rng.uniform(0.5, 1.5, exits)}
    parts["head"] = 0.3 * parts["trunk"] * rng.uniform(0, 1, exits)
    parts["head"][-1] = 0
    if unit == "ms":
        parts["gate and carry"] = np.full(exits, 0.05)
    return plots.cost_stack(parts, unit=unit, plain=parts["trunk"].sum())


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for exits in EXITS:
        for classes in (10, 100):
            for name, drawn in figures(exits, classes):
                if classes == 100 and "confusion" not in name:
                    continue
                figure = (drawn[0] if isinstance(drawn, list) else drawn).figure
                for page, colour in PAGES.items():
                    path = folder / f"{name}-{exits}-{classes}-{page}.png"
                    figure.patch.set(facecolor=colour, alpha=1)
                    figure.savefig(path, dpi=110)
            plt.close("all")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
