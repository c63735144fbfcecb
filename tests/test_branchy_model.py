# SPDX-License-Identifier: Apache-2.0
"""BranchyModel: what it holds, trains, saves and refuses."""

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from cases import exits, images, residual, sequential

from keras_branchy import BranchyModel

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def model():
    return BranchyModel(residual(), exits("stem", "join"))


def test_outputs_are_distributions_by_exit_name(model, rng):
    outputs = model.predict(images(5, rng), verbose=0)
    assert list(outputs) == model.exit_names == ["exit_1", "exit_2", "exit_3"]
    for output in outputs.values():
        assert output.shape == (5, 4) and output.dtype == np.float32
        np.testing.assert_allclose(output.sum(-1), 1, rtol=1e-5)


def test_the_last_exit_is_the_backbone(rng):
    backbone = residual()
    model = BranchyModel(backbone, exits("stem"))
    x = images(8, rng)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0)["exit_2"], backbone.predict(x, verbose=0)
    )
    assert {id(w) for w in backbone.weights} < {id(w) for w in model.weights}


def test_thresholds_are_checked(model):
    assert model.thresholds is None
    model.thresholds = (0.5, None)
    assert model.thresholds == [0.5, None]
    model.thresholds = np.array([0.25, 1.0], np.float32)
    assert model.thresholds == [0.25, 1.0]
    for wrong, message in [
        ([0.5], r"one entry per exit but the last.*Received: 1 entries. Expected 2"),
        ([0.5, float("nan")], r"must be finite"),
        ([0.5, float("inf")], r"must be finite.*Use None to disable"),
        (0.5, r"must be a list in exit order. Received: thresholds=0.5"),
        ({"exit_1": 0.5}, r"must be a list in exit order"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.thresholds = wrong
    assert model.thresholds == [0.25, 1.0]


def test_thresholds_given_at_construction_are_checked_too():
    with pytest.raises(ValueError, match=r"Received: 2 entries. Expected 1"):
        BranchyModel(sequential(), exits("conv"), thresholds=[0.1, 0.2])


@pytest.mark.parametrize("patience", [1, 0, 2.0, True, "2"])
def test_patience_is_checked(model, patience):
    with pytest.raises(ValueError, match=r"an integer of at least 2. Received: patience="):
        model.patience = patience


def test_no_more_exits_can_agree_than_there_are(model):
    most = len(model.exit_names)
    model.patience = most
    with pytest.raises(
        ValueError, match=rf"there are {most}. Received: patience={most + 1}"
    ):
        model.patience = most + 1
    assert model.patience == most


def test_training_resumes_from_a_file(model, tmp_path, rng):
    x, y = images(64, rng), rng.integers(0, 4, 64)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, epochs=2, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert int(again.optimizer.iterations) == int(model.optimizer.iterations) == 4
    for one in (model, again):
        one.fit(x, y, epochs=2, verbose=0, shuffle=False)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_loss_scaling_resumes_from_a_file(tmp_path, rng):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = BranchyModel(residual(), exits("stem"))
    finally:
        keras.config.set_dtype_policy("float32")
    model.dtype_policy = keras.DTypePolicy("mixed_float16")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images(32, rng), rng.integers(0, 4, 32), verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, keras.optimizers.LossScaleOptimizer)
    assert len(again.optimizer.variables) == len(model.optimizer.variables)
    for one, other in zip(
        model.optimizer.variables, again.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_weights_files(model, tmp_path, rng):
    model.save_weights(tmp_path / "model.weights.h5")
    other = BranchyModel(residual(), exits("stem", "join"))
    other.load_weights(tmp_path / "model.weights.h5")
    x = images(4, rng)
    for name, output in model.predict(x, verbose=0).items():
        np.testing.assert_array_equal(output, other.predict(x, verbose=0)[name])


def test_summary_and_layers_are_keras_own(model):
    lines = []
    model.summary(print_fn=lambda line, line_break=True: lines.append(line))
    text = "\n".join(lines)
    assert "exit_1 (ExitBranch)" in text and "stem (Conv2D)" in text
    assert model.get_layer("exit_2") is model.branches[1]


def test_the_layers_of_a_file_are_stock_but_for_the_exits(model, tmp_path):
    model.stages()
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))
    ours = {
        layer["class_name"]
        for layer in config["config"]["layers"]
        if layer["registered_name"] and "keras_branchy" in layer["registered_name"]
    }
    assert config["registered_name"] == "keras_branchy>BranchyModel"
    assert ours == {"ExitBranch"}


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.keras")), ids=lambda p: p.stem)
def test_files_of_earlier_versions_load(path):
    """Each fixture was written by the version in its name, with the answers it gave."""
    model = keras.models.load_model(path)
    expected = np.load(path.with_suffix(".npz"))
    assert model.thresholds == expected["thresholds"].tolist()
    for name, output in model.predict(expected["x"], verbose=0).items():
        np.testing.assert_allclose(output, expected[name], rtol=1e-5, atol=1e-6)
    answer = model.predict_early(expected["x"], verbose=0)
    np.testing.assert_array_equal(answer.exits, expected["exits"])
    assert int(model.optimizer.iterations) == int(expected["iterations"])


def test_there_is_a_fixture():
    assert list(FIXTURES.glob("*.keras"))
