# SPDX-License-Identifier: Apache-2.0
"""Staged inference: who leaves where, in every corner."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import exits, images, residual
from keras import layers

from keras_branchy import BranchyModel, ExitBranch, direct_call, early_exit, networks
from keras_branchy.thresholds import gate_thresholds


def identity(size):
    return [np.eye(size, dtype=np.float32), np.zeros(size, np.float32)]


@pytest.fixture
def given():
    """A model whose exits' logits are three thirds of its input: [B, 12] -> 3 x [B, 4]."""
    inputs = keras.Input((12,))
    first = layers.Identity(name="first")(inputs)
    second = layers.Identity(name="second")(first)
    third = layers.Cropping1D((8, 0), name="third")(layers.Reshape((12, 1))(second))
    scores = layers.Dense(4, activation="softmax", name="scores")
    backbone = keras.Model(inputs, scores(layers.Flatten()(third)))

    def crop(start, stop):
        return [layers.Reshape((12, 1)), layers.Cropping1D((start, stop)), layers.Flatten()]

    model = BranchyModel(
        backbone,
        {"first": ExitBranch(4, crop(0, 8)), "second": ExitBranch(4, crop(4, 4))},
    )
    for branch in model.branches:
        branch.classifier.set_weights(identity(4))
    scores.set_weights(identity(4))
    return model


SURE, UNSURE = [9.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.2, 0.0]


def rows(*parts):
    return np.array(
        [[value for part in row for value in part] for row in parts], np.float32
    )


def test_each_sample_leaves_at_its_own_exit(given):
    given.thresholds = [0.5, 0.5]
    x = rows(
        (UNSURE, UNSURE, SURE),
        (SURE, UNSURE, UNSURE),
        (UNSURE, [0.0, 9.0, 0.0, 0.0], SURE),
        (UNSURE, UNSURE, [0.0, 0.0, 0.0, 2.0]),
    )
    answer = given.predict_early(x, verbose=0)
    assert answer.exits.tolist() == [2, 0, 1, 2]
    assert answer.labels.tolist() == [0, 0, 1, 3]
    assert (answer.exits.dtype, answer.labels.dtype) == (np.int64, np.int64)


def test_a_score_at_the_threshold_stays(given):
    given.thresholds = [0.5, 0.5]
    score = given.predict_early(rows((UNSURE, UNSURE, UNSURE)), verbose=0).scores[0]
    x = rows((UNSURE, SURE, SURE))
    given.thresholds = [float(score), 0.5]
    assert given.predict_early(x, verbose=0).exits.tolist() == [1]
    given.thresholds = [float(np.nextafter(score, np.float32(9))), 0.5]
    assert given.predict_early(x, verbose=0).exits.tolist() == [0]


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_logits_never_leave_early_and_the_last_exit_takes_them(given, broken):
    given.thresholds = [9.0, 9.0]
    row = [broken] * 4
    answer = given.predict_early(rows((row, row, row), (SURE, SURE, SURE)), verbose=0)
    assert answer.exits.tolist() == [2, 0]
    assert np.isnan(answer.scores[0]) and answer.labels[0] == 0


@pytest.mark.parametrize("thresholds, exit_", [([9.0, 9.0], 0), ([None, None], 2)])
@pytest.mark.parametrize("size", [0, 1, 2, 33])
def test_everyone_or_nobody_leaves_at_once(given, thresholds, exit_, size):
    given.thresholds = thresholds
    x = np.random.default_rng(0).normal(size=(size, 12)).astype(np.float32)
    answer = given.predict_early(x, verbose=0)
    assert answer.exits.tolist() == [exit_] * size
    logits = x.reshape(size, 3, 4)[:, exit_]
    np.testing.assert_array_equal(answer.labels, logits.argmax(-1))
    np.testing.assert_allclose(answer.probabilities.sum(-1), np.ones(size), rtol=1e-6)


def test_disabled_exits_are_passed_by(given):
    given.thresholds = [None, 0.5]
    answer = given.predict_early(rows((SURE, SURE, SURE)), verbose=0)
    assert answer.exits.tolist() == [1]


def test_patience_counts_successive_equal_labels(given):
    zero, one = [0.2, 0.0, 0.0, 0.0], [0.0, 0.2, 0.0, 0.0]
    broken = [np.nan] * 4  # labelled 0, but agrees with nobody
    x = rows(
        (zero, zero, one), (zero, one, one), (broken, broken, one), (broken, zero, one)
    )
    for patience, expected in ((None, [2, 2, 2, 2]), (2, [1, 2, 2, 2]), (3, [2, 2, 2, 2])):
        given.patience, given.thresholds = patience, [None, None]
        assert given.predict_early(x, verbose=0).exits.tolist() == expected


def test_without_thresholds_the_error_names_calibrate(given):
    with pytest.raises(ValueError, match=r"no thresholds yet.*model.calibrate\(validation"):
        given.predict_early(rows((SURE, SURE, SURE)), verbose=0)


