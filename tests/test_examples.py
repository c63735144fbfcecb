# SPDX-License-Identifier: Apache-2.0
"""The examples run, and report what an independent computation finds."""

import importlib
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from project import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A short run on scikit-learn's digits: its printed lines, and where it wrote."""
    out = tmp_path_factory.mktemp("demo")
    command = ["mnist_b_lenet.py", "--data", "digits", "--epochs", "3", "6", "--quick"]
    done = subprocess.run(
        [sys.executable, *command, "--out", str(out)],
        cwd=EXAMPLES,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), out


@pytest.fixture(scope="session")
def report(demo):
    return json.loads((demo[1] / "report.json").read_text("utf-8"))


@pytest.fixture
def mnist_data(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("mnist_data")


def test_the_demo_leaves_a_model_a_report_and_figures(demo):
    assert {path.name for path in demo[1].iterdir()} == {
        *("b_lenet.keras", "report.json"),
        *("accuracy_against_cost.png", "exit_shares.png", "contact_sheet.png"),
    }
    for figure in demo[1].glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 5000


def test_the_demo_shows_one_readable_line_per_epoch_and_one_table(demo):
    lines = demo[0]
    epochs = [line for line in lines if "  epoch " in line]
    assert len(epochs) == 3 + 6 + 6 and max(map(len, lines)) <= 100
    assert "exit_1 " in epochs[-1] and "exit_2 " in epochs[-1]
    assert sum("plain LeNet" in line and "B-LeNet" in line for line in lines) == 1


def test_the_report_is_complete(report):
    assert set(report) == {
        *("data", "seed", "thresholds", "calibration", "test", "cost", "parity"),
        *("time_per_image", "made_with", "seconds"),
    }
    assert "scikit-learn" in report["data"] and report["seed"] == 0
    made_with = report["made_with"]
    assert {"keras", "tensorflow", "numpy", "keras-branchy"} == set(made_with["versions"])
    assert made_with["processor"] and made_with["cores"] >= 1 and made_with["date"]
    for taken in report["time_per_image"].values():
        for contestant in ("plain", "staged"):
            low, high = taken[contestant]["quartiles"]
            assert 0 < low <= taken[contestant]["median"] <= high
        ratio = taken["plain"]["median"] / taken["staged"]["median"]
        assert taken["times_as_fast"]["median"] == pytest.approx(ratio)


def test_the_report_finds_staged_inference_equal_to_the_rule(report):
    assert len(report["parity"]) == 6
    assert report["parity"][0]["thresholds"] == report["thresholds"]
    for row in report["parity"]:
        assert row["images"] == 400 and row["mismatches"] == 0


def test_an_exit_that_calibration_disables_is_reported_too(monkeypatch, rng):
    monkeypatch.syspath_prepend(EXAMPLES)
    evidence = importlib.import_module("evidence")
    from keras_branchy import networks

    model, plain = networks.b_lenet(), networks.b_lenet(backbone_only=True)
    model.thresholds = [None]
    images = rng.random((8, 28, 28, 1), np.float32)
    first = evidence.parity(model, images)[0]
    assert first["mismatches"] == first["near_threshold"] == 0
    taken = evidence.compare(plain, model, images, size=2, rounds=1)
    assert taken["staged"]["measurements"] == 1


def test_the_report_is_true_of_the_model_that_was_saved(demo, report, mnist_data):
    import keras

    from keras_branchy import BranchyModel

    model = keras.models.load_model(demo[1] / "b_lenet.keras")
    assert isinstance(model, BranchyModel) and model.thresholds == report["thresholds"]
    images, labels = mnist_data.sklearn_digits().test
    given = model.predict(images, verbose=0)
    entropy = -np.sum(given["exit_1"] * np.log(given["exit_1"] + 1e-30), -1)
    early = entropy < report["thresholds"][0]
    answers = np.where(early, given["exit_1"].argmax(-1), given["exit_2"].argmax(-1))
    # One image in 400 may be at the threshold, where probabilities round differently.
    assert report["test"]["staged"] == pytest.approx(np.mean(answers == labels), abs=0.003)
    assert report["test"]["exit_shares"][0] == pytest.approx(early.mean(), abs=0.003)
    for name, accuracy in report["test"]["exits"].items():
        right = np.mean(given[name].argmax(-1) == labels)
        assert accuracy == pytest.approx(right, abs=0.003)


def test_the_report_counts_heads_and_leaves_them_out(report):
    share = report["test"]["exit_shares"][0]
    expected = report["cost"]["expected_macs"]
    assert report["cost"]["plain_macs"] == 1_140_070
    assert expected["heads_left_out"] == pytest.approx(
        share * 112_500 + (1 - share) * 1_140_070
    )
    assert expected["heads_counted"] == pytest.approx(expected["heads_left_out"] + 107_650)


def test_the_digits_are_split_without_overlap(mnist_data):
    data = mnist_data.sklearn_digits()
    images = np.concatenate([data.train[0], data.valid[0], data.test[0]])
    assert images.shape == (1797, 28, 28, 1) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 1
    assert images[:, :2].max() == 0 and images[:, -2:].max() == 0
    np.testing.assert_array_equal(images[:, 2:26:3, 2:26:3], images[:, 4:26:3, 4:26:3])
    counts = np.bincount(np.concatenate([data.train[1], data.valid[1], data.test[1]]))
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(counts, np.bincount(load_digits().target))


@pytest.fixture
def no_mnist(mnist_data, monkeypatch, tmp_path):
    """A TFDS data directory without MNIST in it."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist", data_dir=str(tmp_path))
    monkeypatch.setattr(tfds, "builder", lambda name: builder)
    return mnist_data


def refuse(*args, **kwargs):
    raise OSError("no route to host")


def hang(*args, **kwargs):
    time.sleep(60)


@pytest.mark.parametrize(
    "answer, reason", [(refuse, "no route to host"), (hang, "no answer in 1 seconds")]
)
def test_without_data_and_network_it_says_so_and_takes_the_digits(
    no_mnist, monkeypatch, capsys, answer, reason
):
    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(no_mnist, "PATIENCE_SECONDS", 1)
    started = time.perf_counter()
    data = no_mnist.load()
    assert time.perf_counter() - started < 5 and data.name == "digits"
    printed = capsys.readouterr().out
    assert "MNIST cannot be had" in printed and reason in printed
    assert "scikit-learn's digits instead" in printed


def test_the_whole_probe_is_over_within_ten_seconds(mnist_data):
    assert mnist_data.PATIENCE_SECONDS <= 8


def test_mnist_is_not_replaced_where_it_is_asked_for(no_mnist, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(SystemExit, match="MNIST cannot be had"):
        no_mnist.load("mnist")


def test_with_a_network_mnist_is_left_to_tfds(no_mnist, monkeypatch):
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: None)
    assert no_mnist.obstacle_to_mnist() is None


def test_prepared_data_is_not_asked_of_the_network(mnist_data, monkeypatch):
    import tensorflow_datasets as tfds

    class Prepared:
        def is_prepared(self):
            return True

    monkeypatch.setattr(tfds, "builder", lambda name: Prepared())
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert mnist_data.obstacle_to_mnist() is None


def test_mnist_is_split_and_scaled(mnist_data):
    """Where MNIST is at hand; elsewhere its place is taken by the digits."""
    import tensorflow_datasets as tfds

    if not tfds.builder("mnist").is_prepared():
        pytest.skip("MNIST is not at hand: `tfds build mnist` prepares it")
    data = mnist_data.mnist()
    sizes = [len(labels) for _, labels in (data.train, data.valid, data.test)]
    assert sizes == [50_000, 10_000, 10_000]
    assert data.test[0].shape == (10_000, 28, 28, 1)
    assert data.train[0].max() == 1 and data.train[0].dtype == np.float32
    # How often each digit is in the test set, as its authors publish it.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(data.test[1]).tolist() == counts
    # The published mean of MNIST's training images.
    mean = (data.train[0].mean() * 5 + data.valid[0].mean()) / 6
    assert mean == pytest.approx(0.1307, abs=1e-4)
