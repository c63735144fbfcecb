# SPDX-License-Identifier: Apache-2.0
"""SavedModel without this package, and ONNX in onnxruntime."""

import os
import sys

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from exports import exported, prepared
from project import fresh_python

from keras_branchy.runner.manifest import Manifest


def test_a_saved_model_loads_without_this_package(tmp_path):
    export = exported("residual", format="saved_model")
    name = export.manifest["inputs"][0]["name"]
    np.save(tmp_path / "x.npy", export.x)
    fresh_python(
        "import sys\n"
        "sys.modules['keras_branchy'] = sys.modules['keras'] = None\n"
        "import numpy as np, tensorflow as tf\n"
        f"model = tf.saved_model.load({str(export.folder / 'saved_model')!r})\n"
        f"x = np.load({str(tmp_path / 'x.npy')!r})\n"
        f"limits = tf.constant({export.model.thresholds}, tf.float32)\n"
        "run = model.signatures['cascade']\n"
        f"answer = run(**{{{name!r}: tf.constant(x), 'thresholds': limits}})\n"
        f"np.savez({str(tmp_path / 'answer.npz')!r}, **answer)\n"
    )
    answer = np.load(tmp_path / "answer.npz")
    np.testing.assert_array_equal(answer["exit"], export.answer.exits)
    np.testing.assert_array_equal(answer["label"], export.answer.labels)
    want = export.answer.probabilities
    np.testing.assert_allclose(answer["probabilities"], want, atol=1e-5)
    np.testing.assert_allclose(answer["score"], export.answer.scores, atol=1e-5)


def test_its_stages_are_signatures_of_stock_operations():
    export = exported("residual", format="saved_model")
    loaded = tf.saved_model.load(str(export.folder / "saved_model"))
    expected = {"stage_1", "stage_2", "stage_3", "full", "cascade"}
    assert expected <= set(loaded.signatures)
    operations = set(export.manifest["files"][0]["operations"])
    assert "Conv2D" in operations
    assert not [name for name in operations if "ExitGate" in name or ">" in name]
    tensors = {export.manifest["inputs"][0]["name"]: tf.constant(export.x)}
    outputs = export.model.predict(export.x, verbose=0)
    for row in export.manifest["stages"]:
        names = [tensor["name"] for tensor in row["call"]["inputs"]]
        made = loaded.signatures[row["name"]](**{name: tensors[name] for name in names})
        probabilities = tf.nn.softmax(made.pop("logits"))
        np.testing.assert_allclose(probabilities, outputs[row["exit"]], atol=1e-5)
        tensors |= made


def test_the_native_gate_stays_out_of_a_saved_model(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BRANCHY_CUSTOM_OPS", "auto")
    model = prepared("residual")[0]
    manifest = model.export_stages(tmp_path / "out", format="saved_model", verbose=0)
    operations = manifest["files"][0]["operations"]
    assert not [name for name in operations if "ExitGate" in name]
    assert os.environ["KERAS_BRANCHY_CUSTOM_OPS"] == "auto"


def run_onnx(export, x):
    tensors = {export.manifest["inputs"][0]["name"]: x}
    logits = []
    for row in export.manifest["stages"]:
        call = row["call"]
        session = onnxruntime.InferenceSession(export.folder / call["file"])
        names = [tensor["name"] for tensor in call["outputs"]]
        read = {tensor["name"]: tensors[tensor["name"]] for tensor in call["inputs"]}
        made = dict(zip(names, session.run(names, read), strict=True))
        logits.append(made.pop("logits"))
        tensors |= made
    return logits


@pytest.mark.parametrize("batch_size", [None, pytest.param(1, marks=pytest.mark.long)])
def test_onnx_stages_run_in_onnxruntime(batch_size):
    export = exported("residual", format="onnx", batch_size=batch_size)
    x = export.x[: batch_size or 7]
    outputs = export.model.predict(x, verbose=0)
    for logits, expected in zip(run_onnx(export, x), outputs.values(), strict=True):
        np.testing.assert_allclose(tf.nn.softmax(logits), expected, atol=1e-5)
    assert Manifest.load(export.folder).data["self_check"]["exits_differ"] == 0
    if batch_size is None:
        tensor = export.manifest["stages"][0]["call"]["inputs"][0]
        assert tensor["shape"] == [None, 8, 8, 2]


@pytest.mark.long
@pytest.mark.parametrize("form", ["onnx", "saved_model"])
@pytest.mark.parametrize("name", ["attention", "two_inputs", "several_outputs", "patience"])
def test_other_graphs_in_other_formats(form, name):
    check = exported(name, format=form).manifest["self_check"]
    assert check["exits_differ"] == check["labels_differ"] == 0


def test_without_tf2onnx_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "tf2onnx" else True
    )
    with pytest.raises(ImportError, match=r"Received: no tf2onnx. Install.*\[onnx\]"):
        prepared("residual")[0].export_stages(tmp_path / "out", format="onnx", verbose=0)
    assert list(tmp_path.iterdir()) == []
