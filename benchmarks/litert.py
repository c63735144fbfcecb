# SPDX-License-Identifier: Apache-2.0
"""B-LeNet on a CPU, one image at a time: LiteRT, onnxruntime, TensorFlow, StageRunner.

    python benchmarks/litert.py [--json FILE] [--images N] [--work build/litert]

From a NumPy image to a label and an exit, everything counted, one thread. The contestants
take turns in blocks of images; each image counts with the median of its rounds. What is not
in `--work` yet is trained and exported into it first, which takes a quarter of an hour on
two cores; an interrupted run goes on where it was, and `--prepare` does nothing else.
"""

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
ROOT = Path(__file__).resolve().parents[1]
# This file's own folder goes: TensorFlow looks for a module called `litert`, too.
sys.path[:1] = [str(ROOT / "examples"), str(ROOT / "benchmarks" / "contest")]

import evidence  # noqa: E402
import litert_networks  # noqa: E402
import litert_runtimes as runtimes  # noqa: E402
import mnist_data  # noqa: E402
import numpy as np  # noqa: E402

BLOCK = 100  # images between two turns


def main():
    args = parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = mnist_data.load(args.data)
    print(data.describe(), flush=True)
    images, labels = data.test[0][: args.images], data.test[1][: args.images]
    contestants = list(prepare(args.work, data))
    if args.prepare:
        return
    if args.stages:
        report = json.loads(args.json.read_text("utf-8"))
        found = stages_alone(args.work, images, report["rows"])
        report["cascade_against_stages"] = found
        report["stages_made_with"] = evidence.surroundings()
        print(json.dumps(found, indent=2))
        args.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        return
    taken, answers = race([run for _, run in contestants], images, args.rounds)
    rows = [
        {**row, **times(taken[index]), **judged(answers[index], labels, row)}
        for index, (row, _) in enumerate(contestants)
    ]
    report = {
        "data": data.describe(),
        "images": len(labels),
        "rounds": args.rounds,
        "rows": rows,
        "cascade_against_stages": stages_alone(args.work, images, rows),
        "made_with": {
            **evidence.surroundings(),
            **{name: version(name) for name in ("ai-edge-litert", "onnxruntime")},
        },
    }
    print(table(rows))
    print(json.dumps(report["cascade_against_stages"], indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--data", choices=("auto", "mnist", "digits"), default="auto")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5, help="passes over the images")
    parser.add_argument("--prepare", action="store_true", help="measure nothing")
    parser.add_argument(
        "--stages",
        action="store_true",
        help="only cascades against their stages, anew in the --json file that is there",
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "litert")
    return parser.parse_args()


def prepare(work, data):
    """Rows without figures, each with a function from an image to (label, exit)."""
    plain, networks = litert_networks.load(work, data)
    files = litert_networks.plain_files(plain, data, work / "plain")
    for quantization, path in files["litert"].items():
        yield row("lenet", "litert", True, quantization), runtimes.plain_litert(path)
    yield row("lenet", "onnxruntime", True), runtimes.plain_onnx(files["onnx"])
    yield row("lenet", "tensorflow", True), runtimes.plain_tensorflow(plain)
    for name, model in networks.items():
        for layout, quantization in litert_networks.wanted(name):
            place = folder(work, name, layout, quantization)
            litert_networks.export(model, data, place, layout, quantization)
            runtime = {"cascade": "cascade", "stages": "stage_runner"}[layout]
            run = getattr(runtimes, runtime)(place)
            yield row(name, runtime, False, quantization), run


def folder(work, name, layout, quantization):
    return work / f"{name}_{layout}_{quantization or 'float32'}"


def row(network, runtime, plain, quantization=None):
    return {
        "network": network,
        "runtime": runtime,
        "plain": plain,
        "quantization": quantization,
    }


def race(contestants, images, rounds):
    """Microseconds [images] and answers [images, 2] of each contestant."""
    taken = np.zeros((len(contestants), rounds, len(images)))
    answers = np.zeros((len(contestants), len(images), 2), int)
    for run in contestants:
        for image in images[:50]:
            run(image[None])
    for turn in range(rounds):
        for start in range(0, len(images), BLOCK):
            for index, run in enumerate(contestants):
                for place in range(start, min(start + BLOCK, len(images))):
                    image = images[place : place + 1]
                    begin = time.perf_counter()
                    answer = run(image)
                    taken[index, turn, place] = time.perf_counter() - begin
                    answers[index, place] = answer
    return 1e6 * np.median(taken, 1), answers


def times(micros):
    return {
        "mean_us": round(float(micros.mean()), 2),
        "p50_us": round(float(np.median(micros)), 2),
        "p99_us": round(float(np.percentile(micros, 99)), 2),
    }


def judged(answers, labels, row):
    shares = np.bincount(answers[:, 1], minlength=1 if row["plain"] else 2) / len(labels)
    return {
        "accuracy": float((answers[:, 0] == labels).mean()),
        "shares": [round(float(share), 4) for share in shares],
    }


def stages_alone(work, images, rows):
    """Each cascade's mean against its stages', weighted by the shares that reach them."""
    return [
        against_stages(work, images, entry["network"], entry["quantization"])
        for entry in rows
        if entry["runtime"] == "cascade" and entry["network"] in litert_networks.IN_FULL
    ]


def against_stages(work, images, name, quantization, count=1000, rounds=15):
    """Stages by themselves, each on all images, and one after another where they are
    reached: a second stage is not as warm where one image in twenty comes to it."""
    images = images[:count]
    place = folder(work, name, "cascade", quantization)
    decide = runtimes.cascade(place)
    exits = [int(decide(image[None])[1]) for image in images]
    stages = runtimes.stage_calls(folder(work, name, "stages", quantization), images)
    calls = [*stages, runtimes.cascade_call(place, images), in_turn(stages, exits)]
    taken = np.zeros((len(calls), rounds, len(images)))
    for turn in range(rounds):
        for which, call in enumerate(calls):
            for index in range(len(images)):
                begin = time.perf_counter()
                call(index)
                taken[which, turn, index] = time.perf_counter() - begin
    *alone, whole, reached_only = 1e6 * np.median(taken, 1).mean(-1)
    reached = [float((np.array(exits) >= k).mean()) for k in range(len(stages))]
    total = float(np.dot(reached, alone))
    return {
        "network": name,
        "quantization": quantization,
        "stage_us": [round(float(value), 2) for value in alone],
        "reached": [round(share, 4) for share in reached],
        "weighted_us": round(total, 2),
        "in_turn_us": round(float(reached_only), 2),
        "cascade_us": round(float(whole), 2),
        "ratio": round(float(whole) / total, 3),
        "ratio_in_turn": round(float(whole / reached_only), 3),
    }


def in_turn(stages, exits):
    def call(index):
        for stage in stages[: exits[index] + 1]:
            stage(index)

    return call


def table(rows):
    base = next(entry["mean_us"] for entry in rows if entry["runtime"] == "litert")
    lines = [
        "network             runtime       quantization   mean µs    p50    p99  "
        "accuracy  times as fast  shares"
    ]
    for entry in rows:
        shares = " ".join(f"{100 * share:.1f}" for share in entry["shares"])
        lines.append(
            f"{entry['network']:19} {entry['runtime']:13} "
            f"{entry['quantization'] or '':13} {entry['mean_us']:8.1f} "
            f"{entry['p50_us']:6.1f} {entry['p99_us']:6.1f} "
            f"{100 * entry['accuracy']:8.2f} {base / entry['mean_us']:13.2f}   {shares}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
