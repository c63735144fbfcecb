# SPDX-License-Identifier: Apache-2.0
"""The images: MNIST and CIFAR-10 from TensorFlow Datasets, or made-up ones for a rehearsal.

Thresholds are chosen on the validation images, which are the last of the training split;
the test split judges only.
"""

from dataclasses import dataclass, replace

import numpy as np

SPLITS = {
    "mnist": ["train[:55000]", "train[55000:]", "test"],
    "cifar10": ["train[:45000]", "train[45000:]", "test"],
}
SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
WHITENING_FLOOR = 0.1  # added to the eigenvalues of pixels of unit variance


@dataclass(frozen=True)
class Data:
    """Images float32 [n, rows, columns, channels] in [0, 1] and labels int64 [n]."""

    name: str  # "mnist", "cifar10" or "cifar10-zca"
    source: str
    train: tuple[np.ndarray, np.ndarray]
    valid: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    def describe(self):
        sizes = (f"{len(getattr(self, x)[1]):,} {x}" for x in ("train", "valid", "test"))
        return f"{self.name}: {', '.join(sizes)} images; {self.source}"

    @property
    def count(self):
        """Of training images."""
        return len(self.train[1])

    def first(self, count):
        """As many of each split, for a rehearsal."""
        if count is None:
            return self
        parts = {
            name: tuple(array[:count] for array in getattr(self, name))
            for name in ("train", "valid", "test")
        }
        return replace(self, **parts)


def load(name, *, made_up=False):
    """`"mnist"`, `"cifar10"` in [0, 1], or `"cifar10-zca"`, whitened and then in [0, 1]."""
    kind = name.removesuffix("-zca")
    data = rehearsal(kind) if made_up else from_tfds(kind)
    return whitened(data) if name.endswith("-zca") else data


def from_tfds(name):
    """TFDS reads TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name)
    if not builder.is_prepared():
        raise SystemExit(
            f"{name} is not on this machine: TensorFlow Datasets looked in "
            f"{builder.data_dir_root}. Set TFDS_DATA_DIR to where it is, fetch it with "
            f"`tfds build {name}`, or rehearse on made-up images: --made-up."
        )
    parts = builder.as_dataset(split=SPLITS[name], batch_size=-1, as_supervised=True)
    train, valid, test = (
        (images.numpy().astype(np.float32) / 255, labels.numpy().astype(np.int64))
        for images, labels in parts
    )
    source = f"{builder.info.full_name} of TensorFlow Datasets" + re_encoded(builder)
    return Data(name, source, train, valid, test)


def re_encoded(builder):
    """CIFAR-10 stored as JPEG has not the pixels that others publish on."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    stored = builder.as_dataset(
        split="test[:1]", decoders={"image": tfds.decode.SkipDecoding()}
    )
    is_jpeg = bool(tf.io.is_jpeg(next(iter(stored))["image"]))
    return ", its images re-encoded as JPEG" if is_jpeg else ""


def rehearsal(name, count=256, seed=0):
    """Made-up images whose class is a bright patch; they show that the code runs."""
    rng = np.random.default_rng(seed)
    rows, columns, channels = SHAPES[name]

    def part():
        labels = rng.integers(0, 10, count)
        images = rng.random((count, rows, columns, channels), np.float32) / 2
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 5)
            image[4 + 12 * row :, 2 + 5 * column :][:5, :5] = 1
        return images, labels

    return Data(name, "made-up images, a rehearsal", part(), part(), part())


def whitened(data):
    """ZCA by the training images, then each image scaled to [0, 1], as BranchyNet did."""
    flat = data.train[0].reshape(len(data.train[0]), -1)
    mean = flat.mean(0)
    spread = flat.std() or 1.0
    covariance = ((flat - mean) / spread).T @ ((flat - mean) / spread) / len(flat)
    values, vectors = np.linalg.eigh(covariance)
    matrix = (vectors / np.sqrt(values.clip(0) + WHITENING_FLOOR)) @ vectors.T

    def apply(part):
        images, labels = part
        white = ((images.reshape(len(images), -1) - mean) / spread) @ matrix
        low, high = white.min(1, keepdims=True), white.max(1, keepdims=True)
        white = (white - low) / np.maximum(high - low, 1e-6)
        return white.reshape(images.shape).astype(np.float32), labels

    return replace(
        data,
        name=f"{data.name}-zca",
        source=f"{data.source}, whitened (ZCA) and scaled image by image to [0, 1]",
        train=apply(data.train),
        valid=apply(data.valid),
        test=apply(data.test),
    )
