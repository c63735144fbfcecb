# SPDX-License-Identifier: Apache-2.0
"""Each mistake on the command line gets a message that helps, and no traceback."""

import importlib
import json
import re
import sys
import warnings
import zipfile
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from cli_workflow import answer, run, workplace
from project import fresh_python

from keras_branchy import BranchyModel, ExitBranch
from keras_branchy.cli import budget

DROP = ("--max-accuracy-drop", "0.01")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory)


def mistake(*arguments, code=1):
    """What stderr says, as one line."""
    out, told = run(*arguments, code=code)
    assert "Traceback" not in out + told
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", told).split())


def npz(folder, **arrays):
    path = folder / "some.npz"
    np.savez(path, **arrays)
    return path


# ---- Models --------------------------------------------------------------------------
def test_no_model(tmp_path):
    told = mistake("inspect", tmp_path / "none.keras")
    assert "There is no model. Received:" in told and "model.save('model.keras')" in told


def test_a_name_that_is_nearly_right(place, tmp_path):
    told = mistake("inspect", place.model.with_name("modle.keras"))
    assert "modle.keras. Did you mean model.keras?" in told
    told = mistake("calibrate", place.model, place.data.with_name("dat.npz"), *DROP)
    assert "dat.npz. Did you mean data.npz?" in told
    told = mistake("inspect", tmp_path / "no" / "model.keras")
    assert f"There is no folder {tmp_path / 'no'} either" in told


def test_a_file_of_another_format(tmp_path):
    other = tmp_path / "model.h5"
    other.write_bytes(b"\x89HDF")
    assert "a file of another format. Load it in Python" in mistake("inspect", other)
    assert "a folder" in mistake("inspect", tmp_path)


def test_an_archive_that_is_no_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("a.txt", "nothing")
    assert "Keras cannot load" in mistake("inspect", tmp_path / "x.keras")


def test_code_in_a_file_is_never_run(tmp_path):
    inputs = keras.Input((4,))
    x = keras.layers.Lambda(lambda x: x * 2, output_shape=(4,))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    model.save(tmp_path / "code.keras")
    told = mistake("inspect", tmp_path / "code.keras")
    assert "holds code (a Lambda layer), which is never run" in told
    assert "safe_mode=False" not in told


OWN = """
import keras

@keras.saving.register_keras_serializable(package="own")
class Twice(keras.layers.ReLU):
    pass
"""


def save_with_own_layer(folder):
    """Writes own_layers.py, and a model of it; the class is forgotten again."""
    (folder / "own_layers.py").write_text(OWN, "utf-8")
    sys.path.insert(0, str(folder))
    own_layers = importlib.import_module("own_layers")
    inputs = keras.Input((6, 6, 1))
    x = own_layers.Twice()(keras.layers.Conv2D(3, 3)(inputs))
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(x))
    keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x)).save(
        folder / "own.keras"
    )
    sys.path.remove(str(folder))
    del sys.modules["own_layers"]
    del keras.saving.get_custom_objects()["own>Twice"]


def test_an_own_layer_needs_its_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    save_with_own_layer(tmp_path)
    told = mistake("inspect", "own.keras")
    assert "uses a class that Keras does not know" in told and "--import its module" in told
    assert "names a Python module" in mistake("inspect", "own.keras", "--import", "nothing")
    found = answer("inspect", "own.keras", "--import", "own_layers")
    assert found["kind"] == "backbone"


def test_a_model_without_exits(place):
    for command in ("calibrate", "evaluate", "bench"):
        options = DROP if command == "calibrate" else ()
        told = mistake(command, place.plain, place.data, *options)
        assert "takes a BranchyModel. Received:" in told
        assert "keras-branchy inspect" in told


def test_a_model_without_thresholds(place):
    for command in ("evaluate", "bench"):
        told = mistake(command, place.model, place.data)
        assert "has no thresholds yet" in told and "keras-branchy calibrate" in told


def test_a_model_whose_gates_have_learned_nothing(place, tmp_path):
    model = BranchyModel(
        keras.saving.load_model(place.plain), {"early": ExitBranch(3, criterion="learned")}
    )
    model.save(tmp_path / "gate.keras")
    told = mistake("calibrate", tmp_path / "gate.keras", place.data, *DROP)
    assert "The gates of exit_1 have learned nothing yet" in told
    assert "Add --fit-gates" in told


