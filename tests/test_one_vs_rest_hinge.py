# SPDX-License-Identifier: Apache-2.0
"""OneVsRestHinge against its formula in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import gates, images, residual

from keras_branchy import BranchyModel, OneVsRestHinge

CLASSES = 4


@pytest.fixture
def data(rng):
    """Labels and decision values, some beyond their margin."""
    return rng.integers(0, CLASSES, 30), 2 * rng.normal(size=(30, CLASSES))


def hinge(labels, values):
    """One value per sample: one classifier per class, one after another."""
    total = np.zeros(len(labels))
    for number in range(values.shape[1]):
        side = np.where(labels == number, 1.0, -1.0)
        total += np.maximum(0, 1 - side * values[:, number])
    return total / values.shape[1]


def test_the_loss_is_the_formula(data):
    labels, values = data
    given = float(OneVsRestHinge()(labels, values))
    assert given == pytest.approx(hinge(labels, values).mean(), rel=1e-6)
    each = OneVsRestHinge(reduction="none")(labels, values)
    np.testing.assert_allclose(each, hinge(labels, values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32"])
@pytest.mark.parametrize("shape", ["flat", "column", "one-hot"])
def test_labels_come_in_every_form(dtype, shape, data):
    labels, values = data
    forms = {"flat": labels, "column": labels[:, None], "one-hot": np.eye(4)[labels]}
    given = float(OneVsRestHinge()(forms[shape].astype(dtype), values))
    assert given == pytest.approx(hinge(labels, values).mean(), rel=1e-6)


def test_samples_are_weighed(data, rng):
    labels, values = data
    weights = rng.random(30)
    given = float(OneVsRestHinge()(labels, values, sample_weight=weights))
    assert given == pytest.approx((weights * hinge(labels, values)).mean(), rel=1e-6)


def test_it_is_not_categorical_hinge(data):
    labels, values = data
    other = keras.losses.CategoricalHinge()(np.eye(4)[labels], values)
    assert abs(float(OneVsRestHinge()(labels, values)) - float(other)) > 0.1


def test_the_gradient_is_that_of_the_formula(data):
    labels, values = data
    x = tf.constant(values, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = OneVsRestHinge()(labels, x)
    side = 2 * np.eye(4)[labels] - 1
    expected = np.where(side * values < 1, -side, 0) / values.size
    np.testing.assert_allclose(tape.gradient(loss, x), expected, atol=1e-8)


@pytest.mark.parametrize("shape", [(30, 3), (30, 4, 1), ()])
def test_labels_of_another_shape_are_refused(shape, data):
    with pytest.raises(
        ValueError, match=r"one label per sample, .*\[B, 4\]. Received: y_t"
    ):
        OneVsRestHinge()(np.zeros(shape), data[1])


@pytest.mark.parametrize("shape", [(30,), (30, 4, 1)])
def test_values_that_are_no_rows_are_refused(shape, data):
    with pytest.raises(ValueError, match=r"decision values per sample, \[B, classes\]"):
        OneVsRestHinge()(data[0], np.zeros(shape))


def compiled():
    model = BranchyModel(residual(), gates("stem", "join"))
    hinge = OneVsRestHinge()
    losses = [hinge, hinge, "sparse_categorical_crossentropy"]
    model.compile(keras.optimizers.Adam(0.01), losses)
    return model


def test_gates_train_by_it_and_a_file_goes_on(rng, tmp_path):
    model, x, y = compiled(), images(48, rng), rng.integers(0, CLASSES, 48)
    history = model.fit(x, y, epochs=6, batch_size=16, verbose=0).history
    assert history["exit_1_loss"][-1] < history["exit_1_loss"][0]
    logs = model.evaluate(x, y, batch_size=48, return_dict=True, verbose=0)
    outputs = model.predict(x, verbose=0)
    for name in ("exit_1", "exit_2"):
        expected = hinge(y, outputs[name].astype(float)).mean()
        assert logs[f"{name}_loss"] == pytest.approx(expected, rel=1e-5)

    model.save(tmp_path / "gates.keras")
    again = keras.models.load_model(tmp_path / "gates.keras")
    reloaded = again.evaluate(x, y, batch_size=48, return_dict=True, verbose=0)
    assert reloaded == pytest.approx(logs)
    for one in (model, again):
        one.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_config_keeps_name_and_reduction():
    loss = OneVsRestHinge(name="gate", reduction="sum")
    again = OneVsRestHinge.from_config(loss.get_config())
    assert (again.name, again.reduction) == ("gate", "sum")
    assert again.get_config() == loss.get_config()


def test_a_loss_by_name_on_a_gate_points_to_it():
    model = BranchyModel(residual(), gates("stem"))
    with pytest.raises(ValueError, match=r"loss=\{'exit_1': keras_branchy.OneVsRestHinge"):
        model.compile("adam", "categorical_hinge")
