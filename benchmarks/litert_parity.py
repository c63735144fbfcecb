# SPDX-License-Identifier: Apache-2.0
"""Exported files against Keras: B-LeNet on MNIST, and backbones with residual exits.

    python benchmarks/litert_parity.py [--json FILE] [--work build/litert] [--only NAME]

Thresholds are put at the median scores, so that every branch runs. B-LeNet is the trained
one of `litert.py`; the backbones are trained for a few minutes on MNIST in a frame of 32x32
pixels and three channels, for scores that spread. What is in `--work` is taken from there,
so an interrupted run goes on where it was.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT / "examples"), str(ROOT / "benchmarks" / "contest")]

import evidence  # noqa: E402
import keras  # noqa: E402
import mnist_data  # noqa: E402
import numpy as np  # noqa: E402

from keras_branchy import BranchyModel, ExitBranch, StageRunner  # noqa: E402
from keras_branchy.criteria import gate_scores  # noqa: E402
from keras_branchy.scoring import all_logits  # noqa: E402

WANTED = [
    *((layout, None) for layout in ("stages", "signatures", "cascade")),
    *((layout, "float16") for layout in ("stages", "cascade")),
    *((layout, "dynamic") for layout in ("stages", "cascade")),
    ("stages", "int8"),
]
FRAMED = (32, 32)
NEAR = 1e-3  # of the threshold: rounding decides there


def main():
    args = parse_args()
    rows = []
    (args.work / "parity").mkdir(parents=True, exist_ok=True)
    for name, load in SUBJECTS.items():
        if args.only in (None, name):
            rows += compared(name, *load(args.work), args.work / "parity", args.threads)
    report = {"rows": rows, "made_with": evidence.surroundings()}
    if args.only and args.json is not None and args.json.exists():
        earlier = json.loads(args.json.read_text("utf-8"))["rows"]
        rows = [row for row in earlier if row["network"] != args.only] + rows
        report["rows"] = rows = sorted(
            rows, key=lambda row: list(SUBJECTS).index(row["network"])
        )
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    failures = [row for row in rows if not row["holds"]]
    sys.exit(f"{len(failures)} of {len(rows)} rows do not hold." if failures else 0)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "litert")
    parser.add_argument(
        "--only", choices=list(SUBJECTS), help="replaces only its rows in FILE"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def b_lenet(work):
    data = mnist_data.load("mnist")
    return keras.models.load_model(work / "b_lenet.keras"), data.valid, data.test


def mobilenet(work):
    def make():
        shape = (*FRAMED, 3)
        return keras.applications.MobileNetV2(shape, alpha=0.35, weights=None, classes=10)

    # Inside a residual block, and behind the addition of another.
    taps = ["block_4_expand_relu", "block_8_add"]
    return trained(work / "parity" / "mobilenet_v2.keras", make, taps, steps=600)


def resnet(work):
    def make():
        shape = (*FRAMED, 3)
        return keras.applications.ResNet50V2(input_shape=shape, weights=None, classes=10)

    taps = ["conv3_block2_2_relu", "conv4_block3_out"]
    return trained(work / "parity" / "resnet50_v2.keras", make, taps)


SUBJECTS = {"b_lenet": b_lenet, "mobilenet_v2": mobilenet, "resnet50_v2": resnet}


def trained(path, make, taps, steps=150, batch_size=32):
    """The model at `path`, trained first if it lacks, with images to judge it by."""
    data = mnist_data.load("mnist")
    if not path.exists():
        keras.utils.set_random_seed(0)
        backbone = make()
        for layer in backbone.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.8  # statistics that catch up with so short a fit
        model = BranchyModel(backbone, {tap: ExitBranch(10) for tap in taps})
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        few = framed(data.train, steps * batch_size)
        model.fit(*few, batch_size=batch_size, verbose=2)
        model.save(path)
    model = keras.models.load_model(path)
    return model, framed(data.valid, 600), framed(data.test, 2000)


def framed(part, count):
    """The first images [n, 32, 32, 3] and labels."""
    images, labels = part[0][:count], part[1][:count]
    return np.repeat(np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)]), 3, -1), labels


def compared(name, model, valid, test, folder, threads):
    logits, _ = all_logits(model, test[0], batch_size=100, verbose=0)
    scores = [gate_scores(values)[0] for values in logits[:-1]]
    model.thresholds = [float(np.median(row)) for row in scores]
    expected = model.predict_early(test[0], batch_size=100, verbose=0)
    near = np.zeros(len(test[1]), bool)
    for index, (row, limit) in enumerate(zip(scores, model.thresholds, strict=True)):
        # Only decisions that are taken: who has left before is not asked again.
        near |= (np.abs(row - limit) <= NEAR * abs(limit)) & (expected.exits >= index)
    for layout, quantization in WANTED:
        place = folder / f"{name}_{layout}_{quantization}"
        export(model, place, layout, quantization, valid)
        answer = StageRunner(place, threads=threads).predict(test[0])
        manifest = json.loads((place / "manifest.json").read_text("utf-8"))
        row = {
            "network": name,
            "layout": layout,
            "quantization": quantization,
            **judged(answer, expected, near, test[1], quantization),
            "bytes": sum(entry["bytes"] for entry in manifest["files"]),
        }
        print(json.dumps(row), flush=True)
        yield row


def export(model, place, layout, quantization, valid):
    """Exports, unless an earlier run has done it at the same thresholds."""
    if (place / "manifest.json").exists():
        manifest = json.loads((place / "manifest.json").read_text("utf-8"))
        before = manifest["recalibration"] or {"previous_thresholds": thresholds(manifest)}
        if before["previous_thresholds"] == model.thresholds:
            return
    model.export_stages(
        place,
        layout=layout,
        quantization=quantization,
        representative_data=tuple(part[:2000] for part in valid),
        verbose=0,
    )


def thresholds(manifest):
    return [row["threshold"] for row in manifest["exits"][:-1]]


def judged(answer, expected, near, labels, quantization):
    differs = (answer.exits != expected.exits) | (answer.labels != expected.labels)
    moved = float((answer.exits != expected.exits).mean())
    accuracy = float((answer.labels == labels).mean())
    lost = float((expected.labels == labels).mean()) - accuracy
    row = {
        "images": len(labels),
        "shares": (np.bincount(expected.exits) / len(labels)).round(4).tolist(),
        "differ": int((differs & ~near).sum()),
        "near_threshold": int(near.sum()),
        "differ_near_threshold": int((differs & near).sum()),
        "exits_moved": round(moved, 5),
        "accuracy": accuracy,
        "accuracy_lost": round(lost, 5),
    }
    if quantization is None:
        holds = row["differ"] == 0 and near.mean() <= 0.002
    elif quantization == "int8":
        holds = lost <= 0.005
    else:
        holds = moved <= 0.01
    return {**row, "holds": bool(holds)}


if __name__ == "__main__":
    main()