def test_thresholds_and_batch_sizes_never_retrace(given, rng):
    for thresholds in ([0.1, 0.2], [-np.inf, 0.3], [1.0, 1.0]):
        for size in (1, 2, 5):
            x = rng.random((size, 12), np.float32)
            given.early_exit(tf.constant(x), tf.constant(thresholds, tf.float32))
    assert given.early_exit.experimental_get_tracing_count() == 1


def test_the_traced_function_takes_tensors_and_thresholds(given):
    x = rows((SURE, UNSURE, UNSURE))
    answer = given.early_exit(tf.constant(x), tf.constant([0.5, 0.5]))
    assert sorted(answer) == ["exits", "labels", "probabilities", "scores"]
    assert answer["exits"].numpy().tolist() == [0]


def test_later_stages_do_not_run_when_nobody_is_left():
    ran = []

    class Witness(layers.Layer):
        def call(self, inputs):
            def note(value):
                ran.append(len(value))
                return value

            outputs = tf.py_function(note, [inputs], inputs.dtype)
            outputs.set_shape(inputs.shape)
            return outputs

    inputs = keras.Input((4,))
    x = layers.Dense(4, name="early")(inputs)
    x = Witness()(x)
    model = BranchyModel(
        keras.Model(inputs, layers.Dense(4, activation="softmax")(x)), exits("early")
    )
    x = np.random.default_rng(0).random((8, 4))
    model.thresholds = [9.0]
    model.stages()
    ran.clear()  # the cut itself runs one sample, to see what masks custom layers put on
    model.predict_early(x, verbose=0)
    assert ran == []
    model.thresholds = [None]
    model.predict_early(x, batch_size=5, verbose=0)
    assert ran == [5, 3]


def at_median(model, x):
    """Thresholds at which half of all samples would leave at each exit."""
    outputs = model.predict(x, verbose=0)
    p = np.stack([outputs[name] for name in model.exit_names[:-1]]).astype(np.float64)
    return np.median(-(p * np.log(p)).sum(-1), axis=1).tolist()


def test_data_of_every_kind_gives_the_same_answers(rng):
    model = BranchyModel(residual(), exits("stem", "late"))
    x, y = images(50, rng), rng.integers(0, 4, 50)
    model.thresholds = at_median(model, x)
    want = model.predict_early(x, batch_size=16, verbose=0)
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 50, 16)]
    for data in (
        tf.constant(x),
        tf.data.Dataset.from_tensor_slices(x).batch(16),
        tf.data.Dataset.from_tensor_slices((x, y)).batch(16),
        iter(batches),
        (batch for batch in batches),
    ):
        options = {"batch_size": 16} if tf.is_tensor(data) else {}
        got = model.predict_early(data, verbose=0, **options)
        for field in ("labels", "exits", "probabilities", "scores"):
            np.testing.assert_array_equal(getattr(got, field), getattr(want, field))


def called(model, x):
    """What the traced function answers, called as any `tf.function`."""
    thresholds = gate_thresholds(model.thresholds, model.criteria)
    answer = model.early_exit(x, tf.constant(thresholds))
    return {name: value.numpy() for name, value in answer.items()}


def assert_answers(got, want):
    for field, value in want.items():
        np.testing.assert_array_equal(getattr(got, field), value, strict=True)


def test_predict_early_answers_as_the_traced_function_does(rng, monkeypatch):
    model = BranchyModel(residual(), exits("stem", "late"))
    x = images(40, rng)
    model.thresholds = at_median(model, x)
    want = called(model, tf.constant(x))
    assert len(np.unique(want["exits"])) == 3
    assert_answers(model.predict_early(x, verbose=0), want)  # one batch, as it is
    assert_answers(model.predict_early(x, verbose=0, steps=1), want)
    assert_answers(model.predict_early(tf.constant(x), verbose=0), want)
    model.set_weights([0.9 * weights for weights in model.get_weights()])
    assert_answers(model.predict_early(x, verbose=0), called(model, tf.constant(x)))
    with tf.GradientTape():  # watches the weights
        assert_answers(model.predict_early(x, verbose=0), called(model, tf.constant(x)))
    assert not hasattr(model._settings.early_exit_call, "captured_inputs")
    # As where there is a GPU: the function itself is called.
    monkeypatch.setattr(direct_call, "_is_elsewhere", lambda: True)
    model._settings.early_exit_call = None
    assert_answers(model.predict_early(x, verbose=0), called(model, tf.constant(x)))
    assert hasattr(model._settings.early_exit_call, "captured_inputs")