def test_profiles_that_are_none(tmp_path):
    model = SimpleNamespace(exit_names=["exit_1", "exit_2"])
    path = tmp_path / "bench.json"

    def costs(size=None):
        return budget.measured_costs(model, path, size, None)

    with pytest.raises(FileNotFoundError, match="no profile. Received: --profile .*bench"):
        costs()
    for text in ("{", '{"a": 1}', '{"batch_sizes": [{"stages": []}]}', "[]"):
        path.write_text(text, "utf-8")
        with pytest.raises(
            ValueError, match="takes what keras-branchy bench --json prints"
        ):
            costs()
    stages = [{"exit_name": "exit_1", "whole_batch_ms": 1.0}]
    path.write_text(json.dumps({"batch_sizes": [{"batch_size": 8, "stages": stages}]}))
    with pytest.raises(ValueError, match=r"is of another model.*exits \['exit_1'\]"):
        costs()
    with pytest.raises(ValueError, match=r"no such batch size.*size 4 with .*has \[8\]"):
        costs(4)
    path.write_text(json.dumps({"batch_sizes": []}))
    with pytest.raises(ValueError, match=r"which has \[\]"):
        costs()


@pytest.mark.parametrize(
    "text, expected",
    [
        (None, (None, False)),
        ("250000", (250_000, False)),
        ("2.5e5", (250_000, False)),
        ("2.5e5 MACs", (250_000, False)),
        ("0.8ms", (0.8, True)),
        ("800us", (pytest.approx(0.8), True)),
        ("800 µs", (pytest.approx(0.8), True)),
        ("1s", (1000, True)),
    ],
)
def test_a_budget_is_macs_or_a_time(text, expected):
    assert budget.budget(text) == expected


def test_figures_that_cannot_be_drawn(place, tmp_path, monkeypatch):
    options = ("--thresholds", "1,1", "--figures")
    (tmp_path / "file").write_text("mine", "utf-8")
    told = mistake("evaluate", place.model, place.data, *options, tmp_path / "file")
    assert "--figures names a folder. Received:" in told
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = mistake("evaluate", place.model, place.data, *options, tmp_path / "new")
    assert "pip install 'keras-branchy[plots]'" in told and not (tmp_path / "new").exists()


def test_thresholds_that_do_not_fit(place):
    told = mistake("evaluate", place.model, place.data, "--thresholds", "0.5")
    assert "Received: 1 entries. Expected 2" in told


# ---- Data ----------------------------------------------------------------------------
def test_no_such_file(place, tmp_path):
    told = mistake("calibrate", place.model, tmp_path / "none.npz", *DROP)
    assert "There is no such file. Received:" in told


def test_an_npz_file_without_labels(place, tmp_path):
    told = mistake("calibrate", place.model, npz(tmp_path, x=place.x), *DROP)
    assert "holds x and the labels y" in told and "without ['y']" in told
    assert "numpy.savez(path, x=…, y=…)" in told


def test_an_npz_file_of_objects_or_of_nothing(place, tmp_path):
    path = npz(tmp_path, x=np.array([{}, 1], object), y=np.arange(2))
    assert "is no .npz file of plain arrays" in mistake(
        "evaluate", place.model, path, "--thresholds", "1,1"
    )
    (tmp_path / "text.npz").write_text("text", "utf-8")
    told = mistake("calibrate", place.model, tmp_path / "text.npz", *DROP)
    assert "is no .npz file of plain arrays" in told


def test_samples_that_are_no_numbers(place, tmp_path):
    path = npz(tmp_path, x=np.full((2, 8, 8, 1), "a"), y=np.arange(2))
    told = mistake("evaluate", place.model, path, "--thresholds", "1,1")
    assert "Samples are numbers. Received:" in told and "dtype <U1" in told


def test_samples_that_look_wrong_are_told(place, tmp_path):
    options = ("--thresholds", "never,never")
    x = place.x[:20].copy()
    x[:3, 0] = np.nan
    _, told = run("evaluate", place.model, npz(tmp_path, x=x, y=place.y[:20]), *options)
    assert "3 of the first 20 samples hold NaN or infinite values" in told
    path = npz(tmp_path, x=np.full((20, 8, 8, 1), 255.0), y=place.y[:20])
    _, told = run("evaluate", place.model, path, *options)
    assert "Samples reach 255. Floats are taken as they are" in told


