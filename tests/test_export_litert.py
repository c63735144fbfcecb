# SPDX-License-Identifier: Apache-2.0
"""LiteRT files against Keras, in another interpreter's hands where there is one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter
from cases import MODELS, coefficients, images, residual
from exports import exported, medians, prepared, root
from keras import layers

from keras_branchy import BranchyModel, ExitBranch, StageRunner
from keras_branchy.criteria import CRITERIA, gate_scores
from keras_branchy.export.cascade import graph_score
from keras_branchy.export.conversion import operations_in


def run_in_litert(path, signature, tensors):
    """One call, by names, with nothing of this package."""
    interpreter = Interpreter(model_path=str(path))
    return interpreter.get_signature_runner(signature)(**tensors)


def input_name(export):
    return export.manifest["inputs"][0]["name"]


def test_files_run_by_names_alone():
    export = exported("residual")
    tensors = {input_name(export): export.x[:1]}
    outputs = export.model.predict(export.x[:1], verbose=0)
    for row in export.manifest["stages"]:
        names = [tensor["name"] for tensor in row["call"]["inputs"]]
        read = {name: tensors[name] for name in names}
        path = export.folder / row["call"]["file"]
        made = run_in_litert(path, row["call"]["signature"], read)
        assert set(made) == {tensor["name"] for tensor in row["call"]["outputs"]}
        probabilities = tf.nn.softmax(made.pop("logits")).numpy()
        np.testing.assert_allclose(probabilities, outputs[row["exit"]], atol=1e-5)
        tensors |= made


def test_files_hold_stock_operations_and_say_which():
    for name, layout in (("residual", "stages"), ("patience", "cascade")):
        export = exported(name, layout=layout)
        for row in export.manifest["files"]:
            found = operations_in((export.folder / row["name"]).read_bytes())
            assert found == row["operations"] and "CONV_2D" in found or len(found) > 2
            assert not any(op.startswith(("CUSTOM", "FLEX")) for op in found)
        assert ("IF" in found) == (layout == "cascade")


def test_one_file_holds_all_signatures_and_the_weights_once():
    export = exported("residual", layout="signatures")
    (row,) = export.manifest["files"]
    interpreter = Interpreter(model_path=str(export.folder / row["name"]))
    expected = {"stage_1", "stage_2", "stage_3", "full"}
    assert set(interpreter.get_signature_list()) == expected
    name = input_name(export)
    made = run_in_litert(export.folder / row["name"], "full", {name: export.x[:1]})
    outputs = export.model.predict(export.x[:1], verbose=0)
    for exit_name, logits in made.items():
        got = tf.nn.softmax(logits).numpy()
        np.testing.assert_allclose(got, outputs[exit_name], atol=1e-5)
    answer = StageRunner(export.folder).predict(export.x)
    np.testing.assert_array_equal(answer.exits, export.answer.exits)
    np.testing.assert_array_equal(answer.labels, export.answer.labels)


def test_the_cascade_answers_under_its_names_at_any_threshold():
    export = exported("residual", layout="cascade")
    name = input_name(export)
    path = export.folder / "cascade.tflite"
    for limits in ([-np.inf, -np.inf], [np.inf, 0.0], [0.0, np.inf], [np.nan, 1e9]):
        thresholds = np.array(limits, np.float32)
        expected = export.model.early_exit(export.x[:1], thresholds)
        tensors = {name: export.x[:1], "thresholds": thresholds}
        made = run_in_litert(path, "cascade", tensors)
        assert made["exit"] == expected["exits"] and made["exit"].dtype == np.int32
        assert made["label"] == expected["labels"]
        want = expected["probabilities"]
        np.testing.assert_allclose(made["probabilities"], want, atol=1e-5)
        np.testing.assert_allclose(made["score"], expected["scores"], atol=1e-5)


def convolutions_by_subgraph(path):
    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    codes = [
        model.OperatorCodes(k).BuiltinCode() for k in range(model.OperatorCodesLength())
    ]
    counts = []
    for which in range(model.SubgraphsLength()):
        graph = model.Subgraphs(which)
        kinds = [
            codes[graph.Operators(k).OpcodeIndex()] for k in range(graph.OperatorsLength())
        ]
        counts.append(kinds.count(schema.BuiltinOperator.CONV_2D))
    return counts


def test_later_stages_stand_in_the_branches_that_are_taken_last():
    cascade = exported("residual", layout="cascade")
    staged = exported("residual")
    found = convolutions_by_subgraph(cascade.folder / "cascade.tflite")
    wanted = [
        sum(convolutions_by_subgraph(staged.folder / row["call"]["file"]))
        for row in staged.manifest["stages"]
    ]
    assert wanted[0] and wanted[1]
    # One graph for all, and two more for each decision, of which one is empty.
    assert found[0] == wanted[0] and len(found) == 5
    assert sorted(found[1:]) == sorted([0, 0, *wanted[1:]])


def test_the_cascade_runs_as_a_compiled_model():
    export = exported("residual", layout="cascade")
    compiled = CompiledModel.from_file(str(export.folder / "cascade.tflite"))
    index = compiled.get_signature_index("cascade")
    inputs = compiled.create_input_buffers(index)
    outputs = compiled.create_output_buffers(index)
    signature = compiled.get_signature_list()["cascade"]
    limits = np.array(export.model.thresholds, np.float32)
    values = {input_name(export): export.x[:1], "thresholds": limits}
    for buffer, name in zip(inputs, signature["inputs"], strict=True):
        buffer.write(values[name])
    compiled.run_by_index(index, inputs, outputs)
    exit_buffer = outputs[signature["outputs"].index("exit")]
    assert exit_buffer.read(1, np.int32)[0] == export.answer.exits[0]


def score_in_litert(criterion, classes):
    """The cascade's own gate as a file: what the converter leaves of the formula."""
    spec = [tf.TensorSpec([1, classes], tf.float32, name="logits")]
    own = coefficients(criterion)
    gate = tf.function(
        lambda z: {"score": graph_score(z, criterion, own)}, input_signature=spec
    )
    module = tf.Module()
    module.gate = gate
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [gate.get_concrete_function()], module
    )
    interpreter = Interpreter(model_content=converter.convert())
    runner = interpreter.get_signature_runner()
    return lambda z: next(iter(runner(logits=z[None]).values()))[0]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_gate_in_a_file_keeps_its_digits(criterion, rng):
    run = score_in_litert(criterion, 10)
    for scale in (0.01, 1.0, 4.0, 16.0, 40.0):
        for _ in range(20):
            z = (rng.normal(size=10) * scale).astype(np.float32)
            expected = gate_scores(z, criterion, coefficients(criterion))[0]
            # Single precision; a margin is a difference of numbers near 1. A thousandth
            # of a threshold counts as rounding, these are to stay far below it.
            floor = 2e-7 if criterion == "margin" else 1e-30
            np.testing.assert_allclose(run(z), expected, rtol=1e-4, atol=floor)
    ties = np.array([2.0, 2.0, *[0.0] * 8], np.float32)
    expected = gate_scores(ties, criterion, coefficients(criterion))[0]
    np.testing.assert_allclose(run(ties), expected, atol=4e-7)