def test_a_function_whose_captures_are_made_late_is_called_itself():
    late = [tf.constant(1.0), tf.constant(2.0)]

    @tf.function
    def function(x):
        graph = tf.compat.v1.get_default_graph()
        return {"y": x + graph.capture_call_time_value(lambda: late[0], tf.TensorSpec(()))}

    concrete = function.get_concrete_function(tf.TensorSpec(()))
    call = direct_call.direct_call(concrete)
    assert call is concrete
    assert float(call(tf.constant(3.0))["y"]) == 4.0
    late.reverse()
    assert float(call(tf.constant(3.0))["y"]) == 5.0


def test_empty_batches_among_others_have_no_answers(rng):
    model = networks.b_lenet()  # whose convolutions fail without a sample
    x = rng.random((12, 28, 28, 1), np.float32)
    model.thresholds = at_median(model, x)
    parts = [x[:5], x[:0], x[5:]]
    answers = [called(model, tf.constant(part)) for part in parts]
    want = {name: np.concatenate([y[name] for y in answers]) for name in answers[0]}
    for data in (parts, [tf.constant(part) for part in parts]):
        assert_answers(model.predict_early(iter(data), verbose=0), want)
        sizes = [len(answer) for answer in model.stream_early(iter(data))]
        assert sizes == [5, 0, 7]
    assert {name: value.shape for name, value in answers[1].items()} == {
        "labels": (0,),
        "probabilities": (0, model.num_classes),
        "exits": (0,),
        "scores": (0,),
    }
    assert_answers(model.predict_early(x[:0], verbose=0), answers[1])


@pytest.mark.parametrize("structure", [dict, list])
def test_several_inputs_reach_the_traced_function_in_order(rng, structure):
    inputs = {name: keras.Input((3,), name=name) for name in ("zulu", "alpha", "mike")}
    tap = layers.Dense(3, name="tap")(inputs["zulu"] - 2.0 * inputs["alpha"])
    last = layers.Dense(4, activation="softmax")(
        layers.Concatenate()([tap, inputs["mike"]])
    )
    given = inputs if structure is dict else [*inputs.values()]
    model = BranchyModel(keras.Model(given, last), {"tap": ExitBranch(4)})
    x = {name: rng.normal(size=(30, 3)).astype(np.float32) for name in inputs}
    x = x if structure is dict else [*x.values()]
    model.thresholds = at_median(model, x)
    got = model.predict_early(x, verbose=0)
    assert 10 <= (got.exits == 0).sum() <= 20
    every = model.predict(x, verbose=0)
    rows = np.stack([every[name] for name in model.exit_names])[got.exits, np.arange(30)]
    np.testing.assert_allclose(got.probabilities, rows, rtol=1e-5, atol=1e-6)


def test_a_stream_gives_the_same_answers_batch_by_batch(rng):
    model = BranchyModel(residual(), exits("stem", "late"))
    x = images(50, rng)
    model.thresholds = at_median(model, x)
    want = model.predict_early(x, batch_size=50, verbose=0)
    assert len(np.unique(want.exits)) == 3
    data = tf.data.Dataset.from_tensor_slices(x).batch(16)
    for given, options in ((x, {"batch_size": 16}), (data, {})):
        got = list(model.stream_early(given, **options))
        assert [len(part) for part in got] == [16, 16, 16, 2]
        for field in ("labels", "exits"):
            joined = np.concatenate([getattr(part, field) for part in got])
            np.testing.assert_array_equal(joined, getattr(want, field))
        joined = np.concatenate([part.probabilities for part in got])
        np.testing.assert_allclose(joined, want.probabilities, rtol=1e-5, atol=1e-6)
    assert len(list(model.stream_early(x, batch_size=8, steps=2))) == 2


def test_a_stream_is_refused_before_it_begins(given):
    x = rows((SURE, SURE, SURE))
    with pytest.raises(ValueError, match="no thresholds yet"):
        given.stream_early(x)


@pytest.mark.parametrize(("side", "expected"), [(8, 256), (256, 128), (512, 32)])
def test_a_batch_size_is_chosen_by_the_largest_activation(side, expected):
    inputs = keras.Input((side, side, 2))  # 4 bytes each: 512 kB at 256 x 256
    x = layers.MaxPooling2D(side, name="tap")(inputs)
    last = layers.Dense(3, activation="softmax")(layers.Flatten()(x))
    model = BranchyModel(keras.Model(inputs, last), {"tap": ExitBranch(3)})
    assert early_exit.good_batch_size(model) == expected


def test_a_progress_bar_is_shown_unless_it_is_switched_off(given, capsys):
    given.thresholds = [0.5, 0.5]
    x = np.zeros((8, 12), np.float32)
    given.predict_early(x, batch_size=4, verbose=1)
    assert "2/2" in capsys.readouterr().out
    given.predict_early(x, batch_size=4, verbose=0)
    assert capsys.readouterr().out == ""


def test_float64_and_integer_input_is_cast(given):
    given.thresholds = [0.5, 0.5]
    x = rows((SURE, SURE, SURE))
    for dtype in (np.float64, np.int32, np.float16):
        assert given.predict_early(x.astype(dtype), verbose=0).exits.tolist() == [0]
