# SPDX-License-Identifier: Apache-2.0
"""What each way to train reaches: README's own lines on B-LeNet, several seeds.

    python benchmarks/training_modes.py                  runs what is missing
    python benchmarks/training_modes.py --stop-after 3   begins nothing after 3 minutes
    python benchmarks/tables.py                          then writes the table

The lines are read from README's "Ways to train" and run as they stand there. Every run is
written with its lines, data and surroundings, and is kept for as long as lines, data and
settings stay what they are. A call that was interrupted goes on where it stopped. All of it
takes about 25 minutes of one core.
"""

import argparse
import contextlib
import io
import json
import math
import os
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "training_modes.json"
WAY = re.compile(
    r"^\*\*(?P<name>.+?)\.\*\*.*?^```python\n(?P<lines>.*?)^```$", re.MULTILINE | re.DOTALL
)

BATCH_SIZE = 128
PLAIN = "The plain LeNet"
PLAIN_LINES = 'backbone.compile("adam", loss)\nbackbone.fit(train, epochs=5)\n'
LOSS = "sparse_categorical_crossentropy"


def ways():
    """Name and lines of every way, the plain network first."""
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.split("\n## Ways to train\n")[1].split("\n## ")[0]
    found = {match["name"]: match["lines"] for match in WAY.finditer(section)}
    return {PLAIN: PLAIN_LINES, **found}


def starts_trained(lines):
    """A trunk that is frozen is one that was trained before."""
    return "backbone.trainable = False" in lines


def settings(data):
    """By way: all that a run depends on but its seed."""
    return {
        name: {
            "data": data,
            "network": "b_lenet",
            "loss": LOSS,
            "batch_size": BATCH_SIZE,
            "lines": lines,
            "trunk_from": PLAIN_LINES if starts_trained(lines) else None,
        }
        for name, lines in ways().items()
    }


# ---- One run -------------------------------------------------------------------------
def run(lines, seed, data, trunk=None):
    """Trains by `lines`; returns what was measured on the test images, and the trunk.

    `trunk` holds the weights of the trained plain network, for lines that freeze it.
    """
    import keras

    from keras_branchy import BranchyModel, networks

    keras.utils.set_random_seed(seed)
    branch = networks.b_lenet().branches[0]
    backbone = networks.b_lenet(backbone_only=True)
    if trunk is not None:
        backbone.set_weights(trunk)

    def exits(**options):
        return {"conv1": type(branch).from_config({**branch.get_config(), **options})}

    scope = {
        "BranchyModel": BranchyModel,
        "backbone": backbone,
        "exits": exits,
        "loss": LOSS,
        "model": BranchyModel(backbone, exits()),
        "train": batches(*data.train, seed),
    }
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        exec(lines, scope)
    taken = {"core_seconds": round(time.process_time() - started, 1)}
    found = last_exit if lines == PLAIN_LINES else every_exit
    return found(scope["model"], data) | taken, backbone.get_weights()


def batches(images, labels, seed):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((images, labels))
    return data.shuffle(len(labels), seed=seed).batch(BATCH_SIZE)


def last_exit(model, data):
    """Test accuracy of a model whose early exits are not trained."""
    return {"exits": dict([list(accuracies(model, data).items())[-1]])}


def every_exit(model, data):
    """Test accuracy of each exit, and of leaving early where validation loses nothing."""
    exits = accuracies(model, data)
    report = model.calibrate(*data.valid, max_accuracy_drop=0.0, batch_size=500, verbose=0)
    images, labels = data.test
    answer = model.predict_early(images, batch_size=500, verbose=0)
    shares = [float((answer.exits == k).mean()) for k in range(len(exits))]
    return {
        "exits": exits,
        "early_exit": float((answer.labels == labels).mean()),
        "shares": shares,
        "cost": sum(s * c for s, c in zip(shares, report.exit_costs, strict=True)),
    }


def accuracies(model, data):
    images, labels = data.test
    outputs = model.predict(images, batch_size=500, verbose=0)
    return {name: float((p.argmax(-1) == labels).mean()) for name, p in outputs.items()}


# ---- All runs ------------------------------------------------------------------------
def run_missing(path, data, seeds, made_with, stop_after=math.inf):
    """Runs each way and seed that the file at `path` lacks, and writes it as it grows.

    Nothing new begins after `stop_after` seconds. Returns whether all is there.
    """
    wanted = settings(data.describe())
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    rows = [row for row in rows if row["settings"] == wanted.get(row["way"])]
    started = time.monotonic()
    for seed in seeds:
        for unit in units(wanted):
            if {row["way"] for row in rows if row["seed"] == seed} >= set(unit):
                continue
            if time.monotonic() - started > stop_after:
                return False
            rows = [row for row in rows if row["seed"] != seed or row["way"] not in unit]
            for row in run_unit(unit, seed, data, wanted):
                rows.append({**row, "made_with": made_with})
            rows.sort(key=lambda row: (list(wanted).index(row["way"]), row["seed"]))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"rows": rows}, indent=1) + "\n", "utf-8")
    return True


def units(wanted):
    """What runs together: ways that freeze a trunk, and the one that trains it."""
    frozen = [name for name, given in wanted.items() if given["trunk_from"]]
    alone = [[name] for name in wanted if name not in (PLAIN, *frozen)]
    return [[PLAIN, *frozen], *alone]


def run_unit(unit, seed, data, wanted):
    trunk = None
    for name in unit:
        given = wanted[name]
        start = trunk if given["trunk_from"] else None
        found, weights = run(given["lines"], seed, data, start)
        trunk = weights if name == PLAIN else trunk
        shown = "  ".join(f"{k} {100 * v:.2f} %" for k, v in found["exits"].items())
        print(f"seed {seed}  {name:42}  {shown}  {found['core_seconds']} s", flush=True)
        yield {"way": name, "seed": seed, "settings": given, **found}


def load_data(which, images):
    import mnist_data

    data = mnist_data.load(which)
    data.train = tuple(part[:images] for part in data.train)
    return data


def main():
    args = parse_args()
    # In place of this folder, whose files TensorFlow would take for its own modules.
    sys.path[0] = str(ROOT / "examples")
    import evidence

    data = load_data(args.data, args.images)
    made_with = evidence.surroundings()
    del made_with["command"]  # which slice of the runs it was says nothing
    done = run_missing(args.out, data, args.seeds, made_with, 60 * args.stop_after)
    print("All is there." if done else "Call it again for the rest.")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stop-after", type=float, default=math.inf, metavar="MINUTES")
    parser.add_argument("--images", type=int, help="to train on; all")
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.out == RESULTS and (args.images or args.data != "mnist"):
        parser.error("--images and --data need an --out, or would take the results' place")
    return args


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