def test_a_sure_exit_is_not_below_a_threshold_of_zero():
    run = score_in_litert("entropy", 4)
    for gap in (60.0, 80.0, 95.0, 110.0, np.inf):
        for z in ([0.0, -gap, -gap, -gap], [0.0, -gap, -np.inf, -gap]):
            expected = gate_scores(np.array(z, np.float32))[0]
            assert 0.0 <= run(np.array(z, np.float32)) <= 1.0001 * expected + 1e-33, z


@pytest.mark.parametrize("criterion", CRITERIA)
def test_broken_logits_have_no_score_in_a_file(criterion):
    run = score_in_litert(criterion, 4)
    for z in ([np.nan, 1, 2, 3], [3, 1, 2, np.nan], [np.inf, 0, 0, 0], [-np.inf] * 4):
        assert np.isnan(run(np.array(z, np.float32))), z
    with_zero = np.array([-np.inf, 1, 2, 3], np.float32)
    expected = gate_scores(with_zero, criterion, coefficients(criterion))[0]
    np.testing.assert_allclose(run(with_zero), expected, rtol=1e-4)


def test_mixed_precision_becomes_float32():
    keras.utils.set_random_seed(3)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = BranchyModel(residual(), {"inside": ExitBranch(4)})
    finally:
        keras.config.set_dtype_policy(policy)
    x = images(40, np.random.default_rng(3))
    model.thresholds = medians(model, x)
    folder = root() / "mixed"
    manifest = model.export_stages(folder, verbose=0)
    dtypes = {t["dtype"] for row in manifest["stages"] for t in row["call"]["outputs"]}
    assert dtypes == {"float32"}
    answer, expected = StageRunner(folder).predict(x), model.predict_early(x, verbose=0)
    # Half precision has 11 bits.
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=5e-3)
    assert (answer.exits == expected.exits).mean() > 0.9


def test_a_model_without_thresholds_asks_for_them_where_it_runs(tmp_path):
    model = BranchyModel(residual(), {"inside": ExitBranch(4)})
    manifest = model.export_stages(tmp_path / "out", verbose=0)
    assert not manifest["calibrated"] and manifest["self_check"]["exits_differ"] is None
    runner = StageRunner(tmp_path / "out")
    x = images(4, np.random.default_rng(0))
    assert (runner.predict(x, thresholds=[None]).exits == 1).all()
    with pytest.raises(ValueError, match="no thresholds"):
        runner.predict(x)


