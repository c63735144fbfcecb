# SPDX-License-Identifier: Apache-2.0
"""Datasets of TensorFlow Datasets that are on this machine; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_branchy.cli.files import meant

__all__ = ["Found", "batches", "find"]


@dataclass(frozen=True)
class Found:
    """A prepared split.

    Attributes:
        source: Full name and split, for people.
        count: Samples in it.
        shape: Shape of one sample.
        dtype: Its dtype.
    """

    builder: Any
    split: str
    source: str
    count: int
    shape: tuple[int | None, ...]
    dtype: Any


def find(name: str, split: str | None, default: str) -> Found:
    """Finds a dataset where TFDS keeps them: `TFDS_DATA_DIR`, else its own folder.

    Raises:
        ImportError: If tensorflow-datasets is not installed.
        FileNotFoundError: If there is no such dataset, or it is not prepared.
        ValueError: If no split is given, there is no such, or it has no labels.
    """
    tfds = _library()
    try:
        builder = tfds.builder(name)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"There is no such data. Received: {name}, neither a file nor a dataset that "
            f"TensorFlow Datasets knows.{meant(name, tfds.list_builders())} Pass a name "
            "such as mnist, or a path that ends in .npz."
        ) from error
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"The dataset is not on this machine. Received: {name}, looked for in "
            f"{builder.data_dir_root}. Set TFDS_DATA_DIR to where it is, or fetch it: "
            f"python -c \"import tensorflow_datasets as t; t.load('{name}')\""
        )
    splits = builder.info.splits
    if split is None and default in splits:
        split = default
    if split is None:
        raise ValueError(
            f"--split says which part to use. Received: {name} without it. Expected one "
            f"of {', '.join(splits)}, or a part such as 'train[:10%]'."
        )
    try:
        count = splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"There is no such split. Received: --split {split}. Expected one of "
            f"{', '.join(splits)} of {name}, or a part such as 'train[:10%]'."
        ) from error
    return _supervised(builder, split, count)


def _library() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "Datasets by name need tensorflow-datasets, which cannot be imported: "
            f"{error}. Install it: pip install 'keras-branchy[examples]'. Or pass an .npz "
            "file with x and y."
        ) from error
    return tfds


def _supervised(builder: Any, split: str, count: int) -> Found:
    keys = builder.info.supervised_keys
    if keys is None or len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        raise ValueError(
            "The dataset has no labels to compare with. Received: "
            f"{builder.info.full_name}, whose supervised keys are {keys}. Pass an .npz "
            "file with x and y."
        )
    if not count:
        raise ValueError(f"The split is empty. Received: --split {split}.")
    features = builder.info.features[keys[0]]
    source = f"{builder.info.full_name}, {split}"
    return Found(builder, split, source, count, tuple(features.shape), features.np_dtype)


def batches(found: Found, size: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The first `count` samples as stored, in the order of the files."""
    import tensorflow_datasets as tfds

    data = found.builder.as_dataset(split=found.split, as_supervised=True)
    yield from tfds.as_numpy(data.take(count).batch(size))
