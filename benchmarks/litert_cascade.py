# SPDX-License-Identifier: Apache-2.0
"""Where a cascade file spends time beyond its first stage, part by part.

    python benchmarks/litert_cascade.py [--json FILE]

B-LeNet with random weights at a threshold at which every image leaves at exit 1, batch of
one, one thread: the first stage alone, with the tensors it carries as outputs, with the
gate, with the gate and an `IF` whose branches hold nothing, and the whole cascade. All take
turns in one process; the answers are checked against the first before anything is timed.
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
sys.path[:1] = [str(ROOT), str(ROOT / "examples")]

import evidence  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from ai_edge_litert.interpreter import Interpreter  # noqa: E402

from keras_branchy import networks  # noqa: E402
from keras_branchy.export.cascade import cascade, graph_score  # noqa: E402

EVERYONE = 9.0  # nats, more than 10 classes can have
PARTS = ("stage 1", "carried", "gate", "if", "cascade")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    rows = []
    for light_exit in (False, True):
        model = networks.b_lenet(light_exit=light_exit)
        taken = measured(parts_of(model), args.rounds)
        name = "light_exit" if light_exit else "b_lenet"
        for part, micros in taken.items():
            low, median, high = np.percentile(micros, (25, 50, 75))
            rows.append(
                {
                    "network": name,
                    "part": part,
                    "median_us": round(float(median), 2),
                    "spread_us": round(float(high - low) / 2, 2),
                }
            )
            print(rows[-1], flush=True)
    if args.json:
        made = evidence.surroundings() | {"ai-edge-litert": version("ai-edge-litert")}
        report = {"rounds": args.rounds, "rows": rows, "made_with": made}
        args.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def parts_of(model):
    """Name -> (interpreter, index of the image), each of which does more than the last."""
    first = model.stages()[0]
    whole, _ = cascade(model)

    def stage(image, thresholds):
        return {"logits": first({"image": image})["logits"], "at": thresholds + 0.0}

    def carried(image, thresholds):
        return {**first({"image": image}), "at": thresholds + 0.0}

    def answer(image):
        logits = first({"image": image})["logits"]
        return {
            "probabilities": tf.nn.softmax(logits),
            "label": tf.argmax(logits, -1, output_type=tf.int32),
            "score": graph_score(logits, "entropy"),
        }

    def gate(image, thresholds):
        return {**answer(image), "at": thresholds + 0.0}

    def decide(image, thresholds):
        made = answer(image)
        return tf.cond(
            tf.reshape(made["score"] < thresholds, []),
            lambda: {**made, "exit": tf.constant([0])},
            lambda: {**made, "exit": tf.constant([1])},
        )

    def everything(image, thresholds):
        return whole({"image": image, "thresholds": thresholds})

    graphs = (stage, carried, gate, decide, everything)
    return {name: opened(graph) for name, graph in zip(PARTS, graphs, strict=True)}


def opened(graph):
    specs = [
        tf.TensorSpec([1, 28, 28, 1], tf.float32, "image"),
        tf.TensorSpec([1], tf.float32, "thresholds"),
    ]
    holder = tf.Module()
    holder.run = tf.function(graph, input_signature=specs)
    concrete = holder.run.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], holder)
    interpreter = Interpreter(model_content=converter.convert(), num_threads=1)
    interpreter.allocate_tensors()
    image = None
    for detail in interpreter.get_input_details():
        if len(detail["shape"]) == 4:
            image = detail["index"]
        else:
            interpreter.set_tensor(detail["index"], np.array([EVERYONE], np.float32))
    return interpreter, image


def measured(parts, rounds, calls=300):
    """Microseconds of a call in each round, for each part."""
    picture = np.random.default_rng(0).random((1, 28, 28, 1), np.float32)
    check(parts, picture)
    taken = {name: [] for name in parts}
    for _ in range(rounds):
        for name, (interpreter, image) in parts.items():
            for index in range(20 + calls):
                if index == 20:  # the first ones warm up
                    begin = time.perf_counter()
                interpreter.set_tensor(image, picture)
                interpreter.invoke()
            taken[name].append(1e6 * (time.perf_counter() - begin) / calls)
    return taken


def check(parts, picture):
    """Every part gives the label of the stage, and nobody goes on."""
    found = {}
    for name, (interpreter, image) in parts.items():
        interpreter.set_tensor(image, picture)
        interpreter.invoke()
        outputs = [
            interpreter.get_tensor(detail["index"])
            for detail in interpreter.get_output_details()
        ]
        scores = next(x for x in outputs if x.shape == (1, 10))
        whole = [int(x[0]) for x in outputs if x.dtype == np.int32]
        found[name] = int(scores.argmax()), whole
    label = found["stage 1"][0]
    for name, (own, whole) in found.items():
        if own != label or not set(whole) <= {0, label}:
            raise RuntimeError(f"'{name}' answers {own}, {whole}; expected {label}.")


if __name__ == "__main__":
    main()
