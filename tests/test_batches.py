# SPDX-License-Identifier: Apache-2.0
"""Batches from whatever `predict` takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import exits, images, sequential, two_inputs

from keras_branchy import BranchyModel
from keras_branchy.batches import batches_of


@pytest.fixture(scope="module")
def model():
    return BranchyModel(sequential(), exits("conv"))


@pytest.fixture(scope="module")
def pair():
    return BranchyModel(two_inputs(), exits("conv"))


def collect(model, data, **options):
    """All samples and labels, and the sizes of the batches."""
    parts = list(batches_of(model, data, verbose=0, **options))
    x = np.concatenate([keras.ops.convert_to_numpy(x) for x, _ in parts])
    labels = [y for _, y in parts]
    y = None if labels[0] is None else np.concatenate(labels)
    return x, y, [len(x) for x, _ in parts]


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, **kwargs):
        super().__init__(**kwargs)
        self.x, self.y = x, y

    def __len__(self):
        return 2

    def __getitem__(self, index):
        part = slice(4 * index, 4 * index + 4)
        return self.x[part], self.y[part]


def test_every_kind_of_data_gives_the_same_samples(model, rng):
    x, y = images(8, rng), rng.integers(0, 4, 8)
    both, alone = [(x[:4], y[:4]), (x[4:], y[4:])], [x[:4], x[4:]]
    weighted = [(a, b, np.ones(4)) for a, b in both]
    dataset = tf.data.Dataset.from_tensor_slices
    for data, labelled in [
        (dataset((x, y)).batch(4), True),
        (dataset((x, y, np.ones(8))).batch(4), True),
        (dataset(x).batch(4), False),
        (Batches(x, y), True),
        (iter(both), True),
        (iter(weighted), True),
        (((a, b) for a, b in both), True),
        ((a for a in alone), False),
    ]:
        got, labels, sizes = collect(model, data)
        np.testing.assert_array_equal(got, x)
        assert sizes == [4, 4]
        assert (labels is not None) == labelled
        if labelled:
            np.testing.assert_array_equal(labels, y)
    for array in (x, tf.constant(x), [x]):
        got, labels, sizes = collect(model, array, y=y, batch_size=5)
        np.testing.assert_array_equal(got, x)
        np.testing.assert_array_equal(labels, y)
        assert sizes == [5, 3]


def test_arrays_come_in_batches_of_32(model, rng):
    assert collect(model, images(70, rng))[2] == [32, 32, 6]


def test_steps_end_endless_data(model, rng):
    def forever():
        while True:
            yield images(4, rng)

    assert collect(model, forever(), steps=3)[2] == [4, 4, 4]


def test_an_array_without_samples_is_one_empty_batch(model):
    x, _, sizes = collect(model, np.zeros((0, 8, 8, 2)))
    assert sizes == [0] and x.shape == (0, 8, 8, 2)


def test_inputs_take_the_dtype_of_the_model(model):
    for dtype in (np.uint8, np.float64, np.float16):
        ((x, _),) = batches_of(model, np.ones((2, 8, 8, 2), dtype), verbose=0)
        assert x.dtype == tf.float32


def test_several_inputs_by_name_or_in_order(pair, rng):
    image, vector = images(6, rng), rng.normal(size=(6, 3))
    named = {"vector": vector, "image": image}
    for data in (named, iter([named]), [image, vector]):
        for x, _ in batches_of(pair, data, verbose=0):
            assert sorted(x) == ["image", "vector"]
            np.testing.assert_array_equal(x["image"], image)
            np.testing.assert_allclose(x["vector"], vector, rtol=1e-6)


@pytest.mark.parametrize(
    "verbose, shown", [(1, "2/2"), ("auto", "2/2"), (2, "2/2"), (0, "")]
)
def test_progress(model, rng, capsys, verbose, shown):
    list(batches_of(model, images(8, rng), batch_size=4, verbose=verbose))
    out = capsys.readouterr().out
    assert shown in out and bool(out) == bool(shown)


def test_progress_of_unknown_length(model, rng, capsys):
    list(batches_of(model, iter([images(4, rng)] * 3), verbose=1))
    assert "3/" in capsys.readouterr().out


@pytest.mark.parametrize(
    "data, options, message",
    [
        (
            np.zeros((4, 8, 8, 2)),
            {"y": [1, 2]},
            r"same number of samples.*\[2, 4\] samples",
        ),
        (3, {}, r"`data` must be arrays or tensors, a tf.data.Dataset.*Received: int"),
        (iter([]), {}, r"gave no batch. Received: list_iterator. An iterator"),
        (iter([1]), {"y": [1]}, r"`y` goes with arrays"),
        (iter([1]), {"batch_size": 4}, r"`batch_size` goes with arrays"),
        ([np.zeros((4, 8, 8, 2))] * 2, {}, r"has 1 inputs.*Received: 2 arrays"),
    ],
)
def test_data_that_cannot_be_used(model, data, options, message):
    with pytest.raises(ValueError, match=message):
        list(batches_of(model, data, verbose=0, **options))


def test_a_dict_without_an_input(pair, rng):
    with pytest.raises(ValueError, match=r"inputs.*\['image', 'vector'\].*'vector'"):
        list(batches_of(pair, {"image": images(4, rng)}, verbose=0))
