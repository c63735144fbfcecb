# SPDX-License-Identifier: Apache-2.0
"""Add exits to a classifier that is trained, train the exits alone, and see what it gains.

    python examples/add_exits_to_your_model.py --quick
    python examples/add_exits_to_your_model.py --model EfficientNetV2B0 --size 96

The classifier is any model of keras.applications; put your own in `your_model`, and your
own data in `load`. The five steps in `main` stay as they are. It needs no network: without
ImageNet's weights it trains from scratch, without CIFAR-10 it takes scikit-learn's digits,
and says so.
"""

import argparse
import socket
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from keras_branchy import BranchyModel, ExitBranch, cost
from keras_branchy.thresholds import gate_thresholds

CLASSES = 10
LOSS = "sparse_categorical_crossentropy"
BATCH_SIZE = 32
HELD_OUT = 5_000  # of CIFAR-10's training images, to choose thresholds


def main():
    args = parse_args()
    keras.utils.set_random_seed(args.seed)

    # 1. A trained classifier: functional or Sequential, softmax or logits at its end.
    backbone, preprocess, pretrained = your_model(args.model, args.size)
    train, valid, test = load(args.data, args.images, args.size, preprocess)
    train_plain(backbone, train, args.epochs, pretrained)

    # 2. Exits, evenly over the cost of the model; every layer's name would do.
    places = cost.suggest_exits(backbone, places=args.exits + 1)[: args.exits]
    for place in places:
        print(f"An exit at '{place.tap}', after {place.share:.0%} of the multiplications.")
    model = BranchyModel(backbone, {place.tap: ExitBranch(CLASSES) for place in places})

    # 3. Training. The backbone is frozen, so its own answers stay what they were.
    print("Training the exits ...", flush=True)
    backbone.trainable = False
    model.compile("adam", LOSS)
    model.fit(train, epochs=args.epochs, verbose=0)

    # 4. Thresholds, from images that training has not seen.
    print(model.calibrate(valid, max_accuracy_drop=args.max_accuracy_drop, verbose=0))

    # 5. What it gains, on images that have chosen nothing.
    compare(backbone, model, test)
    if args.save:
        model.save(args.save)


def your_model(name, size):
    """A classifier, what its images go through first, whether its weights are trained."""
    build = getattr(keras.applications, name)
    # Each model of keras.applications has its own way to scale pixels, beside it.
    preprocess = sys.modules[build.__module__].preprocess_input
    options = {"include_top": False, "pooling": "avg", "input_shape": (size, size, 3)}
    socket.setdefaulttimeout(10)  # seconds, where a network swallows what it is sent
    try:
        base, pretrained = build(weights="imagenet", **options), True
        print(f"{name} with ImageNet's weights.")
    except Exception as error:  # Keras raises no more specific one
        base, pretrained = build(weights=None, **options), False
        print(
            f"{name} with RANDOM weights, since ImageNet's cannot be had ({error}). It is "
            "trained from scratch on few images: its accuracy says nothing about yours."
        )
    outputs = keras.layers.Dense(CLASSES, activation="softmax", name="scores")(base.output)
    return keras.Model(base.input, outputs, name=name), preprocess, pretrained


def train_plain(backbone, train, epochs, pretrained):
    """The last layer where weights are pretrained, else all. Skip it: yours is trained."""
    print("Training the classifier ...", flush=True)
    for layer in backbone.layers[:-1]:
        layer.trainable = not pretrained
        if isinstance(layer, keras.layers.BatchNormalization):
            # Some average over thousands of batches, far more than there are here.
            layer.momentum = min(layer.momentum, 0.9)
    backbone.compile("adam", LOSS)
    backbone.fit(train, epochs=epochs, verbose=0)


# ---- Data ----------------------------------------------------------------------------
def load(which, images, size, preprocess):
    """Batches of (images, labels) for training, for thresholds and for judging."""
    train, valid, test = digits() if which == "digits" else cifar10()

    def prepare(image, label):
        # Pixels are in [0, 255] until here, as `preprocess` expects them.
        return preprocess(tf.image.resize(image, (size, size))), label

    # Kept as they come: enlarged to 64 pixels they would take 16 times the memory.
    train = train.take(images).cache().shuffle(images)
    return [
        part.map(prepare, tf.data.AUTOTUNE).batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)
        for part in (train, valid.take(images).cache(), test.take(images).cache())
    ]


