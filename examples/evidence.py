# SPDX-License-Identifier: Apache-2.0
"""What the demo reports beside its training: parity, measured time, figures, the table."""

import datetime
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_branchy import cost, plots
from keras_branchy.scoring import all_logits
from keras_branchy.thresholds import gate_thresholds

OTHER_THRESHOLDS = (0.001, 0.01, 0.1, 0.5, 1.5)  # nats
RELATIVE_TOLERANCE = 1e-3


# ---- Accuracy ------------------------------------------------------------------------
def exit_shares(model, answer):
    """Share of the samples that left at each exit."""
    counts = np.bincount(answer.exits, minlength=len(model.exit_names))
    return (counts / len(answer)).tolist()


def accuracies(plain, model, answer, test):
    """Test accuracy of the plain network, of every exit, and of staged inference."""
    images, labels = test
    right = answer.labels == labels
    every = model.predict(images, batch_size=500, verbose=0)
    alone = plain.predict(images, batch_size=500, verbose=0)
    return {
        "images": len(labels),
        "plain": float(np.mean(alone.argmax(-1) == labels)),
        "staged": float(right.mean()),
        "exits": {
            name: float(np.mean(p.argmax(-1) == labels)) for name, p in every.items()
        },
        "exit_shares": exit_shares(model, answer),
        "exit_accuracy_where_taken": [
            float(right[answer.exits == k].mean()) if (answer.exits == k).any() else None
            for k in range(len(model.exit_names))
        ],
    }


# ---- Parity: staged inference against the rule on the logits of all exits ------------
def rule(logits, thresholds):
    """Exits and labels in NumPy, and which samples have a score close to its threshold."""
    count = len(logits[0])
    exits = np.full(count, len(logits) - 1)
    near = np.zeros(count, bool)
    for k in reversed(range(len(thresholds))):
        score = entropy(logits[k])
        exits[score < thresholds[k]] = k
        if np.isfinite(thresholds[k]):
            distance = np.abs(score - thresholds[k])
            near |= distance <= RELATIVE_TOLERANCE * abs(thresholds[k])
    labels = np.stack(logits)[exits, np.arange(count)].argmax(-1)
    return exits, labels, near


