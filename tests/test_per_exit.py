# SPDX-License-Identifier: Apache-2.0
"""compile, fit and evaluate where one label feeds every exit; NumPy says what is right."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import exits, gates, images, residual, sequential
from keras import layers

from keras_branchy import BranchyModel
from keras_branchy.by_exit import by_exit, metrics_by_exit

NAMES = ["exit_1", "exit_2", "exit_3"]
CROSSENTROPY = "sparse_categorical_crossentropy"


@pytest.fixture
def model():
    return BranchyModel(residual(), exits("stem", "join"))


@pytest.fixture
def data(rng):
    return images(48, rng), rng.integers(0, 4, 48)


def losses(model, x, y, weights=None):
    """Crossentropy of each exit in NumPy, weighted as Keras does: over the batch size."""
    weights = np.ones(len(y)) if weights is None else weights
    return [
        float((-np.log(p[np.arange(len(y)), y]) * weights).mean())
        for p in model.predict(x, verbose=0).values()
    ]


def evaluated(model, x, y, **options):
    return model.evaluate(x, y, batch_size=48, return_dict=True, verbose=0, **options)


@pytest.mark.parametrize(
    "loss",
    [
        CROSSENTROPY,
        keras.losses.SparseCategoricalCrossentropy(),
        [CROSSENTROPY] * 3,
        dict.fromkeys(NAMES, CROSSENTROPY),
    ],
    ids=["string", "object", "list", "dict"],
)
@pytest.mark.parametrize(
    "weights, factors",
    [
        (None, [1, 1, 1]),
        ([1.0, 0.5, 0.25], [1, 0.5, 0.25]),
        ({"exit_1": 1.0, "exit_2": 0.5, "exit_3": 0.25}, [1, 0.5, 0.25]),
    ],
    ids=["unweighted", "list", "dict"],
)
def test_the_loss_is_the_weighted_sum(model, data, loss, weights, factors):
    model.compile("sgd", loss, loss_weights=weights)
    got, want = evaluated(model, *data), losses(model, *data)
    # float32 means over 48 samples
    for name, value in zip(NAMES, want, strict=True):
        assert got[f"{name}_loss"] == pytest.approx(value, rel=1e-5)
    assert got["loss"] == pytest.approx(np.dot(factors, want), rel=1e-5)


def test_sample_weights_count_at_every_exit(model, data, rng):
    weights = rng.random(48)
    model.compile("sgd", CROSSENTROPY)
    got = evaluated(model, *data, sample_weight=weights)
    assert got["loss"] == pytest.approx(sum(losses(model, *data, weights)), rel=1e-5)


def test_class_weights_count_at_every_exit(model, data):
    x, y = data
    class_weight = {0: 0.0, 1: 2.0, 2: 0.5, 3: 1.0}
    model.compile(keras.optimizers.SGD(0.0), CROSSENTROPY)
    history = model.fit(x, y, batch_size=48, class_weight=class_weight, verbose=0).history
    want = losses(model, x, y, np.vectorize(class_weight.get)(y))
    assert history["loss"][0] == pytest.approx(sum(want), rel=1e-5)


def test_weighted_metrics_weigh(model, data, rng):
    x, y = data
    weights = rng.random(48)
    model.compile("sgd", CROSSENTROPY, weighted_metrics=["accuracy"], metrics=["accuracy"])
    got = evaluated(model, x, y, sample_weight=weights)
    for name, p in model.predict(x, verbose=0).items():
        right = p.argmax(-1) == y
        values = {got[key] for key in got if key.startswith(name) and "acc" in key}
        want = [right.mean(), np.average(right, weights=weights)]
        np.testing.assert_allclose(sorted(values), sorted(want), rtol=1e-5)


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_labels_and_weights_may_differ_by_exit(model, data, rng, kind):
    x, y = data
    labels = [y, (y + 1) % 4, (y + 2) % 4]
    weights = list(rng.random((3, 48)).astype(np.float32))
    model.compile("sgd", CROSSENTROPY, metrics=["accuracy"])
    want = [losses(model, x, labels[k], weights[k])[k] for k in range(3)]
    right = [(p.argmax(-1) == labels[k]).mean()
             for k, p in enumerate(model.predict(x, verbose=0).values())]  # fmt: skip
    given = [
        dict(zip(NAMES, parts, strict=True)) if kind is dict else kind(parts)
        for parts in (labels, weights)
    ]
    for got in (
        evaluated(model, x, given[0], sample_weight=given[1]),
        model.evaluate(as_dataset(x, *given), return_dict=True, verbose=0),
    ):
        assert [got[f"{n}_loss"] for n in NAMES] == pytest.approx(want, rel=1e-5)
        assert [got[f"{n}_accuracy"] for n in NAMES] == pytest.approx(right)
        assert got["loss"] == pytest.approx(sum(want), rel=1e-5)


def as_dataset(x, *rest):
    """One batch; tf.data takes a list for one array, so labels in it are tuples."""
    rest = [tuple(part) if isinstance(part, list) else part for part in rest]
    return tf.data.Dataset.from_tensors((x, *rest))


@pytest.mark.parametrize("distillation_weight", [0.0, 0.5])
def test_labels_and_weights_that_do_not_fit_the_exits(model, data, distillation_weight):
    x, y = data
    model.compile("sgd", CROSSENTROPY, distillation_weight=distillation_weight)
    with pytest.raises(ValueError, match=r"`y` as a list.*2 entries. Expected 3, for"):
        model.evaluate(x, [y, y], verbose=0)
    with pytest.raises(ValueError, match=r"`y` as a dict.*Received: \['exit_4'\]"):
        model.evaluate(x, dict.fromkeys([*NAMES, "exit_4"], y), verbose=0)
    with pytest.raises(ValueError, match=r"`sample_weight` as a list.*2 entries"):
        weights = (np.ones(48), np.ones(48))
        model.evaluate(as_dataset(x, y, weights), verbose=0)


def test_an_exit_without_a_loss_does_not_count(model, data):
    model.compile("sgd", {"exit_1": CROSSENTROPY, "exit_3": CROSSENTROPY})
    want = losses(model, *data)
    assert evaluated(model, *data)["loss"] == pytest.approx(want[0] + want[2], rel=1e-5)


@pytest.mark.parametrize(
    "metrics",
    [["accuracy"], "accuracy", [["accuracy"]] * 3, dict.fromkeys(NAMES, ["accuracy"])],
    ids=["list", "string", "lists", "dict"],
)
def test_metrics_given_once_hold_for_every_exit(model, data, metrics):
    x, y = data
    model.compile("sgd", CROSSENTROPY, metrics=metrics)
    got = evaluated(model, x, y)
    for name, p in model.predict(x, verbose=0).items():
        assert got[f"{name}_accuracy"] == pytest.approx((p.argmax(-1) == y).mean())


def test_each_exit_has_its_own_copy_of_a_metric(model, data):
    x, y = data
    metric = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")
    model.compile("sgd", CROSSENTROPY, metrics=[metric], weighted_metrics=[metric])
    got = evaluated(model, x, y)
    for name, p in model.predict(x, verbose=0).items():
        want = (np.argsort(p)[:, -2:] == y[:, None]).any(-1).mean()
        assert got[f"{name}_top2"] == pytest.approx(want)


def test_distillation_adds_softened_crossentropy_with_the_last_exit(model, data):
    x, y = data
    model.compile("sgd", CROSSENTROPY, distillation_weight=0.5, distillation_temperature=2)
    logs = [np.log(p) / 2 for p in model.predict(x, verbose=0).values()]
    soft = [np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in logs]
    added = [-(soft[2] * np.log(p)).sum(-1).mean() * 4 * 0.5 for p in soft[:2]]
    want = sum(losses(model, x, y)) + sum(added)
    assert evaluated(model, x, y)["loss"] == pytest.approx(want, rel=1e-5)


def test_distillation_does_not_pull_the_last_exit(data):
    x, y = data
    model = BranchyModel(sequential(), exits("conv", stop_gradient=True))
    model.compile(
        keras.optimizers.SGD(0.1), {"exit_1": CROSSENTROPY}, distillation_weight=1.0
    )
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][-1]
    before = [w.copy() for w in dense.get_weights()]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        model.fit(x, y, verbose=0)
    for old, new in zip(before, dense.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_compiled_model_compiles_again_from_its_config(model, data):
    model.compile("adam", CROSSENTROPY, loss_weights=[3.0, 2.0, 1.0], metrics=["accuracy"],
                  distillation_weight=0.25)  # fmt: skip
    again = BranchyModel(residual(), exits("stem", "join"))
    again.compile_from_config(model.get_compile_config())
    again.set_weights(model.get_weights())
    assert evaluated(again, *data) == pytest.approx(evaluated(model, *data))
    assert len(again.optimizer.variables) == 2 + 2 * len(model.trainable_variables)


@pytest.mark.long
def test_training_resumes_with_the_state_of_the_optimizer(data, tmp_path):
    """The same steps from a file as without one; a fresh Adam would take others."""
    x, y = data
    model = BranchyModel(residual(), exits("stem", "join"))
    model.compile(keras.optimizers.Adam(0.01), CROSSENTROPY,
                  loss_weights=[3.0, 2.0, 1.0], metrics=["accuracy"])  # fmt: skip
    model.fit(x, y, epochs=3, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(
        model.optimizer.variables, again.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(one, other)
    histories = [
        one.fit(x, y, epochs=2, verbose=0, shuffle=False).history for one in (model, again)
    ]
    assert histories[0].keys() == histories[1].keys()
    # the same float32 sums, perhaps in another order
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loss_weights": [1.0, 2.0]}, r"`loss_weights` as a list.*2 entries. Expected 3"),
        (
            {"loss_weights": 0.5},
            r"must be a list in exit order.*Expected for example \[1.0",
        ),
        ({"loss_weights": {"exit_4": 1.0}}, r"keyed by exit name. Received: \['exit_4'\]"),
        ({"loss": [CROSSENTROPY]}, r"`loss` as a list has one entry per exit"),
        ({"metrics": [["accuracy"], ["accuracy"]]}, r"`metrics` as a list.*2 entries"),
        ({"metrics": {"exit_0": "accuracy"}}, r"`metrics` as a dict is keyed by exit"),
        *(
            (
                {"distillation_weight": wrong},
                r"`distillation_weight` must be a finite float of at least 0. Received: "
                f"distillation_weight={wrong!r}",
            )
            for wrong in (-1, math.inf, math.nan, None)
        ),
        *(
            (
                {"distillation_temperature": wrong},
                r"`distillation_temperature` must be a finite float above 0. Received: "
                f"distillation_temperature={wrong!r}",
            )
            for wrong in (0, math.inf, math.nan, "3")
        ),
    ],
)
def test_arguments_that_do_not_fit(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.compile("sgd", **{"loss": CROSSENTROPY, **options})


def test_a_loss_by_name_needs_a_distribution():
    model = BranchyModel(residual(), gates("stem", "join"))
    with pytest.raises(
        ValueError, match=r"'exit_1' is no distribution.*Pass a loss object"
    ):
        model.compile("sgd", CROSSENTROPY)
    hinge = keras.losses.CategoricalHinge()
    model.compile("sgd", [hinge, hinge, "categorical_crossentropy"])


def test_lists_follow_the_order_of_the_exits(rng):
    """Sorted as Keras sorts them, exit_10 would come before exit_2."""
    inputs = x = keras.Input((5,))
    for index in range(12):
        x = layers.Dense(5, activation="tanh", name=f"layer_{index}")(x)
    backbone = keras.Model(inputs, layers.Dense(4, "softmax")(x))
    model = BranchyModel(backbone, exits(*(f"layer_{index}" for index in range(11))))
    names = [f"exit_{index:02d}" for index in range(1, 13)]
    assert model.exit_names == names
    x, y = rng.normal(size=(48, 5)).astype(np.float32), rng.integers(0, 4, 48)
    factors = [float(2**index) for index in range(12)]
    given = [keras.losses.SparseCategoricalCrossentropy() for _ in names]
    given[1] = keras.losses.SparseCategoricalCrossentropy(reduction="sum")
    model.compile("sgd", given, loss_weights=factors,
                  metrics=[[keras.metrics.MeanMetricWrapper(_numbered(k), name="number")]
                           for k in range(12)])  # fmt: skip
    want = losses(model, x, y)
    want[1] *= 48
    got = evaluated(model, x, y)
    # float32 sums of 12 terms of which the last is 2,048 times the first
    assert got["loss"] == pytest.approx(np.dot(factors, want), rel=1e-5)
    assert [got[f"{name}_number"] for name in names] == list(range(12))


def _numbered(number):
    @keras.saving.register_keras_serializable(package="test", name=f"number_{number}")
    def number_of_the_exit(y_true, y_pred):
        return keras.ops.full_like(y_pred[:, 0], float(number))

    return number_of_the_exit


@pytest.mark.parametrize("given", ["one", "list", "lists", "dict"])
def test_no_two_exits_share_a_metric(given):
    one = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2", dtype="float64")
    names = NAMES[:2]
    value = {"one": one, "list": [one, "accuracy", None], "lists": [[one], [one]],
             "dict": dict.fromkeys(names, one)}[given]  # fmt: skip
    made = metrics_by_exit("metrics", value, names)
    copies = [made[name][0] for name in names]
    assert len({id(metric) for metric in (one, *copies)}) == 3
    assert all(metric.get_config() == one.get_config() for metric in copies)
    assert given != "list" or made["exit_1"][1:] == ["accuracy"]


def test_a_dict_may_leave_exits_out(model, data):
    model.compile("sgd", CROSSENTROPY, metrics={"exit_2": "accuracy"})
    got = evaluated(model, *data)
    assert {name for name in got if "accuracy" in name} == {"exit_2_accuracy"}
    assert metrics_by_exit("metrics", None, NAMES) is None
    assert by_exit("loss", None, NAMES) is None