def cifar10():
    import tensorflow_datasets as tfds

    builder = tfds.builder("cifar10")
    if not builder.is_prepared():
        print(
            f"CIFAR-10 is not in {builder.data_dir_root} (`tfds build cifar10` brings it "
            "there). Running on scikit-learn's digits instead: compare with nothing."
        )
        return digits()
    splits = [f"train[:-{HELD_OUT}]", f"train[-{HELD_OUT}:]", "test"]
    return builder.as_dataset(split=splits, as_supervised=True)


def digits():
    """1,797 digits of 8x8 pixels, in grey."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels = np.repeat(pixels.reshape(-1, 8, 8, 1) * 255 / 16, 3, axis=-1)
    order = np.random.default_rng(0).permutation(len(labels))
    return [
        tf.data.Dataset.from_tensor_slices((pixels[part].astype(np.uint8), labels[part]))
        for part in np.split(order, [1097, 1397])
    ]


# ---- Comparison ----------------------------------------------------------------------
def compare(backbone, model, test):
    """Accuracy, multiplications and time an image, plain and with exits."""
    labels = np.concatenate([batch for _, batch in test])
    plain = backbone.predict(test, verbose=0).argmax(-1)
    answer = model.predict_early(test, verbose=0)
    shares = np.bincount(answer.exits, minlength=len(model.exit_names)) / len(answer)
    stages = cost.stage_costs(model)
    macs = stages[-1].trunk_macs_to_leave, cost.expected_macs(stages, shares)
    rows = [
        ("right answers", *(f"{np.mean(x == labels):.1%}" for x in (plain, answer.labels))),
        ("multiplications an image", *(f"{count / 1e6:.1f} M" for count in macs)),
    ]
    for size in (1, 32):
        taken = times(backbone, model, test, size)
        rows.append((f"ms an image, {size} at a time", *(f"{ms:.2f}" for ms in taken)))
    print(f"\n{f'on {len(answer)} test images':28} {'plain':>10} {'with exits':>10}")
    for name, *cells in rows:
        print(f"{name:28} {cells[0]:>10} {cells[1]:>10}")
    print("leave at each exit: " + ", ".join(f"{share:.1%}" for share in shares))


def times(backbone, model, test, size, rounds=20):
    """Median time of both, in turns, with exits, gates and masking inside the clock."""
    thresholds = gate_thresholds(model.thresholds, model.criteria)
    runs = (
        tf.function(lambda x: backbone(x, training=False), reduce_retracing=True),
        lambda x: model.early_exit(x, thresholds)["labels"],
    )
    taken = [[], []]
    batches = test.unbatch().batch(size, drop_remainder=True).repeat().take(rounds + 3)
    for x, _ in batches:
        for run, measured in zip(runs, taken, strict=True):
            started = time.perf_counter()
            run(x).numpy()
            measured.append(1e3 * (time.perf_counter() - started) / size)
    return [float(np.median(measured[3:])) for measured in taken]  # 3 to warm up


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [name for name in dir(keras.applications) if name[0].isupper()]
    parser.add_argument(
        "--model",
        choices=names,
        metavar="NAME",
        default="MobileNetV2",
        help="of keras.applications",
    )
    parser.add_argument("--size", type=int, help="pixels a side, 64; quick: 32")
    parser.add_argument(
        "--data", choices=("cifar10", "digits"), help="cifar10; quick: digits"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=10_000,
        help="to train on, and at most as many to choose thresholds and to judge; 10,000",
    )
    parser.add_argument(
        "--epochs", type=int, help="of the classifier, and of the exits; 10, quick: 4"
    )
    parser.add_argument("--exits", type=int, default=2, help="how many to add")
    parser.add_argument("--max-accuracy-drop", type=float, default=0.01)
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--save", help="a .keras file for the model with exits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.size = args.size or (32 if args.quick else 64)
    args.epochs = args.epochs or (4 if args.quick else 10)
    args.data = args.data or ("digits" if args.quick else "cifar10")
    return args


if __name__ == "__main__":
    main()
