# SPDX-License-Identifier: Apache-2.0
"""Laws that hold for every model of `cases.MODELS`."""

import functools
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import MODELS, NETWORKS

import keras_branchy
from keras_branchy import BranchyModel
from keras_branchy.early_exit import EarlyExitResult

BY_NAME = {case.name: case for case in [*MODELS, *NETWORKS]}
QUICK = [case.name for case in MODELS]
every_model = pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(pytest.param(case.name, marks=pytest.mark.long) for case in NETWORKS),
    ],
)

# Keras says so whenever a functional model with a mask is called on plain arrays.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not support masking")


@functools.cache
def made(name):
    """The model of a case and 64 samples; weights are drawn wide, so that scores spread."""
    keras.utils.set_random_seed(7)
    model = BY_NAME[name].make()
    rng = np.random.default_rng(7)
    for weight in model.trainable_weights if BY_NAME[name].wide else []:
        weight.assign(rng.normal(0, 0.8 / np.sqrt(max(weight.shape[0], 1)), weight.shape))
    return model, BY_NAME[name].samples(64, rng)


def numbers(model, x):
    """Outputs of every exit, in exit order."""
    outputs = model.predict(x, verbose=0)
    return [outputs[name] for name in model.exit_names]


def answered(model, outputs):
    """What exits answer when they stand in stages: float64, from what the model gives."""
    made = []
    for index, temperature in enumerate(model.temperatures):
        output = outputs[index].astype(np.float64)
        if model.ensemble:  # the geometric mean
            output = np.prod(np.stack(outputs[: index + 1], dtype=np.float64), axis=0)
            output **= 1 / (index + 1)
        made.append(tempered(output, temperature, is_gate(model, index)))
    return made


def tempered(output, temperature, is_gate):
    if is_gate:
        return output / temperature
    powers = output.astype(np.float64) ** (1 / temperature)
    return powers / powers.sum(-1, keepdims=True)


def is_gate(model, index):
    return index < len(model.branches) and model.branches[index].activation is None


def scores_of(model, index, output):
    """The score of an exit from its output, written apart from the package."""
    ordered = np.sort(output.astype(np.float64), axis=-1)
    criterion = [*model.criteria, "entropy"][index]
    entropy = -(ordered * np.log(np.maximum(ordered, 1e-300))).sum(-1)
    if criterion == "entropy":
        return entropy
    margin = ordered[:, -1] - ordered[:, -2]
    if criterion == "margin":
        return margin
    if criterion == "learned":
        bias, largest, of_entropy, of_margin = model.gates[index]
        x = bias + largest * ordered[:, -1] + of_entropy * entropy + of_margin * margin
        return 1 / (1 + np.exp(-x))
    return ordered[:, -1]


def rule(model, outputs, thresholds):
    """Exit and label of each sample, and whether a score is too near its threshold."""
    exits = np.full(len(outputs[0]), len(outputs) - 1)
    near = np.zeros(len(exits), bool)
    labels = [output.argmax(-1) for output in outputs]
    open_ = np.ones(len(exits), bool)
    agreed = np.zeros(len(exits), int)
    for index, threshold in enumerate(thresholds):
        score = scores_of(model, index, outputs[index])
        sure = (
            score < threshold if model.criteria[index] == "entropy" else score >= threshold
        )
        near |= np.abs(score - threshold) <= 1e-5
        same = labels[index] == labels[index - 1] if index else np.zeros(len(exits), bool)
        agreed = np.where(same, agreed + 1, 1)
        sure |= agreed >= (model.patience or np.inf)
        exits[open_ & sure] = index
        open_ &= ~sure
    return exits, np.choose(exits, labels), near


def medians(model, outputs):
    return [
        float(np.median(scores_of(model, index, outputs[index])))
        for index in range(len(model.criteria))
    ]


def softmax(values):
    exponent = np.exp(values - values.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def flat(x):
    return keras.tree.flatten(x)


@every_model
def test_config_round_trip(name):
    model, x = made(name)
    again = BranchyModel.from_config(model.get_config())
    again.set_weights(model.get_weights())
    assert again.exit_names == model.exit_names
    assert again.criteria == model.criteria
    assert (again.temperatures, again.gates) == (model.temperatures, model.gates)
    assert again.ensemble == model.ensemble
    for one, other in zip(numbers(model, x), numbers(again, x), strict=True):
        np.testing.assert_array_equal(one, other)


@every_model
def test_keras_file_round_trip(name, tmp_path):
    model, x = made(name)
    model.thresholds = [0.25] * len(model.criteria)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again, BranchyModel)
    assert (again.thresholds, again.patience) == (model.thresholds, model.patience)
    assert (again.temperatures, again.gates) == (model.temperatures, model.gates)
    assert again.ensemble == model.ensemble
    for one, other in zip(numbers(model, x), numbers(again, x), strict=True):
        np.testing.assert_array_equal(one, other)


@every_model
def test_stages_equal_the_model(name):
    model, x = made(name)
    tensors = dict(
        zip([t.name for t in model.inputs], map(tf.constant, flat(x)), strict=True)
    )
    tensors = {
        stage_input: value
        for stage_input, value in zip(input_names(model), tensors.values(), strict=True)
    }
    for index, (stage, output) in enumerate(
        zip(model.stages(), answered(model, numbers(model, x)), strict=True)
    ):
        run = tf.function(stage)  # in graph mode, where a lost mask does not show itself
        result = run({key: tensors[key] for key in stage.input_names})
        logits = result.pop("logits").numpy()
        got = logits if is_gate(model, index) else softmax(logits)
        # float32 rounding of a different order of operations
        np.testing.assert_allclose(got, output, rtol=1e-5, atol=2e-6)
        assert sorted(result) == sorted(stage.output_names)
        tensors |= result
        tensors = {key: tensors[key] for key in stage.live}
    assert tensors == {}


