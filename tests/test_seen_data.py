# SPDX-License-Identifier: Apache-2.0
"""`calibrate` warns of data that `fit` saw, and not of other data."""

import gc
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_branchy import BranchyModel, ExitBranch
from keras_branchy.seen_data import SeenData, _all_of

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(400, 6)).astype(np.float32), RNG.integers(0, 3, 400)
HELD_OUT, LABELS = RNG.normal(size=(200, 6)).astype(np.float32), RNG.integers(0, 3, 200)


def seen(data, **more):
    made = SeenData()
    made.add(data, **more)
    return made


@pytest.mark.parametrize(
    "data, share",
    [
        (X, 1.0),
        (X[::-1].copy(), 1.0),
        (X[50:70], 1.0),
        (X.astype(np.float64), 1.0),
        (tf.constant(X), 1.0),
        ({"input": X}, 1.0),
        (np.concatenate([X[:100], HELD_OUT[:100]]), 0.5),
        (HELD_OUT, 0.0),
        (X + np.float32(0.01), 0.0),
        (X[:0], 0.0),
        (np.array(["a", "b"]), 0.0),
    ],
)
def test_samples_are_known_by_their_values(data, share):
    assert seen(X).share(data) == share
    assert seen(HELD_OUT).share(HELD_OUT[:9]) == 1
    assert SeenData().share(data) == 0


@pytest.mark.parametrize("shape", [(300,), (300, 1), (300, 9, 9, 3), (300, 5000)])
def test_samples_of_any_size(shape):
    x = RNG.random(shape).astype(np.float32)
    known = seen(x[:200])
    assert known.share(x[:200]) == 1 and known.share(x[200:]) == 0
    assert known.share(x) == pytest.approx(2 / 3)


def test_more_samples_than_are_looked_at_at_a_time():
    x = RNG.random((10_000, 2))
    assert seen(x[:9000]).share(x[8500:]) == pytest.approx(1 / 3)


def test_what_fit_holds_out_was_not_seen():
    known = seen(X, validation_split=0.25)
    assert known.share(X[300:]) == 0 and known.share(X[:300]) == 1


def test_where_samples_are_copies_of_each_other_nothing_is_told():
    few = RNG.integers(0, 3, (1000, 3))
    assert seen(few).share(few) == 0
    nearly = np.concatenate([X, X[:4]])
    assert seen(nearly).share(X) == 1
    assert seen(np.concatenate([X, X[:5]])).share(X) == 0


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def test_datasets_are_known_behind_their_steps():
    source = dataset()
    train = source.shuffle(50).map(lambda x, y: (x, y)).batch(8).prefetch(1)
    known = seen(train)
    for data in (train, train.take(3), source, source.batch(32), source.skip(3).batch(9)):
        assert known.share(data) == 1
    assert known.share(dataset().batch(8)) == 0


def test_parts_of_one_dataset_do_not_overlap():
    source = dataset()
    known = seen(source.skip(100).shuffle(9).batch(8))
    assert known.share(source.take(100).batch(8)) == 0
    known = seen(source.shard(2, 0).batch(8))
    assert known.share(source.shard(2, 1).batch(8)) == 0


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return X[:8], Y[:8]


def test_other_data_are_known_as_objects_and_not_kept():
    batches = Batches()
    known = seen(batches)
    assert known.share(batches) == 1 and known.share(Batches()) == 0
    known = seen(gone := Batches())
    del gone
    gc.collect()
    assert known.share(Batches()) == 0
    assert seen([]).share([]) == 0


def model():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="relu", name="early")(inputs)
    plain = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    made = BranchyModel(plain, exits={"early": ExitBranch(3)})
    made.compile("sgd", "sparse_categorical_crossentropy")
    return made


def test_calibrate_warns_of_what_fit_saw():
    made = model()
    made.fit(X, Y, validation_data=(HELD_OUT, LABELS), verbose=0)
    with pytest.warns(UserWarning, match=r"`fit` saw 100 % of the samples that"):
        made.calibrate(X, Y, exit_shares=[0.5], verbose=0)
    half = np.concatenate([X[:50], HELD_OUT[:50]])
    with pytest.warns(UserWarning, match=r"saw 50 % of .*Pass samples held out"):
        made.calibrate(half, np.zeros(100, int), exit_shares=[0.5], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.calibrate(HELD_OUT, LABELS, exit_shares=[0.5], verbose=0)
        model().calibrate(X, Y, exit_shares=[0.5], verbose=0)
        # One sample in twenty may be a copy.
        few = np.concatenate([X[:10], HELD_OUT[:190]])
        made.calibrate(few, LABELS, exit_shares=[0.5], verbose=0)


def test_calibrate_warns_of_the_dataset_of_fit():
    made, train = model(), dataset().batch(50)
    valid = tf.data.Dataset.from_tensor_slices((HELD_OUT, LABELS)).batch(50)
    made.fit(train, validation_data=valid, verbose=0)
    with pytest.warns(UserWarning, match=r"`fit` saw 100 %"):
        made.calibrate(train.take(2), exit_shares=[0.5], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.calibrate(valid, exit_shares=[0.5], verbose=0)


def test_training_again_takes_no_more_memory(rng):
    seen, x = SeenData(), rng.random((500, 7))
    data = tf.data.Dataset.from_tensor_slices(x).batch(10)
    for _ in range(20):
        seen.add(x)
        seen.add(data)
    assert len(seen._keys) == 500 and len(seen._objects) == len(list(_all_of(data)))
    assert seen.share(x[:9]) == seen.share(data) == 1.0
    seen.add(x + 1)
    assert len(seen._keys) == 1000 and seen.share(x + 1) == 1.0
