# SPDX-License-Identifier: Apache-2.0
"""manifest.json: what it says, and that nothing damaged passes."""

import copy
import hashlib
import json
import shutil

import jsonschema
import numpy as np
import pytest
from exports import exported
from project import PACKAGE, ROOT

import keras_branchy
from keras_branchy import StageRunner, cost
from keras_branchy.runner.consistency import check_consistency
from keras_branchy.runner.manifest import MANIFEST, Manifest, schema, sealed
from keras_branchy.runner.schema import violations


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(exported("residual").folder, tmp_path / "out")


def good():
    return copy.deepcopy(exported("residual").manifest)


def rewritten(folder, change):
    """A manifest that says something else, with the right hash of its own."""
    data = json.loads((folder / MANIFEST).read_text("utf-8"))
    change(data)
    (folder / MANIFEST).write_bytes(sealed(data))


def test_it_says_how_the_stages_are_run():
    export = exported("residual")
    data, model = good(), export.model
    assert data["format"] == "litert" and data["layout"] == "stages"
    assert [row["name"] for row in data["exits"]] == model.exit_names
    assert [row["threshold"] for row in data["exits"]] == [*model.thresholds, None]
    assert data["exits"][0]["leaves_if"] == "score < threshold"
    assert data["exits"][-1]["leaves_if"] == "always"
    costs = cost.stage_costs(model)
    for row, stage, price in zip(data["stages"], model.stages(), costs, strict=True):
        made = {tensor["name"] for tensor in row["call"]["outputs"]}
        assert made == {"logits", *stage.output_names}
        read = {tensor["name"]: tensor for tensor in row["call"]["inputs"]}
        assert set(read) == set(stage.input_names)
        for name, tensor in stage.model.input.items():
            assert read[name]["shape"] == [1, *tensor.shape[1:]]
            assert read[name]["dtype"] == tensor.dtype
        assert row["live"] == list(stage.live)
        assert row["bytes_carried"] == price.bytes_carried
        assert row["macs"] == price.trunk_macs + price.head_macs
    for row in data["files"]:
        content = (export.folder / row["name"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert data["self_check"]["exits_differ"] == data["self_check"]["nan"] == 0


def test_a_threshold_comes_back_to_the_last_bit():
    export = exported("residual")
    assert StageRunner(export.folder).thresholds == export.model.thresholds


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(schema())
    packaged = (PACKAGE.parent / "setup.py").read_text("utf-8")
    assert "runner/manifest.schema.json" in packaged


@pytest.mark.parametrize("name", ["residual", "patience"])
def test_what_is_written_follows_the_schema(name):
    layout = "cascade" if name == "patience" else "stages"
    export = exported(name, layout=layout)
    data = json.loads((export.folder / MANIFEST).read_text("utf-8"))
    jsonschema.Draft202012Validator(schema()).validate(data)
    assert list(violations(data, schema())) == []
    assert list(check_consistency(data)) == []


def spoiled(data, rng):
    """The data with one value anywhere replaced, removed or added."""
    place = data
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[rng.integers(len(keys))]
        value = place[key]
        if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
            place = value
            continue
        how = rng.integers(4)
        if how == 0:
            del place[key]
        elif how == 1 and isinstance(place, dict):
            place["another"] = 1
        else:
            odd = [None, True, -1, 0.5, 3.0, "x", "", [], {}, 10**400, "\0"]
            place[key] = odd[rng.integers(len(odd))]
        return


def test_the_schema_is_checked_as_jsonschema_checks_it(rng):
    reference = jsonschema.Draft202012Validator(schema())
    whole = {**good(), "sha256": "0" * 64}
    refused = 0
    for _ in range(600):
        data = copy.deepcopy(whole)
        spoiled(data, rng)
        found = list(violations(data, schema()))
        assert bool(found) == (not reference.is_valid(data)), (found, data)
        refused += bool(found)
        list(check_consistency(data))  # says what it can, and never fails
    assert 300 < refused < 600


def test_a_keyword_that_would_be_passed_over_is_refused():
    with pytest.raises(NotImplementedError, match=r"\['oneOf'\]. Expected.*Add their"):
        list(violations(1, {"oneOf": []}))


def test_a_missing_folder_manifest_or_file(folder):
    with pytest.raises(FileNotFoundError, match="no such folder.*nowhere.*Expected"):
        StageRunner(folder / "nowhere")
    (folder / "stage_2.tflite").unlink()
    with pytest.raises(FileNotFoundError, match="names 'stage_2.tflite', which is missing"):
        StageRunner(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="holds no manifest.json.*Expected"):
        StageRunner(folder)


def test_a_truncated_or_changed_file(folder):
    path = folder / "stage_1.tflite"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    said = f"truncated or was replaced. Received: {len(content) - 5} bytes. Expected"
    with pytest.raises(ValueError, match=said):
        StageRunner(folder)
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(ValueError, match="not the file that was exported.*sha256.*Copy"):
        StageRunner(folder)


def test_a_truncated_or_changed_manifest(folder):
    path = folder / MANIFEST
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(ValueError, match="truncated, or export_stages did not.*Copy it"):
        StageRunner(folder)
    path.write_bytes(content.replace(b'"patience": null', b'"patience": 2', 1))
    with pytest.raises(ValueError, match="changed after the export.*pass them to the ru"):
        StageRunner(folder)


@pytest.mark.parametrize("version", [2, None, "1"])
def test_an_unknown_version(folder, version):
    rewritten(folder, lambda data: data.update(manifest_version=version))
    said = rf"version {version!r}. Expected: 1. Upgrade keras-branchy"
    with pytest.raises(ValueError, match=said):
        StageRunner(folder)


OUTSIDE = ["../stage_1.tflite", "/stage_1.tflite", "a/../../b", "C:\\x", "..\\x"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_outside_the_folder(folder, name):
    def change(data):
        data["files"][0]["name"] = data["stages"][0]["call"]["file"] = name

    rewritten(folder, change)
    with pytest.raises(ValueError, match="lies outside the folder. Export again"):
        StageRunner(folder)


def test_a_link_out_of_the_folder(folder, tmp_path):
    outside = tmp_path / "elsewhere.tflite"
    (folder / "stage_1.tflite").rename(outside)
    (folder / "stage_1.tflite").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of the folder.*Copy the file itself"):
        StageRunner(folder)


def swap(data, key, value):
    data[key] = value


CONTRADICTIONS = {
    "another unit": lambda d: d["exits"][0].update(unit="probability"),
    "another sign": lambda d: d["exits"][0].update(leaves_if="score >= threshold"),
    "a last exit with a threshold": lambda d: d["exits"][-1].update(threshold=0.5),
    "an exit twice": lambda d: d["exits"][0].update(name="exit_2"),
    "stages in another order": lambda d: d["stages"].reverse(),
    "a file twice": lambda d: d["files"].append(d["files"][0]),
    "a file that is not listed": lambda d: d["files"].pop(),
    "a stage without a call": lambda d: d["stages"][0].update(call=None),
    "a cascade without one": lambda d: swap(d, "layout", "cascade"),
    "a tensor from nowhere": lambda d: d["stages"][1]["call"]["inputs"][0].update(name="q"),
    "another shape": lambda d: d["stages"][1]["call"]["inputs"][0].update(shape=[1, 2]),
    "no logits": lambda d: d["stages"][0]["call"].update(
        outputs=[t for t in d["stages"][0]["call"]["outputs"] if t["name"] != "logits"]
    ),
    "other classes": lambda d: swap(d, "num_classes", 5),
    "too few names": lambda d: swap(d, "class_names", ["a"]),
    "thresholds that are none": lambda d: swap(d, "calibrated", False),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself(folder, what):
    rewritten(folder, CONTRADICTIONS[what])
    said = "does not describe an exported model. Received.*where .*Export again"
    with pytest.raises(ValueError, match=said):
        StageRunner(folder)


def test_a_cascade_that_does_not_fit():
    data = copy.deepcopy(exported("patience", layout="cascade").manifest)
    assert list(check_consistency(data)) == []
    inputs = data["cascade"]["inputs"]
    limits = next(row for row in inputs if row["name"] == "thresholds")
    limits["shape"] = [2]
    assert "one threshold for each exit" in next(check_consistency(data))
    inputs.remove(limits)
    assert "the cascade reads" in next(check_consistency(data))
    data["cascade"]["outputs"].pop()
    assert any("the cascade gives" in said for said in check_consistency(data))


def test_a_file_that_litert_cannot_open(folder):
    junk = b"TFL3" + bytes(range(256)) * 8
    (folder / "stage_1.tflite").write_bytes(junk)

    def change(data):
        row = next(row for row in data["files"] if row["name"] == "stage_1.tflite")
        row.update(bytes=len(junk), sha256=hashlib.sha256(junk).hexdigest())

    rewritten(folder, change)
    said = "LiteRT cannot open 'stage_1.tflite'. Received.*upgrade ai-edge-litert"
    with pytest.raises(ValueError, match=said):
        StageRunner(folder)


def test_another_format_is_not_run(folder):
    rewritten(folder, lambda data: data.update(format="onnx"))
    with pytest.raises(ValueError, match="runs LiteRT files. Received.*'onnx'.*Expected"):
        StageRunner(folder)


def damaged(content, rng):
    """Bytes with one flipped, or with an end cut off."""
    place = int(rng.integers(len(content)))
    if rng.random() < 0.3:
        return content[:place]
    flipped = content[place] ^ (1 << int(rng.integers(8)))
    return content[:place] + bytes([flipped]) + content[place + 1 :]


def survive_damage(folder, rounds, rng):
    files = sorted(path for path in folder.iterdir() if path.is_file())
    originals = {path: path.read_bytes() for path in files}
    for _ in range(rounds):
        path = files[rng.integers(len(files))]
        path.write_bytes(damaged(originals[path], rng))
        with pytest.raises(ValueError, match="Received"):
            Manifest.load(folder)
        path.write_bytes(originals[path])
    assert Manifest.load(folder).data["model"]


def test_damage_is_refused_before_an_interpreter_sees_it(folder, rng):
    survive_damage(folder, 400, rng)


@pytest.mark.long
def test_ten_thousand_damages_are_refused(folder, rng):
    survive_damage(folder, 10_000, rng)


def test_numbers_that_json_does_not_know_are_not_written():
    assert not np.isnan(json.loads(sealed(good()))["exits"][0]["threshold"])


FIXTURES = sorted((ROOT / "tests" / "fixtures").glob("v*_export.npz"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize("layout", ["stages", "cascade"])
def test_exports_of_earlier_versions_run(path, layout):
    folder = path.with_name(path.stem.replace("export", layout))
    saved, runner = np.load(path), StageRunner(folder)
    answer = runner.predict(saved["x"])
    np.testing.assert_array_equal(answer.exits, saved["exits"])
    np.testing.assert_array_equal(answer.labels, saved["labels"])
    # Another release of LiteRT may sum in another order.
    np.testing.assert_allclose(answer.probabilities, saved["probabilities"], atol=1e-4)
    np.testing.assert_allclose(answer.scores, saved["scores"], atol=1e-4)
    assert runner.class_names == ["a", "b", "c", "d"]


def test_there_is_an_export_of_this_version():
    version = keras_branchy.__version__
    assert f"v{version}_export" in {path.stem for path in FIXTURES}, (
        "python tests/fixtures/write_export.py"
    )