def input_names(model):
    return [tensor._keras_history.operation.name for tensor in model.inputs]


@every_model
def test_stages_share_the_models_variables(name):
    model, _ = made(name)
    own = {id(variable) for variable in model.variables}
    held = [v for stage in model.stages() for v in stage.model.variables]
    assert {id(variable) for variable in held} == own


@every_model
def test_building_stages_leaves_the_file_as_it_was(name, tmp_path):
    model = BY_NAME[name].make()
    before = model.get_config()
    model.save(tmp_path / "before.keras")
    model.stages()
    model.save(tmp_path / "after.keras")
    assert model.get_config() == before
    sizes = [(tmp_path / f"{when}.keras").stat().st_size for when in ("before", "after")]
    assert sizes[0] == sizes[1]


@every_model
def test_staged_inference_follows_the_rule(name):
    model, x = made(name)
    outputs = answered(model, numbers(model, x))
    model.thresholds = medians(model, outputs)
    exits, labels, near = rule(model, outputs, model.thresholds)
    answer = model.predict_early(x, verbose=0)
    assert near.mean() < 0.1
    np.testing.assert_array_equal(answer.exits[~near], exits[~near])
    np.testing.assert_array_equal(answer.labels[~near], labels[~near])
    assert len(set(exits)) > 1  # some leave early, or the law says nothing
    for index, output in enumerate(outputs):
        taken = answer.exits == index
        expected = output[taken]
        if is_gate(model, index):
            expected = softmax(expected)
        np.testing.assert_allclose(
            answer.probabilities[taken], expected, rtol=1e-5, atol=2e-6
        )
        score = scores_of(model, index, output)[taken]
        # float32 entropy of probabilities that are rounded to float32
        np.testing.assert_allclose(answer.scores[taken], score, rtol=1e-4, atol=2e-6)


@every_model
def test_any_batch_size_without_retracing(name):
    model, x = made(name)
    model.thresholds = medians(model, answered(model, numbers(model, x)))
    whole = model.predict_early(x, batch_size=64, verbose=0)
    for size in (1, 7):
        parts = model.predict_early(x, batch_size=size, verbose=0)
        # Scores move by up to 2.4e-7 with the batch size, so a median may fall either way.
        assert (parts.exits != whole.exits).mean() <= 0.04
    nobody = keras.tree.map_structure(lambda array: array[:0], x)
    empty = model.predict_early(nobody, verbose=0)
    assert len(empty) == 0 and empty.probabilities.shape == (0, model.num_classes)
    assert model.early_exit.experimental_get_tracing_count() == 1


@every_model
def test_mixed_float16(name):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        keras.utils.set_random_seed(7)
        model = BY_NAME[name].make()
    finally:
        keras.config.set_dtype_policy("float32")
    x = BY_NAME[name].samples(32, np.random.default_rng(7))
    outputs = numbers(model, x)
    for output in outputs[:-1]:
        assert output.dtype == np.float32
    model.thresholds = [0.5] * len(model.criteria)
    answer = model.predict_early(x, verbose=0)
    assert answer.probabilities.dtype == answer.scores.dtype == np.float32
    # the last exit's softmax may be the backbone's own, in float16: 2^-11 a step
    for index, output in enumerate(answered(model, outputs)):
        taken = answer.exits == index
        expected = output[taken].astype(np.float32)
        if is_gate(model, index):
            expected = softmax(expected)
        np.testing.assert_allclose(answer.probabilities[taken], expected, atol=5e-3)


@every_model
def test_trains_from_one_label_per_sample(name):
    model = BY_NAME[name].make()
    rng = np.random.default_rng(0)
    x, y = BY_NAME[name].samples(64, rng), rng.integers(0, 4, 64)
    losses = [
        "sparse_categorical_crossentropy"
        if branch.activation
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        for branch in model.branches
    ]
    model.compile(keras.optimizers.Adam(0.02), [*losses, "sparse_categorical_crossentropy"])
    history = model.fit(x, y, epochs=8, batch_size=16, verbose=0).history
    for exit_name in model.exit_names:
        assert history[f"{exit_name}_loss"][-1] < history[f"{exit_name}_loss"][0]


@every_model
def test_clone_has_new_weights_and_no_thresholds(name):
    model, x = made(name)
    model.thresholds = [0.5] * len(model.criteria)
    clone = keras.models.clone_model(model)
    assert isinstance(clone, BranchyModel)
    assert (clone.thresholds, clone.exit_names) == (None, model.exit_names)
    assert clone.temperatures == [1.0] * len(model.exit_names)
    assert clone.gates == [None] * len(model.criteria) and not clone.ensemble
    clone.set_weights(model.get_weights())
    for one, other in zip(numbers(model, x), numbers(clone, x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_table_covers_the_public_classes():
    classes = {
        name
        for name in keras_branchy.__all__
        if inspect.isclass(getattr(keras_branchy, name))
    }
    # No models: tests/exports.py and tests/test_one_vs_rest_hinge.py have their tables.
    classes -= {"StageRunner", "OneVsRestHinge"}
    used = {type(made(name)[0]).__name__ for name in QUICK}
    used |= {type(b).__name__ for name in QUICK for b in made(name)[0].branches}
    assert classes == used
    assert {c for name in QUICK for c in made(name)[0].criteria} == {
        "entropy",
        "max_probability",
        "margin",
        "distance",
        "learned",
    }
    assert EarlyExitResult.__dataclass_fields__.keys() == {
        "labels",
        "probabilities",
        "exits",
        "scores",
    }
