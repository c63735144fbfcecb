# SPDX-License-Identifier: Apache-2.0
"""Quantised files: their numbers, and thresholds that follow them."""

import os

import keras
import numpy as np
import pytest
from cases import residual
from exports import root
from keras import layers

from keras_branchy import BranchyModel, ExitBranch, StageRunner
from keras_branchy.export.conversion import operations_in

MODES = [
    ("stages", "float16"),
    ("cascade", "dynamic"),
    ("signatures", "int8"),
]
MORE = [
    ("stages", "int8"),
    ("stages", "dynamic"),
    ("signatures", "float16"),
    ("signatures", "dynamic"),
    ("cascade", "float16"),
]


def learnable(count, rng):
    """Four classes of images that differ in where they are bright."""
    y = rng.integers(0, 4, count)
    x = rng.normal(size=(count, 8, 8, 2)).astype(np.float32)
    x[np.arange(count), y] += 1.5
    return x, y


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(11)
    rng = np.random.default_rng(11)
    model = BranchyModel(residual(), {"inside": ExitBranch(4), "late": ExitBranch(4)})
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(*learnable(1500, rng), epochs=4, verbose=0)
    valid = learnable(400, rng)
    model.calibrate(*valid, exit_shares=[0.5, 0.25], verbose=0)
    return model, valid, learnable(500, rng)


def export(trained, layout, quantization):
    model, valid, _ = trained
    folder = root() / f"{layout}_{quantization}"
    if not folder.exists():
        model.export_stages(
            folder,
            layout=layout,
            quantization=quantization,
            representative_data=valid,
            verbose=0,
        )
    return StageRunner(folder)


def check(trained, layout, quantization):
    model, valid, (x, y) = trained
    runner = export(trained, layout, quantization)
    data = runner.manifest.data
    # As many leave as before, on the samples that the thresholds were fitted to …
    shares = np.bincount(runner.predict(valid[0]).exits, minlength=3) / 400
    expected = np.bincount(model.predict_early(valid[0], verbose=0).exits, minlength=3)
    np.testing.assert_allclose(shares, expected / 400, atol=0.006)
    np.testing.assert_allclose(data["recalibration"]["shares"], expected / 400)
    assert data["recalibration"]["previous_thresholds"] == model.thresholds
    assert data["recalibration"]["samples"] == 400
    # … and others get almost the same answers.
    answer, keras_answer = runner.predict(x), model.predict_early(x, verbose=0)
    accuracy = (answer.labels == y).mean()
    assert abs(accuracy - (keras_answer.labels == y).mean()) <= 0.02
    moved = (answer.exits != keras_answer.exits).mean()
    assert moved <= {"float16": 0.01, "dynamic": 0.04, "int8": 0.08}[quantization]
    row = data["self_check"]
    assert row["samples"] == 256 and row["nan"] == 0
    assert abs(row["accuracy"] - row["keras_accuracy"]) < 0.03
    return runner


@pytest.mark.parametrize("layout, quantization", MODES)
def test_quantised_files_keep_shares_and_accuracy(trained, layout, quantization):
    check(trained, layout, quantization)


@pytest.mark.long
@pytest.mark.parametrize("layout, quantization", MORE)
def test_quantised_files_in_other_layouts(trained, layout, quantization):
    check(trained, layout, quantization)


def test_int8_computes_in_int8_and_gives_float_logits(trained):
    runner = export(trained, "signatures", "int8")
    for stage in runner.manifest.stages:
        assert {tensor.dtype for tensor in stage.call.outputs} == {"float32"}
        assert all(tensor.quantization is None for tensor in stage.call.outputs)
    (row,) = runner.manifest.data["files"]
    found = operations_in(runner.manifest.read(row["name"]))
    assert {"QUANTIZE", "DEQUANTIZE", "CONV_2D"} <= set(found)
    assert not {"SOFTMAX", "LOG", "EXP"} & set(found), "the decision stays outside"


def test_refitted_thresholds_lie_between_scores_of_the_files(trained):
    runner = export(trained, "cascade", "dynamic")
    scores, _, _ = runner.every_exit(trained[1][0])
    for threshold, row in zip(runner.thresholds, scores, strict=False):
        # Half way: as far as possible from what it decides about.
        below, above = row[row < threshold].max(), row[row >= threshold].min()
        assert below < threshold < above
        assert threshold == pytest.approx((below + above) / 2, rel=1e-4)


def test_without_labels_thresholds_stay(trained, tmp_path):
    model, (x, _), _ = trained
    model.export_stages(
        tmp_path / "out", quantization="dynamic", representative_data=x, verbose=0
    )
    runner = StageRunner(tmp_path / "out")
    assert runner.thresholds == model.thresholds
    assert runner.manifest.data["recalibration"] is None


def test_a_disabled_exit_stays_disabled(trained, tmp_path):
    model, valid, _ = trained
    before = model.thresholds
    try:
        model.thresholds = [None, before[1]]
        model.export_stages(
            tmp_path / "out", quantization="dynamic", representative_data=valid, verbose=0
        )
        expected = model.predict_early(valid[0], verbose=0)
    finally:
        model.thresholds = before
    runner = StageRunner(tmp_path / "out")
    assert runner.thresholds[0] is None
    shares = np.bincount(runner.predict(valid[0]).exits, minlength=3) / 400
    np.testing.assert_allclose(shares, np.bincount(expected.exits) / 400, atol=0.006)


def test_samples_for_int8_must_be_finite(trained, tmp_path):
    model, (x, y), _ = trained
    x = x.copy()
    x[5, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="must be finite in every stage. Received.*Remove"):
        model.export_stages(
            tmp_path / "out", quantization="int8", representative_data=(x, y), verbose=0
        )
    assert list(tmp_path.iterdir()) == []


def test_samples_for_int8_must_fill_a_batch(trained, tmp_path):
    model, (x, y), _ = trained
    with pytest.raises(ValueError, match="whole batches. Received: 3 rep.*batch_size=8"):
        model.export_stages(
            tmp_path / "out",
            quantization="int8",
            batch_size=8,
            representative_data=(x[:3], y[:3]),
            verbose=0,
        )


def recurrent():
    inputs = keras.Input((6, 3))
    x = layers.Dense(4, name="tap")(inputs)
    backbone = keras.Model(inputs, layers.Dense(4, "softmax")(layers.LSTM(4)(x)))
    return BranchyModel(backbone, {"tap": ExitBranch(4)})


@pytest.mark.long
def test_a_converter_that_crashes_is_an_exception(tmp_path):
    # tensorflow#75140: this very conversion ends the process that does it.
    x = np.random.default_rng(0).normal(size=(20, 6, 3)).astype(np.float32)
    said = "crashed during 'convert'. Received: signal SIG.*int8 with a recurrent layer"
    with pytest.raises(RuntimeError, match=said):
        recurrent().export_stages(
            tmp_path / "out", quantization="int8", representative_data=x, verbose=0
        )
    assert list(tmp_path.iterdir()) == [] and os.getpid()
