# SPDX-License-Identifier: Apache-2.0
"""What Keras brings to every model must work for one with exits: data, callbacks, files."""

import csv
import itertools
import shutil

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from cases import exits
from keras import layers

from keras_branchy import BranchyModel

CROSSENTROPY = "sparse_categorical_crossentropy"
NAMES = ["exit_1", "exit_2", "exit_3"]


def backbone(depth=2):
    x = inputs = keras.Input((5,))
    for index in range(depth):
        x = layers.Dense(6, activation="tanh", name=f"tap_{index}")(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="scores")(x))


def fresh(optimizer="sgd", loss=CROSSENTROPY, **options):
    """A compiled model that is the same at every call."""
    keras.utils.set_random_seed(1)
    model = BranchyModel(backbone(), exits("tap_0", "tap_1"))
    model.compile(optimizer, loss, **options)
    return model


def samples(count, rng):
    return rng.normal(size=(count, 5)).astype(np.float32), rng.integers(0, 4, count)


@pytest.fixture
def data(rng):
    return samples(48, rng)


def losses(model, x, y, weights=1.0):
    """Crossentropy of each exit in NumPy."""
    rows = np.arange(len(y))
    outputs = model.predict(x, verbose=0).values()
    return [float((-np.log(p[rows, y]) * weights).mean()) for p in outputs]


def always_answer_0(classifier, logit):
    kernel, bias = classifier.get_weights()
    classifier.set_weights([0 * kernel, logit * np.eye(1, len(bias))[0]])


def assert_same_weights(one, other, **tolerance):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


# ---- Data ----------------------------------------------------------------------------
def as_dataset(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(16)


def as_generator(*arrays):
    for start in itertools.cycle(range(0, 48, 16)):
        yield tuple(array[start : start + 16] for array in arrays)


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays):
        super().__init__()
        self.batches = list(itertools.islice(as_generator(*arrays), 3))

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


@pytest.mark.parametrize("kind", [as_dataset, as_generator, Batches])
def test_data_of_every_kind_trains_alike(kind, data, rng):
    x, y = data
    weights = rng.random(48).astype(np.float32)
    model, other = fresh(), fresh()
    model.fit(x, y, sample_weight=weights, batch_size=16, shuffle=False, verbose=0)
    other.fit(kind(x, y, weights), steps_per_epoch=3, shuffle=False, verbose=0)
    # the same batches; float32 sums may be taken in another order
    assert_same_weights(model, other, rtol=1e-5, atol=1e-7)


def test_class_weights_count_on_a_dataset(data):
    x, y = data
    class_weight = {0: 0.0, 1: 2.0, 2: 0.5, 3: 1.0}
    model = fresh(keras.optimizers.SGD(0.0))
    history = model.fit(as_dataset(x, y), class_weight=class_weight, verbose=0).history
    want = losses(model, x, y, np.vectorize(class_weight.get)(y))
    assert history["loss"] == pytest.approx([sum(want)], rel=1e-5)


def test_class_weights_need_one_label_for_all_exits(data):
    x, y = data
    with pytest.raises(ValueError, match="`class_weight` is only supported"):
        fresh().fit(x, dict.fromkeys(NAMES, y), class_weight={0: 2.0}, verbose=0)


def test_sample_weights_may_differ_by_exit(data, rng):
    x, y = data
    weights = {name: rng.random(48) for name in NAMES}
    model = fresh()
    got = model.evaluate(
        *(x, dict.fromkeys(NAMES, y)),
        sample_weight=weights,
        batch_size=48,
        return_dict=True,
        verbose=0,
    )
    for index, name in enumerate(NAMES):
        want = losses(model, x, y, weights[name])[index]
        assert got[f"{name}_loss"] == pytest.approx(want, rel=1e-5)


def test_a_validation_split_is_the_end_of_the_data(data):
    x, y = data
    model = fresh(keras.optimizers.SGD(0.0), metrics=["accuracy"])
    history = model.fit(x, y, validation_split=0.25, verbose=0).history
    assert history["val_loss"] == pytest.approx([sum(losses(model, x[36:], y[36:]))])
    for name, p in model.predict(x[36:], verbose=0).items():
        want = (p.argmax(-1) == y[36:]).mean()
        assert history[f"val_{name}_accuracy"] == pytest.approx([want])