def test_a_drop_that_is_no_fraction_is_told(place):
    _, told = run("calibrate", place.model, place.data, "--max-accuracy-drop", "1")
    assert "allows 100 points to be lost; one point is 0.01" in told
    _, told = run("calibrate", place.model, place.data, *DROP)
    assert "points to be lost" not in told


def test_samples_and_labels_of_different_numbers(place, tmp_path):
    path = npz(tmp_path, x=place.x, y=place.y[:-1])
    told = mistake("calibrate", place.model, path, *DROP)
    assert "arrays of [599, 600] rows" in told


def test_samples_of_another_shape(place, tmp_path):
    path = npz(tmp_path, x=place.x[:, :5], y=place.y)
    told = mistake("calibrate", place.model, path, *DROP)
    assert "samples of shape (5, 8, 1)" in told and "Expected (8, 8, 1)" in told


def test_labels_that_are_no_classes(place, tmp_path):
    path = npz(tmp_path, x=place.x, y=place.y + 0.5)
    assert "must be class indices" in mistake("calibrate", place.model, path, *DROP)


def test_a_split_of_an_npz_file(place):
    told = mistake("calibrate", place.model, place.data, *DROP, "--split", "test")
    assert "--split names a part of a TensorFlow dataset" in told


def test_too_few_samples_for_a_batch(place, tmp_path):
    out = tmp_path / "cal.keras"
    run("calibrate", place.model, place.data, *DROP, "--out", out)
    told = mistake("bench", out, place.data, "--limit", "10", "--batch-size", "32")
    assert "Received: 10 samples, --batch-size 32. Raise --limit" in told


def test_a_model_of_two_inputs_and_a_dataset_of_one(tmp_path):
    from keras_branchy.cli import samples

    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([a, b], keras.layers.Concatenate()([a, b]))
    with pytest.raises(ValueError, match="has 2 inputs. Received: mnist with one"):
        samples._check_shape(model, (3,), "mnist")
    path = npz(tmp_path, a=np.zeros((4, 3)), y=np.zeros(4))
    with pytest.raises(ValueError, match=r"holds a, b and the labels y.*without \['b'\]"):
        samples._read(path, model)
    path = npz(tmp_path, a=np.zeros((4, 3)), b=np.ones((4, 3)), y=np.zeros(4))
    x, y = samples._read(path, model)
    assert set(x) == {"a", "b"} and x["b"].sum() == 12 and len(y) == 4


# ---- TensorFlow Datasets -------------------------------------------------------------
@pytest.fixture
def known(tmp_path, monkeypatch):
    """A folder of TFDS with a small `mnist`, 8x8, which TFDS knows by that name."""
    tfds = pytest.importorskip("tensorflow_datasets")

    import tensorflow as tf

    def some(count):
        bytes_ = 5 * (np.arange(count) % 51).astype(np.uint8)
        images = np.broadcast_to(bytes_[:, None, None, None], (count, 8, 8, 1))
        rows = {"image": images, "label": np.arange(count) % 3}
        return tf.data.Dataset.from_tensor_slices(rows)

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder = tfds.dataset_builders.store_as_tfds_dataset(
            name="mnist",
            version="9.9.9",
            features=features,
            split_datasets={"train": some(40), "test": some(20)},
            data_dir=str(tmp_path),
        )

    keys = ("image", "label")
    monkeypatch.setattr(tfds.core.DatasetInfo, "supervised_keys", keys)
    found = tfds.builder_from_directory(builder.data_dir)
    monkeypatch.setattr(tfds, "builder", lambda name: found)


def test_a_dataset_by_its_name(place, known):
    found = answer("evaluate", place.model, "mnist", "--thresholds", "0.5,0.5")
    assert found["data"]["source"] == "mnist/9.9.9, test"
    assert found["data"]["samples"] == 20 and found["data"]["pixels"] == "unit"
    part = ("--split", "train[10:]", "--limit", "7", "--pixels", "signed")
    found = answer("evaluate", place.model, "mnist", "--thresholds", "0.5,0.5", *part)
    assert found["data"] == {
        "source": "mnist/9.9.9, train[10:]",
        "samples": 7,
        "pixels": "signed",
    }