def test_what_goes_with_the_model_is_in_the_manifest(tmp_path, capsys):
    model, x, _, _ = prepared("residual")
    manifest = model.export_stages(
        tmp_path / "out",
        layout="signatures",
        class_names=["a", "b", "c", "ü"],
        preprocessing={"scale": 1 / 255},
        representative_data=tf.data.Dataset.from_tensor_slices(x).batch(20),
    )
    runner = StageRunner(tmp_path / "out")
    assert runner.class_names == manifest["class_names"] == ["a", "b", "c", "ü"]
    assert runner.manifest.data["preprocessing"] == {"scale": 1 / 255}
    assert manifest["self_check"]["data"] == "representative_data"
    assert manifest["self_check"]["samples"] == 60
    assert manifest["self_check"]["accuracy"] is None
    said = capsys.readouterr().out
    assert "export: stages.tflite, " in said and "checked the files on 60 samples" in said


@pytest.mark.long
@pytest.mark.parametrize("layout", ["stages", "signatures", "cascade"])
@pytest.mark.parametrize("name", [case.name for case in MODELS])
def test_every_kind_of_graph_in_every_layout(name, layout):
    export = exported(name, layout=layout)
    answer = StageRunner(export.folder).predict(export.x)
    np.testing.assert_array_equal(answer.exits, export.answer.exits)
    np.testing.assert_array_equal(answer.labels, export.answer.labels)
    want = export.answer.probabilities
    np.testing.assert_allclose(answer.probabilities, want, atol=1e-5)


REFUSED = [
    (dict(format="tflite"), "Unknown export format. Received: format='tflite'"),
    (dict(layout="files"), "no such layout. Received: layout='files'. Expected one of"),
    (dict(format="onnx", layout="cascade"), "'onnx' has no such layout"),
    (dict(quantization="int4"), "Unknown quantization. Received: quantization='int4'"),
    (dict(quantization="int8"), "int8 is calibrated on samples.*Pass a few hundred"),
    (
        dict(quantization="int8", layout="cascade", representative_data=1),
        "cannot be quantised to int8: its thresholds would be rounded.*Use layout=",
    ),
    (dict(format="onnx", quantization="dynamic"), "Only LiteRT files are quantised here"),
    (dict(batch_size=0), "number of samples in a call. Received: batch_size=0. Expected"),
    (dict(batch_size=True), "Received: batch_size=True"),
    (dict(batch_size=4, layout="cascade"), "one sample at a time.*use layout='stages'"),
    (dict(class_names="abcd"), "is a list of strings. Received: 'abcd'. Pass one name"),
    (dict(class_names=["a"]), "one name per class. Received: 1 names. Expected 4"),
    (dict(preprocessing=3), "a text or a dict.*Received: int. Pass for example"),
    (dict(preprocessing={"mean": {1}}), "written as JSON. Received.*Use numbers"),
    (dict(preprocessing={"mean": float("nan")}), "written as JSON"),
    (dict(representative_data=np.zeros((0, 8, 8, 2))), "must hold samples. Received: none"),
]


@pytest.mark.parametrize("options, said", REFUSED)
def test_what_cannot_be_had_is_refused(options, said, tmp_path):
    model = prepared("residual")[0]
    with pytest.raises(ValueError, match=said):
        model.export_stages(tmp_path / "out", verbose=0, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_refused(tmp_path):
    with pytest.raises(TypeError, match="quantisation"):
        prepared("residual")[0].export_stages(tmp_path / "out", quantisation="int8")


def test_free_sizes_are_refused(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3, name="tap")(inputs))
    backbone = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    model = BranchyModel(backbone, {"tap": ExitBranch(4)})
    said = r"fixed shapes, but for the batch. Received.*\(None, None, None, 3\).*Build"
    with pytest.raises(ValueError, match=said):
        model.export_stages(tmp_path / "out", verbose=0)
    data = np.zeros((2, 8, 8, 3), np.float32)
    with pytest.raises(
        ValueError, match=r"Received: '.*' of shape \(None, None, None, 3\)"
    ):
        model.export_stages(tmp_path / "out", verbose=0, representative_data=data)


def test_an_input_called_thresholds_is_refused_in_a_cascade(tmp_path):
    inputs = keras.Input((8,), name="thresholds")
    x = layers.Dense(4, name="tap")(inputs)
    backbone = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    model = BranchyModel(backbone, {"tap": ExitBranch(4)})
    with pytest.raises(ValueError, match="has an input 'thresholds' of its own.*Rename"):
        model.export_stages(tmp_path / "out", layout="cascade", verbose=0)


def test_a_model_that_keras_has_quantised_is_refused(tmp_path):
    model = BranchyModel(residual(), {"inside": ExitBranch(4)})
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Dense):
            layer.quantize("int8")
            break
    with pytest.raises(ValueError, match="Keras has quantised cannot.*before quantize"):
        model.export_stages(tmp_path / "out", verbose=0)


def test_another_backend_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="Received: Keras' backend 'jax'. Save the"):
        prepared("residual")[0].export_stages(tmp_path / "out")
