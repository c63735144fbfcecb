# SPDX-License-Identifier: Apache-2.0
"""What the native gate does for staged inference, and whether compaction would pay.

    python custom_ops/benchmark_stages.py [--json FILE]

First `model.early_exit` with the op and with the reference, on B-LeNet and on a small
network whose heads have 1,000 classes, at thresholds at which half of the samples leave
at the first exit; labels and exits must be the same. Weights and images are random: time
does not depend on them. Then, inside a graph, what choosing the survivors costs: an op
that also gave their indices could save `tf.where` at most.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np
import tensorflow as tf

from keras_branchy import BranchyModel, ExitBranch, native, networks
from keras_branchy.early_exit import build

SWITCH = "KERAS_BRANCHY_CUSTOM_OPS"
POOL = 4


def thousand_classes() -> BranchyModel:
    """A small convolutional network with three heads of 1,000 classes."""
    inputs = keras.Input((32, 32, 3))
    x = inputs
    for width in (32, 64, 128):
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D(2, name=f"pool_{width}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    backbone = keras.Model(inputs, keras.layers.Dense(1000, activation="softmax")(x))

    def head() -> ExitBranch:
        return ExitBranch(1000, layers=[keras.layers.GlobalAveragePooling2D()])

    return BranchyModel(backbone, {"pool_32": head(), "pool_64": head()})


def spread(values: list[float]) -> float:
    """Half the distance between the quartiles."""
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def staged(name: str, make, batch: int, repeats: int) -> list[dict]:
    """Times one model's `early_exit` with either implementation, in turns."""
    keras.utils.set_random_seed(0)
    model = make()
    shape = model.inputs[0].shape[1:]
    images = tf.random.stateless_uniform([batch, *shape], [1, 2])
    scores = np.median(_first_scores(model, images))
    thresholds = tf.constant([scores] + [-np.inf] * (len(model.criteria) - 1), tf.float32)
    runs, answers = {}, {}
    for kind, mode in (("native", "on"), ("reference", "off")):
        os.environ[SWITCH] = mode
        runs[kind] = build(model)
        answers[kind] = runs[kind](images, thresholds)
    same = all(
        np.array_equal(answers["native"][key], answers["reference"][key])
        for key in ("labels", "exits")
    )
    samples = {kind: [] for kind in runs}
    for _ in range(repeats):
        for kind, run in runs.items():
            start = time.perf_counter()
            run(images, thresholds)["scores"].numpy()
            samples[kind].append((time.perf_counter() - start) * 1e6)
    return [
        {
            "model": name,
            "batch": batch,
            "implementation": kind,
            "median_us": round(statistics.median(values), 1),
            "spread_us": round(spread(values), 1),
            "same_answers": same,
        }
        for kind, values in samples.items()
    ]


def _first_scores(model: BranchyModel, images: tf.Tensor) -> np.ndarray:
    os.environ[SWITCH] = "off"
    everyone = tf.constant([np.inf] * len(model.criteria), tf.float32)
    return model.early_exit(images, everyone)["scores"].numpy()


def compaction(batch: int, features: int, repeats: int) -> list[dict]:
    """µs of choosing the survivors of a batch, half of it, for two tensors."""
    masks = tf.random.stateless_uniform([POOL * batch], [1, 2]) < 0.5
    tensors = [tf.random.stateless_normal([batch, features], [1, i]) for i in (3, 4)]

    def chosen(mask):
        return tf.where(tf.logical_not(mask))[:, 0]

    bodies = {
        "empty": lambda mask: tf.size(mask),
        "where": lambda mask: tf.size(chosen(mask)),
        "where and gather": lambda mask: _sizes(
            [tf.gather(x, index) for index in [chosen(mask)] for x in tensors]
        ),
        "boolean_mask": lambda mask: _sizes(
            [tf.boolean_mask(x, tf.logical_not(mask)) for x in tensors]
        ),
    }

    def loop(body):
        def turn(i, total):
            return i + 1, total + body(tf.slice(masks, [(i % POOL) * batch], [batch]))

        return tf.function(
            lambda turns: tf.while_loop(
                lambda i, _: i < turns, turn, [0, 0], parallel_iterations=1
            )[1]
        )

    runs = {name: loop(body) for name, body in bodies.items()}

    def seconds(name, turns):
        start = time.perf_counter()
        runs[name](tf.constant(turns)).numpy()
        return time.perf_counter() - start

    samples = {name: [] for name in runs}
    for name in runs:
        seconds(name, 1)
    for _ in range(repeats):
        for name in runs:
            samples[name].append((seconds(name, 1100) - seconds(name, 100)) * 1e3)
    base = statistics.median(samples.pop("empty"))
    return [
        {
            "batch": batch,
            "features": features,
            "work": name,
            "median_us": round(statistics.median(values) - base, 2),
            "spread_us": round(spread(values), 2),
        }
        for name, values in samples.items()
    ]


def _sizes(tensors: list) -> tf.Tensor:
    return tf.add_n([tf.size(x) for x in tensors])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=101)
    arguments = parser.parse_args()
    os.environ[SWITCH] = "on"
    status = native.status()
    rows = []
    for batch in (1, 32, 256):
        rows += staged("b_lenet", networks.b_lenet, batch, arguments.repeats)
        rows += staged("1000 classes", thousand_classes, batch, arguments.repeats)
    choosing = []
    for batch in (1, 32, 256, 4096):
        choosing += compaction(batch, 1024, max(3, arguments.repeats // 5))
    for row in rows + choosing:
        print(row)
    if arguments.json:
        report = {
            "date": datetime.date.today().isoformat(),
            "command": "python custom_ops/benchmark_stages.py --json FILE",
            "hardware": f"{_processor()}, {os.cpu_count()} logical CPUs, "
            f"{status.instruction_set}",
            "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy")}
            | {"python": platform.python_version()},
            "staged": rows,
            "compaction": choosing,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