@pytest.mark.parametrize(
    "how",
    [{"run_eagerly": True}, pytest.param({"jit_compile": True}, marks=pytest.mark.long)],
    ids=["eager", "xla"],
)
def test_eager_and_xla_training_is_the_same(how, data):
    x, y = data
    options = {"distillation_weight": 0.5, "metrics": ["accuracy"]}
    model, other = fresh(**options), fresh(**options, **how)
    for one in (model, other):
        one.fit(x, y, batch_size=24, shuffle=False, verbose=0)
    # XLA fuses, and so rounds in other places
    assert_same_weights(model, other, rtol=1e-4, atol=1e-6)


# ---- Losses and their weights ----------------------------------------------------------
@pytest.mark.parametrize(
    "loss",
    [
        [CROSSENTROPY, None, CROSSENTROPY],
        {"exit_3": CROSSENTROPY, "exit_1": CROSSENTROPY},
        {"exit_1": CROSSENTROPY, "exit_2": None, "exit_3": CROSSENTROPY},
    ],
    ids=["list", "dict", "dict with None"],
)
@pytest.mark.parametrize(
    "weights",
    [[1.0, 9.0, 0.5], {"exit_1": 1.0, "exit_3": 0.5}],
    ids=["list", "dict"],
)
def test_an_exit_without_a_loss_needs_no_weight(data, loss, weights):
    model = fresh("sgd", loss, loss_weights=weights)
    first, _, last = losses(model, *data)
    total = model.evaluate(*data, batch_size=48, verbose=0, return_dict=True)["loss"]
    assert total == pytest.approx(first + 0.5 * last, rel=1e-5)


@pytest.mark.parametrize(
    "loss, weights",
    [
        (CROSSENTROPY, {"exit_1": 1.0, "exit_2": 1.0}),
        # as many weights as losses, but not of the same exits: Keras pairs them up
        (
            {"exit_1": CROSSENTROPY, "exit_3": CROSSENTROPY},
            {"exit_1": 1.0, "exit_2": 0.5},
        ),
    ],
)
def test_a_loss_without_a_weight_is_refused(loss, weights):
    with pytest.raises(ValueError, match=r"every exit that has a loss.*\['exit_3'\]"):
        fresh("sgd", loss, loss_weights=weights)


def test_a_saturated_exit_still_has_its_whole_loss(data):
    """Probabilities alone would be clipped at 1e-7, and give no gradient."""
    model = fresh()
    for classifier in (model.branches[0].classifier, model.get_layer("scores")):
        always_answer_0(classifier, 600)
    got = model.evaluate(data[0], np.ones(48), verbose=0, return_dict=True)
    assert got["exit_1_loss"] == pytest.approx(600) == got["exit_3_loss"]


# ---- Callbacks -------------------------------------------------------------------------
@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """One fit with Keras' callbacks watching single exits: the model, what it left."""
    folder = tmp_path_factory.mktemp("watched")
    rng = np.random.default_rng(5)
    model = fresh(keras.optimizers.SGD(0.3), metrics=["accuracy"])
    callbacks = [
        keras.callbacks.ModelCheckpoint(
            folder / "best.keras", "val_exit_1_loss", mode="min", save_best_only=True
        ),
        keras.callbacks.ReduceLROnPlateau(
            "val_exit_2_loss", mode="min", factor=0.5, patience=1, min_delta=1e9
        ),
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.TensorBoard(folder / "board"),
    ]
    train, valid = samples(48, rng), samples(48, rng)
    # In one batch: Keras averages the loss of an exit over batches, whatever their sizes.
    options = {"validation_data": valid, "validation_batch_size": 48, "verbose": 0}
    history = model.fit(*train, epochs=5, callbacks=callbacks, **options).history
    return folder, history, valid


