# SPDX-License-Identifier: Apache-2.0
"""Batches from whatever `predict` takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import exits, images, sequential, two_inputs
from keras import layers

from keras_branchy import BranchyModel
from keras_branchy.batches import batches_of


@pytest.fixture(scope="module")
def model():
    return BranchyModel(sequential(), exits("conv"))


@pytest.fixture(scope="module")
def pair():
    return BranchyModel(two_inputs(), exits("conv"))


def in_a_list(*names):
    """A model whose inputs are a list, in an order that is not the alphabet's."""
    inputs = [keras.Input((3,), name=name) for name in names]
    x = layers.Dense(4, name="dense")(layers.Subtract()(inputs))
    return BranchyModel(keras.Model(inputs, layers.Dense(4, "softmax")(x)), exits("dense"))


class Frame:
    """What a data frame has: a shape, no dtype, and columns to iterate over."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __len__(self):
        return len(self.array)

    def __iter__(self):
        return iter("abc")


class Endless(keras.utils.PyDataset):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return np.full((1, 8, 8, 2), index)


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


def test_steps_end_an_endless_py_dataset(model):
    x, _, _ = collect(model, Endless(), steps=3)
    np.testing.assert_array_equal(x[:, 0, 0, 0], [0, 1, 2])


def test_steps_take_no_batch_more_than_they_say(model, rng):
    batches = iter([images(4, rng)] * 5)
    collect(model, batches, steps=2)
    assert len(list(batches)) == 3
    assert collect(model, images(40, rng), batch_size=8, steps=2)[2] == [8, 8]


def test_nothing_is_read_before_it_is_wanted(model, rng):
    read = []
    batches = batches_of(model, (read.append(k) or images(4, rng) for k in range(3)),
                         verbose=0)  # fmt: skip
    next(batches)
    assert read == [0]


def test_lists_of_labels_and_data_frames_are_arrays(rng):
    model = in_a_list("x", "y")
    first, second = rng.normal(size=(2, 5, 3)).astype(np.float32)
    parts = list(batches_of(model, [Frame(first), second], [3, 1, 0, 2, 1], 4, verbose=0))
    np.testing.assert_array_equal(np.concatenate([x[0] for x, _ in parts]), first)
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), [3, 1, 0, 2, 1])


def test_an_array_without_samples_is_one_empty_batch(model):
    x, _, sizes = collect(model, np.zeros((0, 8, 8, 2)))
    assert sizes == [0] and x.shape == (0, 8, 8, 2)


def test_inputs_take_the_dtype_of_the_model(model):
    for dtype in (np.uint8, np.float64, np.float16):
        ((x, _),) = batches_of(model, np.ones((2, 8, 8, 2), dtype), verbose=0)
        assert x.dtype == tf.float32


def test_inputs_in_a_list_are_found_by_name(rng):
    """Keras goes by name here too; in the order of the alphabet they would be swapped."""
    model = in_a_list("zulu", "alpha")
    zulu, alpha = rng.normal(size=(2, 4, 3)).astype(np.float32)
    ((x, _),) = batches_of(model, {"alpha": alpha, "zulu": zulu}, verbose=0)
    np.testing.assert_array_equal(x[0], zulu)
    np.testing.assert_array_equal(x[1], alpha)
    model.thresholds = [None]
    answer = model.predict_early({"alpha": alpha, "zulu": zulu}, verbose=0)
    want = model.predict({"alpha": alpha, "zulu": zulu}, verbose=0)["exit_2"]
    np.testing.assert_allclose(answer.probabilities, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"inputs \['zulu', 'alpha'\].*without \['zulu'\]"):
        list(batches_of(model, {"alpha": alpha}, verbose=0))


def test_a_last_axis_of_one_comes_and_goes_as_in_predict(rng):
    model = BranchyModel(
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(2, 3, name="conv"),
                layers.Flatten(),
                layers.Dense(4, "softmax"),
            ]
        ),
        exits("conv"),
    )
    x = rng.normal(size=(4, 8, 8)).astype(np.float32)
    for given in (x, x[..., None], x[..., None, None]):
        got, _, _ = collect(model, given)
        np.testing.assert_array_equal(got, x[..., None])
    model.thresholds = [None]
    np.testing.assert_allclose(
        model.predict_early(x, verbose=0).probabilities,
        model.predict(x, verbose=0)["exit_2"],
        rtol=1e-5,
    )


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
    out = capsys.readouterr().out
    assert "3/" in out and out.endswith("\n")


def test_the_line_of_progress_ends_where_data_ends_before_the_steps(model, rng, capsys):
    list(batches_of(model, iter([images(4, rng)] * 2), verbose=1, steps=5))
    assert capsys.readouterr().out.endswith("\n")


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
        ((np.zeros((4, 8, 8, 2)), [1] * 4), {}, r"a row per sample. Received: 1 in a list"),
        ([[0.5, 1.0]], {}, r"must be an array or a tensor.*Pass numpy.array"),
        (np.float32(3), {}, r"must be an array or a tensor with a row per sample"),
        (
            np.zeros((4, 8, 7, 2)),
            {},
            r"\(None, 8, 8, 2\). Received: shape \(4, 8, 7, 2\). Pass a batch",
        ),
        (
            np.zeros((8, 8, 2)),
            {},
            r"takes arrays of shape.*shape \(8, 8, 2\). Add a first dimension.*x\[None\]",
        ),
        (iter([np.zeros((4, 7))]), {}, r"Received: shape \(4, 7\)"),
        (np.zeros((4, 8, 8, 2)), {"batch_size": 0}, r"at least 1. Received: batch_size=0"),
        (np.zeros((4, 8, 8, 2)), {"batch_size": -1}, r"Received: batch_size=-1"),
    ],
)
def test_data_that_cannot_be_used(model, data, options, message):
    with pytest.raises(ValueError, match=message):
        list(batches_of(model, data, verbose=0, **options))


def test_a_dict_without_an_input(pair, rng):
    with pytest.raises(ValueError, match=r"inputs.*\['image', 'vector'\].*'vector'"):
        list(batches_of(pair, {"image": images(4, rng)}, verbose=0))
