# SPDX-License-Identifier: Apache-2.0
"""B-LeNet on MNIST: train it, choose its thresholds, compare it with the plain LeNet.

    python examples/mnist_b_lenet.py [--data digits] [--seed 1] [--out build/demo]

Both networks start from the same trunk, trained for a few epochs, and then get the same
epochs, schedule and images: the plain LeNet goes on as it is, B-LeNet trains its trunk and
its branch together. It takes three to four minutes on two cores and leaves the model, the
figures and report.json in `--out`.
"""

import argparse
import json
import time
from pathlib import Path

import evidence
import keras
import mnist_data

from keras_branchy import cost, networks

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE = 128
LEARNING_RATE = 4e-3
EPOCHS = {"MNIST": (2, 6), "digits": (20, 50)}  # of the trunk, and after the fork
# `max_accuracy_drop=0.0` would let 92 to 97 % leave, up to 0.04 points of test accuracy
# below the last exit: the choice that just fits one validation set is a bold one.
EXIT_SHARES = [0.92]  # of the validation images, at exit 1


def main():
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    started = time.perf_counter()

    data = mnist_data.load(args.data)
    print(data.describe())
    plain, model = train(data, args.epochs or EPOCHS[data.name])

    # Thresholds come from the validation images; the test images are not touched.
    calibration = model.calibrate(
        *data.valid, exit_shares=EXIT_SHARES, batch_size=500, verbose=0
    )
    nats = model.thresholds[0]
    when = "never" if nats is None else f"if the entropy is below {nats:.4f} nats"
    print(f"\nLeave at exit 1 {when}.")
    model.save(args.out / "b_lenet.keras")

    answer = model.predict_early(data.test[0], batch_size=500, verbose=0)

    print("Comparing every image with the rule, and measuring time ...", flush=True)
    report = {
        "data": data.describe(),
        "seed": args.seed,
        "thresholds": model.thresholds,
        "calibration": calibration.to_json(),
        "test": evidence.accuracies(plain, model, answer, data.test),
        "cost": costs(model, answer),
        "parity": evidence.parity(model, data.test[0]),
        "time_per_image": evidence.times(plain, model, data.test[0], args.quick),
        "made_with": evidence.surroundings(),
    }
    evidence.draw(report, model, answer, data.test, args.out)
    report["seconds"] = round(time.perf_counter() - started, 1)
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(f"\n{evidence.table(report)}\n\nAll of it is in {args.out}.")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=("auto", "mnist", "digits"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, nargs=2, metavar=("TRUNK", "AFTER"))
    parser.add_argument("--quick", action="store_true", help="measure times briefly")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo")
    return parser.parse_args()


def train(data, epochs):
    """The plain LeNet and B-LeNet, trained alike from one half-trained trunk."""
    trunk = networks.b_lenet(backbone_only=True)
    fit(trunk, "trunk", data, epochs[0], LEARNING_RATE)

    steps = epochs[1] * -(-len(data.train[1]) // BATCH_SIZE)
    plain = networks.b_lenet(backbone_only=True)
    model = networks.b_lenet()
    for layer in trunk.layers:
        plain.get_layer(layer.name).set_weights(layer.get_weights())
        model.get_layer(layer.name).set_weights(layer.get_weights())
    for network, name in ((plain, "plain LeNet"), (model, "B-LeNet")):
        falling = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
        fit(network, name, data, epochs[1], falling)
    return plain, model


def fit(model, name, data, epochs, learning_rate):
    model.compile(
        keras.optimizers.Adam(learning_rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(
        *data.train,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=data.valid,
        validation_batch_size=1000,
        verbose=0,
        callbacks=[EpochLine(name)],
    )


class EpochLine(keras.callbacks.Callback):
    """One short line per epoch: the loss, and the validation accuracy of every exit."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        exits = {key: value for key, value in logs.items() if key.endswith("accuracy")}
        exits = {key: value for key, value in exits.items() if key.startswith("val_")}
        shown = "  ".join(
            f"{key[4:-8].strip('_') or 'valid'} {100 * value:.2f} %"
            for key, value in sorted(exits.items())
        )
        seconds = time.perf_counter() - self.started
        print(
            f"{self.name:11}  epoch {epoch + 1:2}/{self.params['epochs']}"
            f"  loss {logs['loss']:.4f}  {shown}  {seconds:4.1f} s",
            flush=True,
        )


def costs(model, answer):
    """Multiply-accumulates of one image: at each exit, and expected on the test images."""
    stages = cost.stage_costs(model)
    whole = stages[-1].trunk_macs_to_leave
    shares = evidence.exit_shares(model, answer)
    expected = {
        "heads_counted": cost.expected_macs(stages, shares),
        "heads_left_out": cost.expected_macs(stages, shares, heads=False),
    }
    return {
        "plain_macs": whole,
        "macs_to_leave": [stage.macs_to_leave for stage in stages],
        "trunk_macs_to_leave": [stage.trunk_macs_to_leave for stage in stages],
        "expected_macs": expected,
        "times_less": {name: whole / macs for name, macs in expected.items()},
        "bytes_carried": [stage.bytes_carried for stage in stages[:-1]],
    }


if __name__ == "__main__":
    main()
