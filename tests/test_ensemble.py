# SPDX-License-Identifier: Apache-2.0
"""Exits that answer together: the mean of logits, carried from stage to stage."""

import keras
import numpy as np
import pytest
from cases import exits, gates, images, residual, sequential
from exports import exported
from keras import layers

from keras_branchy import BranchyModel, ExitBranch, StageRunner, cost
from keras_branchy.scoring import all_logits


@pytest.fixture
def model(rng):
    model = BranchyModel(residual(), exits("stem", "inside", "join"), ensemble=True)
    for weight in model.trainable_weights:
        # narrow, or products of probabilities run out of float32
        weight.assign(rng.normal(0, 0.2, weight.shape))
    return model


def own_logits(model, x):
    """The logits of each exit by itself."""
    plain = BranchyModel.from_config({**model.get_config(), "ensemble": False})
    plain.set_weights(model.get_weights())
    return all_logits(plain, x, verbose=0)[0]


def geometric_mean(distributions):
    """The normalised geometric mean of distributions, written with products."""
    product = np.prod(np.stack(distributions, dtype=np.float64), axis=0)
    product **= 1 / len(distributions)
    return product / product.sum(-1, keepdims=True)


def test_an_exit_answers_by_the_geometric_mean_of_those_so_far(model, rng):
    x = images(40, rng)
    outputs = list(model.predict(x, verbose=0).values())  # each by itself
    logits, _ = all_logits(model, x, verbose=0)
    for index, own in enumerate(own_logits(model, x)):
        p = np.exp(logits[index] - logits[index].max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        want = geometric_mean(outputs[: index + 1])
        np.testing.assert_allclose(p, want, rtol=1e-4, atol=1e-6)
        assert index == 0 or not np.allclose(own, logits[index], atol=0.1)
    model.thresholds = [None, None, None]
    answer = model.predict_early(x, verbose=0)
    want = geometric_mean(outputs)
    np.testing.assert_array_equal(answer.labels, want.argmax(-1))
    np.testing.assert_allclose(answer.probabilities, want, rtol=1e-4, atol=1e-6)
    entropy = -(want * np.log(want)).sum(-1)
    np.testing.assert_allclose(answer.scores, entropy, rtol=1e-4, atol=1e-5)


def test_stages_hand_on_the_running_sum_and_nothing_else(model, rng):
    x = images(5, rng)
    sums = np.cumsum(own_logits(model, x), axis=0)
    name = model.inputs[0]._keras_history.operation.name
    tensors = {name: keras.ops.convert_to_tensor(x)}
    for index, stage in enumerate(model.stages()):
        assert stage.logits_sum == (f"exit_{index + 1}_sum" if index < 3 else None)
        assert [n for n in stage.input_names if n.endswith("_sum")] == (
            [f"exit_{index}_sum"] if index else []
        )
        made = stage(tensors)
        want = sums[index] / (index + 1)
        np.testing.assert_allclose(made.pop("logits"), want, rtol=1e-5, atol=1e-6)
        if index < 3:
            np.testing.assert_allclose(
                made[stage.logits_sum], sums[index], rtol=1e-5, atol=1e-6
            )
        tensors = {n: {**tensors, **made}[n] for n in stage.live}
    kinds = {
        type(layer)
        for stage in model.stages()
        for layer in stage.model.layers
        if layer.name.endswith(("_sum", "_scaled"))
    }
    assert kinds == {keras.layers.Add, keras.layers.InputLayer, keras.layers.Rescaling}


def test_a_name_that_is_taken_is_not_taken_twice(rng):
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(3, 3, name="exit_1_sum")(inputs)
    x = layers.Conv2D(3, 3, name="exit_2_sum")(x)
    x = layers.GlobalAveragePooling2D(name="exit_2_scaled")(x)
    backbone = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    model = BranchyModel(backbone, exits("exit_1_sum"), ensemble=True)
    assert model.stages()[0].live == ("exit_1_sum", "exit_1_sum_out")
    x = images(6, rng)
    logits, _ = all_logits(model, x, verbose=0)
    np.testing.assert_allclose(logits[1], np.mean(own_logits(model, x), 0), atol=1e-5)


def test_temperatures_divide_the_mean(model, rng):
    x = images(12, rng)
    before, _ = all_logits(model, x, verbose=0)
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    model.temperatures = [2.0, 1.0, 0.5, 3.0]
    after, _ = all_logits(model, x, verbose=0)
    for values, want, temperature in zip(after, before, model.temperatures, strict=True):
        np.testing.assert_allclose(values, want / temperature, rtol=1e-5, atol=1e-6)
    # no layer of the model was called anew, and at T = 1 exit 1 is what it was
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes


def test_temperatures_are_fitted_to_the_mean(model, rng):
    x = images(300, rng)
    logits, _ = all_logits(model, x, verbose=0)
    p = np.exp(logits[1]) / np.exp(logits[1]).sum(-1, keepdims=True)
    y = (p.cumsum(-1) > rng.random((300, 1)) * 0.999).argmax(-1)
    report = model.fit_temperatures(x, y, verbose=0)
    # labels drawn from exit 2 of the ensemble, whose standard error is about 0.1
    assert report.temperatures[1] == pytest.approx(1.0, abs=0.4)
    assert report.nll_after[0] <= report.nll_before[0]


def test_each_setting_unsets_what_was_chosen_on_its_scores(model, rng):
    x = images(4, rng)
    model.temperatures = [2.0] * 4
    model.thresholds = [0.5] * 3
    stages, run = model.stages(), model.early_exit
    model.ensemble = True
    assert model.stages() is stages and model.early_exit is run
    assert model.thresholds == [0.5] * 3
    model.ensemble = False
    assert model.temperatures == [1.0] * 4 and model.thresholds is None
    assert model.stages()[1].logits_sum is None and stages[1].logits_sum
    logits, _ = all_logits(model, x, verbose=0)
    np.testing.assert_allclose(logits, own_logits(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ensemble", [1, None, "mean"])
def test_it_is_true_or_false(ensemble):
    with pytest.raises(ValueError, match="answers together.*Received: ensemble=.*Expected"):
        BranchyModel(sequential(), exits("conv"), ensemble=ensemble)


def test_thresholds_are_chosen_on_the_ensemble(model, rng):
    x = images(200, rng)
    outputs = list(model.predict(x, verbose=0).values())
    y = geometric_mean(outputs).argmax(-1)
    report = model.calibrate(x, y, max_accuracy_drop=0.1, verbose=0)
    assert report.last_accuracy == 1.0 and report.shares[3] < 1.0
    answer = model.predict_early(x, verbose=0)
    shares = np.bincount(answer.exits, minlength=4) / 200
    np.testing.assert_array_equal(shares, report.shares)
    assert (answer.labels == y).mean() == pytest.approx(report.accuracy)
    # among the exits so far, at each sample's own exit
    for index in range(4):
        left = answer.exits == index
        want = geometric_mean(outputs[: index + 1])[left]
        np.testing.assert_allclose(answer.probabilities[left], want, rtol=1e-4, atol=1e-6)


def test_a_broken_exit_breaks_the_mean_and_goes_to_the_last(rng):
    model = BranchyModel(residual(), exits("stem", "join"), ensemble=True)
    x = images(6, rng)
    x[2] = np.nan
    model.thresholds = [10.0, 10.0]
    answer = model.predict_early(x, verbose=0)
    assert answer.exits.tolist() == [0, 0, 2, 0, 0, 0] and np.isnan(answer.scores[2])


def test_gates_answer_by_the_mean_of_their_decision_values(rng):
    model = BranchyModel(residual(), gates("stem", "join"), ensemble=True)
    x = images(10, rng)
    outputs = model.predict(x, verbose=0)
    model.thresholds = [None, -1e9]
    answer = model.predict_early(x, verbose=0)
    mean = (outputs["exit_1"] + outputs["exit_2"]) / 2
    np.testing.assert_allclose(answer.scores, mean.max(-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(answer.labels, mean.argmax(-1))


def test_costs_count_heads_as_heads_and_what_is_handed_on(model):
    together = cost.stage_costs(model)
    model.ensemble = False
    for one, alone in zip(together, cost.stage_costs(model), strict=True):
        assert (one.trunk_macs, one.head_macs) == (alone.trunk_macs, alone.head_macs)
        carried = 4 * 4 if alone.live else 0  # four classes, float32
        assert one.bytes_carried == alone.bytes_carried + carried


@pytest.mark.parametrize(
    "options",
    [
        dict(layout="cascade"),
        dict(layout="stages"),
        *(
            pytest.param(options, marks=pytest.mark.long)
            for options in (
                dict(layout="signatures"),
                dict(batch_size=None),
                dict(format="saved_model"),
                dict(format="onnx"),
                dict(quantization="int8", with_data=True),
            )
        ),
    ],
)
def test_files_answer_together_too(options):
    """With temperatures, learned gates and patience beside the ensemble."""
    export = exported("every_setting", **options)
    check = export.manifest["self_check"]
    assert export.manifest["ensemble"] is True
    allowed = 3 if options.get("quantization") else 0  # of 60, in int8
    assert check["exits_differ"] <= allowed and check["labels_differ"] <= allowed
    if "format" not in options:
        answer = StageRunner(export.folder).predict(export.x)
        assert (answer.exits != export.answer.exits).sum() <= allowed
    if "format" not in options and not allowed:
        want = export.answer.probabilities
        np.testing.assert_allclose(answer.probabilities, want, atol=1e-5)
        np.testing.assert_allclose(answer.scores, export.answer.scores, atol=1e-5)
        assert len(set(answer.exits)) == 4


def test_a_cascade_with_patience_does_not_show_every_exit():
    export = exported("every_setting", layout="cascade")
    said = "does not show what its later exits say.*patience=3. Export with layout='stages'"
    with pytest.raises(ValueError, match=said):
        StageRunner(export.folder).every_exit(export.x)


def test_learned_gates_see_the_ensemble(rng):
    branches = {
        "stem": ExitBranch(4, criterion="learned"),
        "join": ExitBranch(4, criterion="learned"),
    }
    model = BranchyModel(residual(), branches, ensemble=True)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    x = images(120, rng)
    logits, _ = all_logits(model, x, verbose=0)
    report = model.fit_gates(x, verbose=0)
    agrees = logits[1].argmax(-1) == logits[2].argmax(-1)
    assert report.shares[1] == agrees.mean()
