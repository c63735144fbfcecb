# SPDX-License-Identifier: Apache-2.0
"""MNIST from TensorFlow Datasets, or scikit-learn's digits where it cannot be had."""

import threading
import urllib.request
from dataclasses import dataclass

import numpy as np

HOME_OF_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
PATIENCE_SECONDS = 3


@dataclass
class Digits:
    """Images float32 [n, 28, 28, 1] in [0, 1] and labels int64 [n], in three splits."""

    name: str
    source: str
    train: tuple[np.ndarray, np.ndarray]
    valid: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    def describe(self):
        sizes = (f"{len(getattr(self, x)[1]):,} {x}" for x in ("train", "valid", "test"))
        return f"{self.name}: {', '.join(sizes)} images, {self.source}"


def load(which="auto"):
    """`"mnist"`, `"digits"`, or MNIST with the digits in its place: `"auto"`."""
    if which == "digits":
        return sklearn_digits()
    obstacle = obstacle_to_mnist()
    if obstacle is None:
        return mnist()
    if which == "mnist":
        raise SystemExit(f"MNIST cannot be had: {obstacle}.")
    print(f"MNIST cannot be had: {obstacle}. Running on scikit-learn's digits instead.")
    return sklearn_digits()


def mnist():
    """TFDS reads TFDS_DATA_DIR, else ~/tensorflow_datasets, and downloads what lacks."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist")
    builder.download_and_prepare()
    parts = builder.as_dataset(
        # The last 10,000 training images choose thresholds; the test set judges only.
        split=["train[:50000]", "train[50000:]", "test"],
        batch_size=-1,
        as_supervised=True,
    )
    train, valid, test = (
        (images.numpy().astype(np.float32) / 255, labels.numpy())
        for images, labels in parts
    )
    source = f"{builder.info.full_name} of TensorFlow Datasets"
    return Digits("MNIST", source, train, valid, test)


def obstacle_to_mnist():
    """Why MNIST cannot be had, or None; asks the network itself for a few seconds only.

    TFDS would try for minutes before it gives up.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist")
    if builder.is_prepared():
        return None
    answers = []

    def ask():
        try:
            request = urllib.request.Request(HOME_OF_MNIST, method="HEAD")
            urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)
        except urllib.error.HTTPError:
            answers.append(None)  # it answers: the network is there
        except Exception as error:  # whatever it is, there is no data this way
            answers.append(error)
        else:
            answers.append(None)

    # In a thread, since looking up a name heeds no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if answers == [None]:
        return None
    reason = answers[0] if answers else f"no answer in {PATIENCE_SECONDS} seconds"
    return f"it is not in {builder.data_dir_root}, and the network fails ({reason})"


def sklearn_digits(seed=0):
    """1,797 digits of 8x8 pixels, each pixel three wide, framed to 28x28."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    images = np.pad(np.kron(images, np.ones((1, 3, 3))), [(0, 0), (2, 2), (2, 2)])
    images = images[..., None].astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(labels))
    splits = np.split(order, [1097, 1397])
    parts = ((images[part], labels[part].astype(np.int64)) for part in splits)
    return Digits("digits", "load_digits of scikit-learn", *parts)
