# SPDX-License-Identifier: Apache-2.0
"""Export B-LeNet for phones and fast CPUs, and compare the files with Keras.

    python examples/export_litert.py [--model build/demo/b_lenet.keras] [--out build/export]

It takes the model that `make demo` has trained, or with --quick one with random weights on
noise, which shows the files and nothing about accuracy.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np

from keras_branchy import StageRunner, networks
from keras_branchy.calibration import calibrate
from keras_branchy.criteria import gate_scores
from keras_branchy.scoring import all_logits

ROOT = Path(__file__).resolve().parents[1]


def main():
    args = parse_args()
    if args.quick:
        model, valid, test = random_model()
    else:
        model, valid, test = trained_model(args.model)
    wanted = [("stages", None), ("cascade", None)]
    if not args.quick:
        wanted += [("cascade", "dynamic"), ("signatures", "int8")]
    for layout, quantization in wanted:
        name = layout if quantization is None else f"{layout}_{quantization}"
        model.export_stages(
            args.out / name,
            layout=layout,
            quantization=quantization,
            representative_data=tuple(valid),
            class_names=[str(digit) for digit in range(10)],
            preprocessing={"divide_by": 255},
        )
        compare(args.out / name, model, test)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    demo = ROOT / "build" / "demo" / "b_lenet.keras"
    parser.add_argument("--model", type=Path, default=demo)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "export")
    parser.add_argument("--quick", action="store_true", help="random weights and noise")
    return parser.parse_args()


def trained_model(path):
    """The demo's model, held-out images with labels, and test images with labels."""
    import mnist_data

    if not path.exists():
        raise SystemExit(f"There is no {path}: run `make demo`, or pass --quick.")
    data = mnist_data.load()
    return keras.models.load_model(path), [part[:2000] for part in data.valid], data.test


def random_model():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = networks.b_lenet()
    images = rng.random((400, 28, 28, 1), np.float32)
    labels = rng.integers(0, 10, 400)
    # Half of the samples are to leave at the first exit.
    logits, _ = all_logits(model, images, verbose=0)
    score, label = gate_scores(logits[0])
    right = np.stack([label == labels, gate_scores(logits[1])[1] == labels])
    report = calibrate([score], right, [1, 2], ["entropy"], 10, exit_shares=[0.5])
    model.thresholds = report.thresholds
    return model, (images[:200], labels[:200]), (images[200:], labels[200:])


def compare(folder, model, test):
    images, labels = test
    answer = StageRunner(folder).predict(images)
    expected = model.predict_early(images, batch_size=500, verbose=0)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    size = sum(row["bytes"] for row in manifest["files"])
    statistics = answer.statistics
    print(
        f"  {folder.name}: {size:,} bytes, {100 * (answer.labels == labels).mean():.2f} % "
        f"right; same label as Keras for {(answer.labels == expected.labels).mean():.2%}, "
        f"same exit for {(answer.exits == expected.exits).mean():.2%}; left at each exit: "
        f"{statistics.left}; {1e6 * statistics.seconds / len(answer):.1f} µs an image"
    )


if __name__ == "__main__":
    main()
