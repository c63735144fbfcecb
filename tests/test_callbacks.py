# SPDX-License-Identifier: Apache-2.0
"""ExitMonitor logs what staged inference would do, for whoever reads the logs."""

import csv
import math

import keras
import numpy as np
import pytest
from cli_workflow import backbone, samples

from keras_branchy import BranchyModel, ExitBranch, cost
from keras_branchy.callbacks import ExitMonitor

X, Y = samples(300, 3)
NAMES = ("exit_1", "exit_2", "exit_3")


def model_with_exits(metrics=None, **options):
    exits = {
        "early": ExitBranch(3, criterion="margin"),
        "late": ExitBranch(3, layers=[keras.layers.GlobalAveragePooling2D()]),
    }
    model = BranchyModel(backbone(), exits, **options)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=metrics)
    return model


def fit(model, *callbacks, epochs=1):
    return model.fit(
        X, Y, epochs=epochs, verbose=0, callbacks=list(callbacks), batch_size=100
    ).history


def test_the_logs_are_what_staged_inference_does():
    model = model_with_exits(thresholds=[0.3, 1.09])
    logs = {key: values[-1] for key, values in fit(model, ExitMonitor(X, Y)).items()}
    early = model.predict_early(X, verbose=0)
    right = early.labels == Y
    assert logs["val_early_exit_accuracy"] == pytest.approx(right.mean())
    shares = [float(np.mean(early.exits == k)) for k in range(3)]
    assert len({*shares}) == 3 and min(shares) > 0
    every = model.predict(X, verbose=0)
    for index, name in enumerate(NAMES):
        assert logs[f"val_{name}_share"] == pytest.approx(shares[index])
        there = right[early.exits == index].mean()
        assert logs[f"val_{name}_accuracy_where_taken"] == pytest.approx(there)
        alone = (every[name].argmax(-1) == Y).mean()
        assert logs[f"val_{name}_accuracy"] == pytest.approx(alone)
    rows = cost.stage_costs(model)
    whole = rows[-1].trunk_macs_to_leave
    heads = cost.expected_macs(rows, shares) / whole
    trunk = cost.expected_macs(rows, shares, heads=False) / whole
    assert logs["val_early_exit_cost"] == pytest.approx(heads)
    assert logs["val_early_exit_trunk_cost"] == pytest.approx(trunk)


def test_patience_counts():
    model = model_with_exits(thresholds=[None, None], patience=2)
    logs = fit(model, ExitMonitor(X, Y))
    early = model.predict_early(X, verbose=0)
    assert logs["val_exit_1_share"] == [0.0]
    assert logs["val_exit_2_share"] == [pytest.approx(np.mean(early.exits == 1))]
    assert math.isnan(logs["val_exit_1_accuracy_where_taken"][0])


def test_a_target_is_met_in_every_epoch_and_leaves_the_model_alone():
    model = model_with_exits()
    logs = fit(model, ExitMonitor(X, Y, exit_shares=[0.5, 0.25]), epochs=3)
    assert logs["val_exit_1_share"] == pytest.approx([0.5] * 3)
    assert logs["val_exit_2_share"] == pytest.approx([0.25] * 3)
    assert len(set(logs["val_early_exit_accuracy"])) > 1
    assert model.thresholds is None


def test_an_accuracy_drop_is_kept_in_every_epoch():
    model = model_with_exits()
    logs = fit(model, ExitMonitor(X, Y, max_accuracy_drop=0.02), epochs=2)
    last = np.array(logs["val_exit_3_accuracy"])
    assert (np.array(logs["val_early_exit_accuracy"]) >= last - 0.02 - 1e-9).all()


def test_thresholds_may_be_given():
    model = model_with_exits(thresholds=[0.3, 1.0])
    logs = fit(model, ExitMonitor(X, Y, thresholds=[0.0, None]))
    assert logs["val_exit_1_share"] == [1.0] and model.thresholds == [0.3, 1.0]


def test_what_keras_logs_itself_is_left_as_it_is():
    model = model_with_exits(metrics=["accuracy"])
    monitor = ExitMonitor(X[:100], Y[:100], exit_shares=[0.5, 0.2])
    history = model.fit(
        *(X, Y), validation_data=(X, Y), epochs=1, verbose=0, callbacks=[monitor]
    ).history
    every = model.predict(X, verbose=0)
    for name in NAMES:
        keras_own = (every[name].argmax(-1) == Y).mean()
        assert history[f"val_{name}_accuracy"] == [pytest.approx(keras_own)]