def test_pixels_are_scaled_as_training_scripts_do(place, known):
    from keras_branchy.cli.reporting import Report
    from keras_branchy.cli.samples import open_samples
    from keras_branchy.cli.scaling import Pixels

    model = keras.saving.load_model(place.model)

    def taken(pixels, model=model):
        options = dict(split="test", default="", limit=None, pixels=pixels)
        report = Report(False, sys.stdout)
        return open_samples("mnist", model, **options, report=report).arrays()

    raw, labels = taken(Pixels.raw)
    assert raw.dtype == np.uint8 and sorted(labels)[::7] == [0, 1, 2]
    for pixels in (Pixels.auto, Pixels.unit):
        np.testing.assert_array_equal(taken(pixels)[0], raw.astype(np.float32) / 255)
    signed = taken(Pixels.signed)[0]
    np.testing.assert_allclose(signed, raw.astype(np.float32) / 127.5 - 1, atol=1e-6)
    own = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255)])
    np.testing.assert_array_equal(taken(Pixels.auto, own)[0], raw)


def test_calibrating_on_another_split_than_test(place, known):
    told = mistake("calibrate", place.model, "mnist", *DROP)
    assert "--split says which part to use. Received: mnist without it" in told
    assert "train[:10%]" in told
    _, warned = run("calibrate", place.model, "mnist", *DROP, "--split", "test")
    assert "these are test samples" in warned
    _, quiet = run("calibrate", place.model, "mnist", *DROP, "--split", "train")
    assert "these are test samples" not in quiet


def test_a_split_that_is_not_there(place, known):
    told = mistake("calibrate", place.model, "mnist", *DROP, "--split", "valid")
    assert "no such split. Received: --split valid. Expected one of" in told