def test_a_checkpoint_keeps_the_best_of_one_exit(watched):
    folder, history, (x, y) = watched
    best = keras.models.load_model(folder / "best.keras")
    assert isinstance(best, BranchyModel)
    assert losses(best, x, y)[0] == pytest.approx(min(history["val_exit_1_loss"]), rel=1e-5)


def test_the_learning_rate_falls_when_one_exit_stands_still(watched):
    rates = watched[1]["learning_rate"]
    assert rates == pytest.approx([0.3, 0.3, 0.15, 0.075, 0.0375])


def test_logs_hold_every_exit(watched):
    folder, history, _ = watched
    with (folder / "log.csv").open() as log:
        rows = list(csv.DictReader(log))
    for key in ("exit_1_loss", "exit_2_accuracy", "val_exit_3_accuracy"):
        assert [float(row[key]) for row in rows] == pytest.approx(history[key])


def test_tensorboard_shows_every_exit(watched):
    folder, history, _ = watched
    shown = {}
    for path in (folder / "board" / "train").glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                shown.setdefault(value.tag, []).append(tf.make_ndarray(value.tensor))
    for name in NAMES:
        assert shown[f"epoch_{name}_loss"] == pytest.approx(history[f"{name}_loss"])


def test_training_stops_when_one_exit_no_longer_improves(data):
    model = fresh(keras.optimizers.SGD(0.0), metrics=["accuracy"])
    stop = keras.callbacks.EarlyStopping("exit_1_accuracy", mode="max", patience=2)
    history = model.fit(*data, epochs=9, callbacks=[stop], verbose=0).history
    assert len(history["loss"]) == 1 + 2


def test_keras_cannot_guess_the_direction_of_one_exits_metric(data):
    """Why README gives `mode=`; when this fails, README may leave it out."""
    stop = keras.callbacks.EarlyStopping("exit_1_accuracy")
    with pytest.raises(ValueError, match="automatically determine whether"):
        fresh(metrics=["accuracy"]).fit(*data, callbacks=[stop], verbose=0)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.long
def test_interrupted_training_resumes_where_it_was(data, tmp_path):
    whole, options = fresh("adam"), {"epochs": 4, "shuffle": False, "verbose": 0}
    whole.fit(*data, **options)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fresh("adam").fit(*data, **options, callbacks=[backup, Interrupt()])
    resumed = fresh("adam")
    history = resumed.fit(*data, **options, callbacks=[backup]).history
    assert len(history["loss"]) == 2
    assert_same_weights(whole, resumed, rtol=1e-5, atol=1e-7)


# ---- Files and precision ---------------------------------------------------------------
def mixed(**options):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return fresh("adam", **options)
    finally:
        keras.config.set_dtype_policy("float32")


def distilled():
    return fresh("adam", distillation_weight=0.5, distillation_temperature=2.0)


def through_a_model_file(model, make, path):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


def through_a_weights_file(model, make, path):
    model.save_weights(path / "model.weights.h5")
    again = make()
    # Keras loads the state of an optimizer that has its variables.
    again.optimizer.build(again.trainable_variables)
    again.load_weights(path / "model.weights.h5")
    return again


@pytest.mark.parametrize("way", [through_a_model_file, through_a_weights_file])
@pytest.mark.parametrize("make", [mixed, pytest.param(distilled, marks=pytest.mark.long)])
def test_training_goes_on_from_a_file_as_it_would_have(make, way, data, tmp_path):
    x, y = data
    options = {"shuffle": False, "verbose": 0}
    model = make()
    model.fit(x, y, epochs=2, **options)
    again = way(model, make, tmp_path)
    for one in (model, again):
        one.fit(x, y, epochs=2, **options)
    assert int(again.optimizer.iterations) == int(model.optimizer.iterations) == 8
    assert_same_weights(model, again, rtol=1e-5, atol=1e-7)