def test_callbacks_behind_it_see_the_keys(tmp_path):
    model = model_with_exits()
    monitor = ExitMonitor(X, Y, exit_shares=[0.5, 0.2])
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras",
        "val_early_exit_accuracy",
        save_best_only=True,
        mode="max",
    )
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, monitor, best, log, epochs=2)
    with open(tmp_path / "log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = [key for key in history if key.startswith("val_")]
    assert len(keys) == 3 + 3 * 3
    for key in keys:
        assert [float(row[key]) for row in rows] == pytest.approx(history[key], nan_ok=True)
    assert (tmp_path / "best.keras").exists()


def logged(folder):
    """Values of every tag that TensorBoard would show, by step."""
    import tensorflow as tf

    found = {}
    for path in folder.glob("validation/events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.HasField("tensor") and value.tensor.dtype == tf.float32:
                    rows = found.setdefault(value.tag, {})
                    rows[event.step] = float(tf.make_ndarray(value.tensor))
    return {tag: [rows[step] for step in sorted(rows)] for tag, rows in found.items()}


def test_tensorboard_gets_the_values(tmp_path):
    monitor = ExitMonitor(X, Y, exit_shares=[0.5, 0.2])
    board = keras.callbacks.TensorBoard(tmp_path)
    history = fit(model_with_exits(), monitor, board, epochs=2)
    found = logged(tmp_path)
    keys = [key for key in history if key.startswith("val_")]
    assert len(keys) == 3 + 3 * 3
    for key in keys:
        # TensorBoard files `val_` keys in a folder of their own, in float32.
        given = found[f"epoch_{key.removeprefix('val_')}"]
        assert given == pytest.approx(history[key], rel=1e-6, nan_ok=True), key


def test_it_takes_one_pass_per_epoch(monkeypatch):
    from keras_branchy import callbacks

    passes = []
    score = callbacks.all_logits

    def counted(*args, **kwargs):
        passes.append(1)
        return score(*args, **kwargs)

    monkeypatch.setattr(callbacks, "all_logits", counted)
    fit(model_with_exits(), ExitMonitor(X, Y, exit_shares=[0.5, 0.2]), epochs=3)
    assert len(passes) == 3


def test_a_dataset_and_another_prefix():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(64)
    model = model_with_exits(thresholds=[0.3, 1.0])
    first = fit(model, ExitMonitor(data, prefix="held_"))
    early = model.predict_early(X, verbose=0)
    assert first["held_exit_1_share"] == [pytest.approx(np.mean(early.exits == 0))]
    assert not any(key.startswith("val_") for key in first)


@keras.saving.register_keras_serializable(package="test_callbacks")
class Unknown(keras.layers.Layer):
    def call(self, x):
        return x * 1.0


def test_costs_that_cannot_be_counted_are_left_out():
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(2, 3, name="early")(x)
    x = keras.layers.Flatten()(Unknown()(x))
    plain = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    model = BranchyModel(plain, {"early": ExitBranch(3)})
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.warns(UserWarning, match="logs no expected cost: The MACs of 'unknown"):
        logs = fit(model, ExitMonitor(X, Y, exit_shares=[0.5]))
    assert logs["val_exit_1_share"] == [pytest.approx(0.5, abs=0.02)]
    assert "val_early_exit_cost" not in logs


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: ExitMonitor(X, Y, thresholds=[1.0, 1.0], exit_shares=[0.5, 0.2]),
            ValueError,
            "`thresholds`, or one target. Received: thresholds=.*Leave out all but one",
        ),
        (
            lambda: ExitMonitor(X, Y, max_accuracy_drop=0.1, exit_shares=[0.5, 0.2]),
            ValueError,
            "max_accuracy_drop=0.1",
        ),
        (
            lambda: fit(model_with_exits(), ExitMonitor(X, Y)),
            ValueError,
            r"needs to know who leaves.*exit_shares=\[0.5, 0.0\]",
        ),
        (
            lambda: fit(model_with_exits(), ExitMonitor(X, Y, thresholds=[1.0])),
            ValueError,
            "Received: 1 entries",
        ),
        (
            lambda: fit(model_with_exits(), ExitMonitor(X, exit_shares=[0.5, 0.2])),
            ValueError,
            "compares answers with labels. Received: ndarray without labels",
        ),
        (
            lambda: fit(model_with_exits(), ExitMonitor(X, Y, max_accuracy_drop=5)),
            ValueError,
            "`max_accuracy_drop` is a fraction between 0 and 1. Received: 5",
        ),
        (
            lambda: fit(model_with_exits(), ExitMonitor((X, Y), exit_shares=[0.5, 0.2])),
            ValueError,
            "Received: 2 arrays for a batch.*and labels apart, as y=",
        ),
    ],
)
def test_what_cannot_be_monitored_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_gates_that_are_not_fitted_are_refused_before_an_epoch():
    exits = {"early": ExitBranch(3, criterion="learned")}
    model = BranchyModel(backbone(), exits)
    model.compile("adam", "sparse_categorical_crossentropy")
    before = [weight.numpy() for weight in model.weights]
    with pytest.raises(ValueError, match=r"gates are not fitted. Received: .*'learned'"):
        fit(model, ExitMonitor(X, Y, max_accuracy_drop=0.02))
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight)


def test_another_model_is_refused():
    plain = backbone()
    plain.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(TypeError, match="exits of a BranchyModel. Received: .* Functional"):
        plain.fit(X, Y, verbose=0, callbacks=[ExitMonitor(X, Y)])


def test_an_outcome_needs_samples():
    from keras_branchy.outcome import outcome

    nobody = [np.zeros((0, 3))] * 3
    with pytest.raises(ValueError, match="Received: 0 samples"):
        outcome(model_with_exits(), nobody, np.zeros(0, int), [0.5, 0.5])