def entropy(logits):
    """Of the softmax, in nats."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -(np.exp(log_p) * log_p).sum(-1)


def parity(model, images):
    """Counts images for which staged inference and the rule differ, per threshold."""
    logits, _ = all_logits(model, images, batch_size=500, verbose=0)
    chosen, rows = model.thresholds, []
    others = [[value] * len(chosen) for value in OTHER_THRESHOLDS]
    for thresholds in [chosen, *others]:
        model.thresholds = thresholds
        answer = model.predict_early(images, batch_size=500, verbose=0)
        exits, labels, near = rule(logits, gate_thresholds(thresholds, model.criteria))
        differs = (answer.exits != exits) | (answer.labels != labels)
        rows.append(
            {
                "thresholds": thresholds,
                "images": len(images),
                "mismatches": int((differs & ~near).sum()),
                "near_threshold": int(near.sum()),
                "mismatches_near_threshold": int((differs & near).sum()),
            }
        )
    model.thresholds = chosen
    return rows


# ---- Time ----------------------------------------------------------------------------
def times(plain, model, images, quick=False):
    """Milliseconds an image, from NumPy to NumPy, the two networks taking turns."""
    sizes = {1: 1000, min(512, len(images)): 60}
    return {
        f"batch_{size}": compare(plain, model, images, size, 20 if quick else rounds)
        for size, rounds in sizes.items()
    }


def compare(plain, model, images, size, rounds):
    spec = tf.TensorSpec([size, *images.shape[1:]])
    contestants = {
        "plain": concrete_plain(plain, spec),
        "staged": concrete_staged(model, spec),
    }
    starts = [i * size % (len(images) - size + 1) for i in range(rounds)]
    validate(contestants, model, plain, images[: 4 * size], size)
    taken = {name: [] for name in contestants}
    for start in starts:
        batch = images[start : start + size]
        for name, run in contestants.items():
            begin = time.perf_counter()
            run(batch)
            taken[name].append((time.perf_counter() - begin) * 1e3 / size)
    result = {name: spread(values) for name, values in taken.items()}
    result["times_as_fast"] = {
        kind: result["plain"][kind] / result["staged"][kind] for kind in ("median", "mean")
    }
    return result


def concrete_plain(plain, spec):
    """A traced function from images to labels, for one shape of batches."""
    run = tf.function(lambda x: tf.argmax(plain(x, training=False), -1))
    concrete = run.get_concrete_function(spec)
    return lambda batch: concrete(tf.constant(batch)).numpy()


def concrete_staged(model, spec):
    thresholds = tf.constant(gate_thresholds(model.thresholds, model.criteria))
    run = tf.function(lambda x: model.early_exit(x, thresholds)["labels"])
    concrete = run.get_concrete_function(spec)
    return lambda batch: concrete(tf.constant(batch)).numpy()


def validate(contestants, model, plain, images, size):
    """What is timed must give the answers that the models give; it also warms up."""
    expected = {
        "plain": np.argmax(plain(images, training=False), -1),
        "staged": model.predict_early(images, batch_size=size, verbose=0).labels,
    }
    for name, run in contestants.items():
        batches = [images[i : i + size] for i in range(0, len(images), size)]
        given = np.concatenate([run(x) for x in batches if len(x) == size])
        if not np.array_equal(given, expected[name][: len(given)]):
            raise RuntimeError(f"The timed function of {name} gives other answers.")


def spread(values):
    low, median, high = np.percentile(values, (25, 50, 75))
    return {
        "median": float(median),
        "quartiles": [float(low), float(high)],
        "mean": float(np.mean(values)),
        "measurements": len(values),
    }


# ---- Figures -------------------------------------------------------------------------
def draw(report, model, answer, test, out):
    images, labels = test
    costs, accuracies = sweep(model, test)
    figures = {
        "accuracy_against_cost": plots.accuracy_against_cost(
            costs,
            accuracies,
            chosen=(
                1 / report["cost"]["times_less"]["heads_counted"],
                report["test"]["staged"],
            ),
            plain=(1.0, report["test"]["plain"]),
        ),
        "exit_shares": plots.exit_shares(
            report["test"]["exit_shares"],
            np.array(report["test"]["exit_accuracy_where_taken"], float),
            names=model.exit_names,
        ),
        "contact_sheet": plots.contact_sheet(
            images,
            answer.exits,
            answer.scores,
            labels=labels,
            predictions=answer.labels,
            names=model.exit_names,
        ),
    }
    for name, ax in figures.items():
        ax.figure.savefig(out / f"{name}.png", dpi=150, transparent=True)


def sweep(model, test, points=200):
    """Cost and test accuracy over thresholds, for the figure only: nothing is chosen."""
    logits, _ = all_logits(model, test[0], batch_size=500, verbose=0)
    stages = cost.stage_costs(model)
    whole = stages[-1].trunk_macs_to_leave
    scores = entropy(logits[0])
    costs, accuracies = [], []
    for threshold in [*np.quantile(scores, np.linspace(0, 1, points)), np.inf]:
        exits, labels, _ = rule(logits, [threshold])
        shares = np.bincount(exits, minlength=len(stages)) / len(exits)
        costs.append(cost.expected_macs(stages, shares) / whole)
        accuracies.append(np.mean(labels == test[1]))
    return costs, accuracies


# ---- Report --------------------------------------------------------------------------
def surroundings():
    """Date, versions and hardware."""
    packages = ("keras-branchy", "keras", "tensorflow", "numpy")
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "accelerators": [gpu.name for gpu in tf.config.list_physical_devices("GPU")],
    }


def processor():
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(report):
    test, macs = report["test"], report["cost"]
    shares = ", ".join(f"{100 * share:.1f} %" for share in test["exit_shares"])
    rows = [("on the test images", "plain LeNet", "B-LeNet", "B-LeNet is")]
    points = 100 * (test["staged"] - test["plain"])
    rows.append(
        (
            "right answers",
            percent(test["plain"]),
            percent(test["staged"]),
            f"{points:+.2f} points",
        )
    )
    for name, accuracy in test["exits"].items():
        rows.append((f"  all at {name}", "", percent(accuracy), ""))
    rows.append(("leave at exit 1, 2", "", shares, ""))
    for name, expected in macs["expected_macs"].items():
        rows.append(
            (
                f"MACs, {name.replace('_', ' ')}",
                f"{macs['plain_macs'] / 1e6:.3f} M",
                f"{expected / 1e6:.3f} M",
                f"{macs['times_less'][name]:.2f} times less",
            )
        )
    for name, taken in report["time_per_image"].items():
        for kind, ratio in taken["times_as_fast"].items():
            rows.append(
                (
                    f"ms an image, {name.replace('_', ' ')}, {kind}",
                    f"{taken['plain'][kind]:.3f}",
                    f"{taken['staged'][kind]:.3f}",
                    f"{ratio:.2f} times as fast",
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def percent(share):
    return f"{100 * share:.2f} %"