def test_distillation_is_in_the_file(data, tmp_path):
    model = distilled()
    model.fit(*data, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    total, *each = again.evaluate(*data, verbose=0)
    assert total > sum(each) + 0.1  # what the last exit teaches
    assert total == pytest.approx(model.evaluate(*data, verbose=0)[0])


def test_mixed_precision_scales_the_loss_and_keeps_exits_in_float32(data):
    model = mixed()
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.fit(*data, verbose=0)
    outputs = model(data[0])
    assert [str(outputs[name].dtype.name) for name in NAMES[:2]] == ["float32"] * 2
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


def softened(p, temperature):
    powers = np.maximum(p.astype(np.float64), 1e-30) ** (1 / temperature)
    return powers / powers.sum(-1, keepdims=True)


def distillation_loss(model, x, temperature=3.0):
    """In NumPy, from the probabilities that the model gives."""
    *early, last = (softened(p, temperature) for p in model.predict(x, verbose=0).values())
    each = [-(last * np.log(p)).sum(-1).mean() for p in early]
    return temperature**2 * sum(each)


@pytest.mark.parametrize("make, logit", [(mixed, None), (fresh, 300)])
def test_distillation_is_computed_in_float32(make, logit, data):
    """Also where small probabilities are 0 in float16, or even in float32."""
    model = make(distillation_weight=1.0)
    if logit is not None:
        always_answer_0(model.branches[0].classifier, logit)
        always_answer_0(model.get_layer("scores"), logit)
    x, y = data[0], data[1] if logit is None else 0 * data[1]
    total, *each = model.evaluate(x, y, batch_size=48, verbose=0)
    # float32 sums of 48 samples; the softmax of float16 alone would be off by 5e-4
    assert total - sum(each) == pytest.approx(distillation_loss(model, x), rel=2e-5)
    before = losses(model, x, y)[1]
    model.fit(x, y, epochs=3, verbose=0)
    assert losses(model, x, y)[1] < before


# ---- Looking at a model, and searching for one -------------------------------------------
def test_summary_lists_every_exit_and_counts_its_parameters():
    model, lines = fresh(), []
    model.summary(print_fn=lines.append, line_length=100)
    text = "\n".join(lines)
    rows = {line.split()[1]: line for line in text.splitlines() if "exit_" in line}
    # 6 features into 4 classes
    assert all("ExitBranch" in rows[n] and " 28 " in rows[n] for n in NAMES[:2])
    # 5 -> 6 -> 6 -> 4, and the two exits
    assert f"Total params: {36 + 42 + 28 + 2 * 28}" in text


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
def test_plot_model_draws_the_exits(tmp_path):
    keras.utils.plot_model(fresh(), tmp_path / "model.png", show_layer_names=True)
    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")


def test_the_drawing_names_every_exit(monkeypatch):
    model = fresh()
    # Only the drawing itself needs graphviz' program.
    monkeypatch.setattr("pydot.Dot.create", lambda *args, **kwargs: b"")
    dot = keras.utils.model_to_dot(model, show_layer_names=True).to_string()
    assert all(branch.name in dot for branch in model.branches)


# KerasTuner 1.4 calls methods of `threading` by their old names, and loads weights before
# the optimizer has variables.
@pytest.mark.filterwarnings(
    "ignore:(currentThread|getName).. is deprecated:DeprecationWarning"
)
@pytest.mark.filterwarnings("ignore:[^$]*Skipping variable loading for optimizer")
def test_keras_tuner_searches_places_and_weights(data, tmp_path):
    def build(hyper):
        tap = hyper.Choice("tap", ["tap_0", "tap_1"])
        weight = hyper.Float("weight", 0.1, 1.0)
        model = BranchyModel(backbone(), exits(tap))
        model.compile("adam", CROSSENTROPY, [weight, 1.0], metrics=["accuracy"])
        return model

    tuner = keras_tuner.RandomSearch(
        build,
        keras_tuner.Objective("val_exit_1_accuracy", "max"),
        max_trials=2,
        seed=3,
        directory=tmp_path,
        project_name="places",
    )
    tuner.search(*data, validation_split=0.5, verbose=0)
    best = tuner.get_best_hyperparameters()[0]
    model = tuner.get_best_models()[0]
    assert isinstance(model, BranchyModel)
    tap = model.branches[0].input._keras_history.operation.name
    assert (tap, len(tuner.oracle.trials)) == (best.get("tap"), 2)