def test_a_dataset_that_is_not_prepared(place, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    import tensorflow_datasets as tfds

    class Away:
        data_dir_root = tmp_path

        def is_prepared(self):
            return False

    monkeypatch.setattr(tfds, "builder", lambda name: Away())
    told = mistake("evaluate", place.model, "mnist", "--thresholds", "1,1")
    assert "is not on this machine. Received: mnist" in told
    assert "TFDS_DATA_DIR" in told and "t.load('mnist')" in told


def test_a_name_that_nobody_knows(place, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    told = mistake("evaluate", place.model, "no_such_set", "--thresholds", "1,1")
    assert "neither a file nor a dataset that TensorFlow Datasets knows" in told
    told = mistake("evaluate", place.model, "mnst", "--thresholds", "1,1")
    assert "Did you mean mnist?" in told


def test_a_dataset_without_labels():
    from keras_branchy.cli import tfds

    info = SimpleNamespace(supervised_keys=None, full_name="sounds/1.0.0")
    with pytest.raises(ValueError, match="no labels to compare with. Received: sounds"):
        tfds._supervised(SimpleNamespace(info=info), "test", 3)
    info.supervised_keys = ("x", "y")
    with pytest.raises(ValueError, match="The split is empty. Received: --split test"):
        tfds._supervised(SimpleNamespace(info=info), "test", 0)


def test_without_tensorflow_datasets(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    told = mistake("evaluate", place.model, "mnist", "--thresholds", "1,1")
    assert "need tensorflow-datasets" in told and "Or pass an .npz file" in told


# ---- Files to write ------------------------------------------------------------------
@pytest.mark.parametrize(
    "options, message",
    [
        (("--out", "model.h5"), "--out names a .keras file. Received: model.h5. Use model"),
        (("--report", "r.txt"), "--report names a .json file"),
        (("--out", "no/where.keras"), "There is no folder for --out"),
        (("--out", "folder.keras"), "which is a folder"),
    ],
)
def test_places_that_cannot_be_written(place, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.keras").mkdir()
    assert message in mistake("calibrate", place.model, place.data, *DROP, *options)


def test_an_export_over_something_else(place, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    mistake("export", place.model, tmp_path)
    assert (tmp_path / "mine.txt").read_text("utf-8") == "mine"


# ---- Usage: status 2 -----------------------------------------------------------------
@pytest.mark.parametrize(
    "options, message",
    [
        ((), "Expected exactly one target: --max-accuracy-drop, "),
        ((*DROP, "--exit-shares", "1,0"), "--max-accuracy-drop and --exit-shares"),
        (("--confidence", "0.9"), "Received: none"),
        ((*DROP, "--confidence", "sure"), "a probability such as 0.95, or mean"),
        (("--exit-shares", "0.5;1"), "are no numbers with commas between"),
        (("--exit-shares", "0.5,never"), "Expected for example 0.5,0.2"),
        (("--max-accuracy-drop", "2"), "should be less than or equal to 1"),
        ((*DROP, "--limit", "0"), "should be greater than or equal to 1"),
        ((*DROP, "--pixels", "bright"), "is not one of"),
        (("--max-cost", "cheap"), "such as 0.8ms or 800us. Received: 'cheap'"),
        (("--max-cost", "0"), "Received: '0'"),
        (("--max-cost", "-1ms"), "Received: '-1ms'"),
        (("--max-cost", "inf"), "Received: 'inf'"),
        (("--max-cost", "9", "--profile", "b.json"), "--max-cost without a unit"),
        ((*DROP, "--profile-batch-size", "8"), "without --profile or a time in --max-cost"),
    ],
)
def test_usage_of_calibrate(place, options, message):
    assert message in mistake("calibrate", place.model, place.data, *options, code=2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("inspekt",), "No such command 'inspekt'"),
        (("inspect",), "Missing argument 'MODEL'"),
        (("inspect", "x.keras", "--input-shape", "2x2"), "are no whole numbers"),
        (("evaluate", "x.keras", "d.npz", "--thresholds", "a"), "for example 0.05,never"),
        (("export", "x.keras", "out", "--batch-size", "many"), "Received: 'many'"),
        (("export", "x.keras", "out", "--format", "tfjs"), "is not one of"),
        (("export", "x.keras", "out", "--quantization", "int8"), "Received: no --data"),
    ],
)
def test_usage(arguments, message):
    assert message in mistake(*arguments, code=2)


def test_shares_that_cannot_be_met_are_no_usage_error(place):
    told = mistake("calibrate", place.model, place.data, "--exit-shares", "0.9,0.9")
    assert "`exit_shares`" in told


# ---- For machines, for debugging, without the extra ----------------------------------
def test_an_error_is_json_too(tmp_path):
    told = answer("inspect", tmp_path / "none.keras", code=1)
    assert told["error"]["type"] == "FileNotFoundError"
    assert "There is no model" in told["error"]["message"]


def test_debug_shows_where(tmp_path):
    _, told = run("inspect", tmp_path / "none.keras", "--debug", code=1)
    assert "Traceback" in told and "_check_file" in told
    _, told = run("inspect", tmp_path / "none.keras", code=1)
    assert "--debug shows where" in told


def test_a_bug_is_not_called_a_mistake(place, monkeypatch):
    from keras_branchy.cli import inspect

    def broken(*_):
        return {}["no such key"]

    monkeypatch.setattr(inspect, "_inspect", broken)
    with pytest.raises(KeyError):
        run("inspect", place.plain)


def test_a_warning_is_told_once_and_short(place, monkeypatch):
    from keras_branchy.cli import inspect

    def warned(*_):
        warnings.warn("careful", UserWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        print("chatter")
        return {"kind": "none"}

    monkeypatch.setattr(inspect, "_inspect", warned)
    out, told = run("inspect", place.plain, "--json")
    assert "Warning: careful\n" in told and "stacklevel" not in told
    assert "chatter" in told and "chatter" not in out
    assert warnings.showwarning.__module__ != "keras_branchy.cli.reporting"


def test_without_the_extra_it_is_named():
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "sys.stderr = sys.stdout\n"
        "from keras_branchy.cli.entry import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code)"
    )
    told = fresh_python(code)
    assert "pip install 'keras-branchy[cli]'" in told and told.endswith("\n1")


def test_help_needs_neither_tensorflow_nor_keras():
    code = (
        "import sys; sys.argv = ['keras-branchy', 'calibrate', '--help']\n"
        "from keras_branchy.cli.app import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    assert fresh_python(code).endswith("[]")


def test_long_work_shows_itself_in_a_log(monkeypatch, capsys):
    import time

    from keras_branchy.cli import reporting

    monkeypatch.setattr(reporting, "PATIENCE", 0.1)
    monkeypatch.setattr(reporting, "BETWEEN_LINES", 0.15)
    report = reporting.Report(False, sys.stdout)
    with report.doing("Short"):
        pass
    items = report.track(range(4), "Long", 4)
    assert [time.sleep(0.1) or item for item in items] == [0, 1, 2, 3]
    told = capsys.readouterr().err
    assert "Short" not in told
    assert re.search(r"Long \.\.\.\nLong: \d of 4\n(.*\n)*Long: 0\.\d s\n", told), told
