# SPDX-License-Identifier: Apache-2.0
"""Which exits pay on a CPU: candidates under trained plain networks, by measured cost.

    python benchmarks/exit_costs.py [--json FILE] [--prepare]

Every candidate head is trained under the plain network as it is, all of a network at once.
Its threshold is the one that lets most of the validation images leave at no less than the
plain network's accuracy; the share that then leaves is counted on the test images.
Stages are timed as LiteRT files of a fixed batch on one thread, candidates in turn. What an
image costs is t_1 + (1 - share) * t_2, and the least of it is the best exit: a head may be
as good as the time it saves allows. The published network and the one with the light exits,
which were chosen from these, follow as they are shipped. `--prepare` trains and times
nothing, and can be stopped and called again.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
ROOT = Path(__file__).resolve().parents[1]
# This file's own folder goes: TensorFlow looks for a module called `litert`, too.
sys.path[:1] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "benchmarks" / "contest")]

import evidence  # noqa: E402
import exit_candidates  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from ai_edge_litert.interpreter import Interpreter  # noqa: E402

from benchmarks.reproduction import data as datasets  # noqa: E402
from benchmarks.reproduction import networks as recipes  # noqa: E402
from benchmarks.reproduction.measurement import (  # noqa: E402
    Answers,
    plain_accuracy,
    thresholds_for,
)
from benchmarks.reproduction.schedules import schedule  # noqa: E402
from benchmarks.reproduction.training import Trainer, copy_weights  # noqa: E402
from keras_branchy import cost  # noqa: E402
from keras_branchy.outcome import outcome  # noqa: E402

RECIPES = {"b_lenet": recipes.B_LENET, "b_alexnet": recipes.B_ALEXNET}
BATCHES = (1, 64)
BLOCK = 2e-3  # seconds of one candidate between two turns


def main():
    args = parse_args()
    trainer = Trainer(args.store)
    document = {"rows": []}
    for name in args.networks:
        found = judged(name, trainer)
        if args.prepare:
            continue
        stages = {row["exits"]: models for row, models in found}
        for key, taken in timed(stages, args.seconds).items():
            row = next(row for row, _ in found if row["exits"] == key[0])
            row.setdefault("stage_us", {}).setdefault(str(key[1]), []).append(taken)
        rows = [row for row, _ in found]
        document["rows"] += [summed(row, rows[0]) for row in rows]
        print(table(rows), flush=True)
    if args.json is not None and not args.prepare:
        document["made_with"] = {
            **evidence.surroundings(),
            "ai-edge-litert": version("ai-edge-litert"),
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--networks", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--prepare", action="store_true", help="train, time nothing")
    parser.add_argument("--seconds", type=float, default=20.0, help="a batch size")
    parser.add_argument("--store", type=Path, default=ROOT / "build" / "reproduce")
    return parser.parse_args()


# ---- Heads and what they let go ------------------------------------------------------
def judged(name, trainer):
    """Rows without times, each with its stages; the plain network first."""
    recipe, images = RECIPES[name], datasets.load(RECIPES[name].data)
    plain = recipes.plain(trainer, recipe, images, "default", 0)
    found = [(plain_row(name, plain, images), [plain])]
    for candidate, model in screened(trainer, recipe, images, plain).items():
        found.append(branchy_row(name, candidate, "frozen", model, images, plain))
    published = recipes.branchy(trainer, recipe, images, "default", 0)
    found.append(branchy_row(name, "published", "published", published, images, plain))
    light = recipes.light(trainer, recipe, images, "default", 0)
    found.append(branchy_row(name, "light", "light", light, images, plain))
    return found


def screened(trainer, recipe, images, plain):
    """A network for each candidate, their heads trained at once under the plain one."""
    tried = exit_candidates.CANDIDATES[recipe.name]
    plan = schedule(recipe.kind, "default")
    trained = trainer.trained(
        f"{recipe.name}-default-0/exit_costs",
        lambda: exit_candidates.together(recipe.make(backbone_only=True), tried),
        images,
        exit_candidates.EPOCHS[recipe.name],
        schedule=replace(plan, name="exit_costs"),
        seed=0,
        start=exit_candidates.frozen(copy_weights(plain)),
        loss=exit_candidates.LossOfAll(),
        metrics=[],
    )
    return {
        name: exit_candidates.alone(recipe, plain, tap, make, trained.get_layer(name))
        for name, (tap, make) in tried.items()
    }


def plain_row(name, plain, images):
    return {
        "network": name,
        "exits": "plain",
        "kind": "plain",
        "accuracy": plain_accuracy(plain, images.test),
        "shares": [1.0],
        "macs": [cost.count_macs(plain)],
    }


def branchy_row(name, exits, kind, model, images, plain):
    floor = plain_accuracy(plain, images.valid)
    chosen = thresholds_for(model, images.valid, min_accuracy=floor)
    answers = Answers(model, images.test)
    found = outcome(model, answers.logits, answers.labels, chosen)
    row = {
        "network": name,
        "exits": exits,
        "kind": kind,
        "accuracy": found.accuracy,
        "accuracies": answers.accuracies(),
        "shares": list(found.shares),
        "thresholds": chosen,
        "macs": [stage.trunk_macs + stage.head_macs for stage in answers.stages],
        "head_params": [stage.head_params for stage in answers.stages[:-1]],
    }
    print(f"{name:10} {exits:34} {row['accuracy']:.4f} {row['shares']}", flush=True)
    return row, [stage.model for stage in model.stages()]


# ---- Times ---------------------------------------------------------------------------
def timed(stages, seconds):
    """Median microseconds an image of (exits, batch) and each of its stages."""
    taken = {}
    for batch in BATCHES:
        runs = [
            (exits, opened(model, batch))
            for exits, models in stages.items()
            for model in models
        ]
        micros = race([run for _, run in runs], seconds) / batch
        for (exits, _), value in zip(runs, micros, strict=True):
            taken.setdefault((exits, batch), []).append(round(float(value), 2))
    return {(*key, k): us for key, row in taken.items() for k, us in enumerate(row)}


def opened(model, batch):
    """A call of the model as a LiteRT file of one batch size, on random images."""
    specs = [tf.TensorSpec((batch, *x.shape[1:]), x.dtype, x.name) for x in model.inputs]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("stage", called(model), input_signature=specs)
    folder = ROOT / "build" / "exit_costs"
    archive.write_out(str(folder), verbose=False)
    convert = tf.lite.TFLiteConverter.from_saved_model(
        str(folder), signature_keys=["stage"]
    )
    convert.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    interpreter = Interpreter(model_content=convert.convert(), num_threads=1)
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for row in interpreter.get_input_details():
        interpreter.set_tensor(row["index"], rng.random(row["shape"], np.float32))
    return interpreter.invoke


def called(model):
    """Of the tensors in order, since a signature knows no dicts of several."""
    names = list(model.input) if isinstance(model.input, dict) else None

    def call(*tensors):
        given = dict(zip(names, tensors, strict=True)) if names else tensors[0]
        made = model(given, training=False)
        return made if isinstance(made, dict) else {"probabilities": made}

    return call


def race(calls, seconds):
    """Median seconds of a call, in blocks and in turn, so that all see the same noise."""
    repeats = []
    for call in calls:
        call()
        begin = time.perf_counter()
        call()
        repeats.append(max(1, int(BLOCK / (time.perf_counter() - begin))))
    taken, until = [[] for _ in calls], time.monotonic() + seconds
    while time.monotonic() < until:
        for rounds, call, count in zip(taken, calls, repeats, strict=True):
            begin = time.perf_counter()
            for _ in range(count):
                call()
            rounds.append((time.perf_counter() - begin) / count)
    return 1e6 * np.median(np.array(taken), 1)


# ---- Report --------------------------------------------------------------------------
def summed(row, plain):
    """What an image costs on the average, and the gain over the plain network."""
    reach = 1 - np.cumsum([0.0, *row["shares"][:-1]])
    spent = {
        batch: round(float(np.dot(reach, micros)), 2)
        for batch, micros in row["stage_us"].items()
    }
    row["us_an_image"] = spent
    row["times_as_fast"] = {
        batch: round(plain["us_an_image"][batch] / us, 2) if row is not plain else 1.0
        for batch, us in spent.items()
    }
    return row


def table(rows):
    lines = ["exits                              accuracy  stages, µs at batch 1, 64"]
    for row in rows:
        times = "  ".join(f"{b}: {row['stage_us'][str(b)]}" for b in BATCHES)
        fast = " ".join(f"{row['times_as_fast'][str(b)]:.2f}" for b in BATCHES)
        shares = " ".join(f"{100 * share:.1f}" for share in row["shares"])
        lines.append(
            f"{row['exits']:34} {100 * row['accuracy']:.2f}  {times}  {shares}  {fast}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
