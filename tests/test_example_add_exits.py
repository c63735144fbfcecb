# SPDX-License-Identifier: Apache-2.0
"""The example that readers copy: it runs, says on what, and its figures are true."""

import importlib.util
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from project import ROOT

SCRIPT = ROOT / "examples" / "add_exits_to_your_model.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("add_exits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(include_top, weights, pooling, input_shape):
    """An application as keras.applications has them, whose weights cannot be had."""
    if weights == "imagenet":
        raise OSError("no route to host")
    assert (include_top, pooling) == (False, "avg")
    x = inputs = keras.Input(input_shape)
    for width in (4, 8, 8, 8):
        x = keras.layers.Conv2D(width, 3, padding="same")(x)
        x = keras.layers.BatchNormalization(momentum=0.999)(x)
        x = keras.layers.MaxPooling2D()(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def pretrained(include_top, weights, pooling, input_shape):
    """An application whose weights are at hand."""
    assert weights in ("imagenet", None)
    base = tiny(include_top, None, pooling, input_shape)
    if weights:
        rng = np.random.default_rng(3)
        base.set_weights([rng.random(w.shape) for w in base.get_weights()])
    return base


# The module that the example looks for their way to scale pixels in.
tiny.__module__ = pretrained.__module__ = __name__


def preprocess_input(images):
    return images / 127.5 - 1.0


OPTIONS = ["--model", "Tiny", "--data", "digits", "--size", "16", "--images", "400"]


def run(example, monkeypatch, application, *options):
    monkeypatch.setattr(keras.applications, "Tiny", application, raising=False)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *OPTIONS, *map(str, options)])
    example.main()


def test_the_example_prints_what_is_true_of_the_model_that_it_saves(
    example, monkeypatch, capsys, tmp_path
):
    saved = tmp_path / "model.keras"
    run(example, monkeypatch, tiny, "--epochs", 8, "--save", saved)
    printed = capsys.readouterr().out
    assert "RANDOM weights, since ImageNet's cannot be had (no route to host)" in printed
    model = keras.models.load_model(saved)
    assert len(model.branches) == printed.count("An exit at '") == 2
    images, labels = as_arrays(example.load("digits", 400, 16, preprocess_input)[2])
    answer = model.predict_early(images, verbose=0)
    plain = model.predict(images, verbose=0)["exit_3"].argmax(-1)
    shown = re.search(r"right answers +([\d.]+)% +([\d.]+)%", printed)
    # Shown with one digit; a score at its threshold may fall either way.
    assert float(shown[1]) == pytest.approx(100 * np.mean(plain == labels), abs=0.3)
    assert float(shown[2]) == pytest.approx(100 * np.mean(answer.labels == labels), abs=0.3)
    share = float(re.search(r"each exit: ([\d.]+)%", printed)[1])
    assert share == pytest.approx(100 * np.mean(answer.exits == 0), abs=0.3)
    assert float(shown[1]) > 30  # digits are learnt: chance is 10
    trainable = {variable.path.split("/")[0] for variable in model.trainable_variables}
    assert trainable == {"exit_1", "exit_2"}


def as_arrays(batches):
    images, labels = zip(*batches.unbatch(), strict=True)
    return np.array(images), np.array(labels)


def test_pretrained_layers_keep_their_weights(example, monkeypatch, capsys, tmp_path):
    saved = tmp_path / "model.keras"
    run(example, monkeypatch, pretrained, "--epochs", 1, "--save", saved)
    printed = capsys.readouterr().out
    assert "Tiny with ImageNet's weights." in printed and "RANDOM" not in printed
    kept = keras.models.load_model(saved).get_weights()
    for weights in pretrained(False, "imagenet", "avg", (16, 16, 3)).get_weights():
        assert any(np.array_equal(weights, found) for found in kept)


def test_images_come_scaled_and_in_another_order_in_each_epoch(example):
    from sklearn.datasets import load_digits

    def untouched(images):
        return images

    parts = example.load("digits", 200, 8, untouched)
    first, again = (as_arrays(parts[0])[0] for _ in range(2))
    assert first.shape == (200, 8, 8, 3) and first.max() == 255 and first.min() == 0
    # Single images move from batch to batch: a batch of the second epoch has images of
    # several of the first.
    rows = {image.tobytes(): row for row, image in enumerate(first)}
    places = [rows[image.tobytes()] // example.BATCH_SIZE for image in again]
    assert len(set(places[: example.BATCH_SIZE])) > 1
    everything = {tuple(row) for row in load_digits().data.astype(int)}
    seen = [as_arrays(part)[0] for part in example.load("digits", 2000, 8, untouched)]
    assert [len(part) for part in seen] == [1097, 300, 400]
    for part in seen:
        found = {tuple(row) for row in np.rint(part[..., 0] * 16 / 255).astype(int)
                 .reshape(-1, 64)}  # fmt: skip
        assert found <= everything


class Source:
    """CIFAR-10's builder in TFDS, with or without data."""

    data_dir_root = "nowhere"

    def __init__(self, prepared):
        self.prepared, self.asked = prepared, None

    def is_prepared(self):
        return self.prepared

    def as_dataset(self, split, as_supervised):
        assert as_supervised
        self.asked = split
        return [tf.data.Dataset.range(9)] * 3


@pytest.mark.parametrize("prepared", [False, True])
def test_without_cifar10_it_says_so_and_takes_the_digits(
    example, monkeypatch, capsys, prepared
):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "builder", lambda name: source)
    source = Source(prepared)
    parts = example.cifar10()
    said = "CIFAR-10 is not in nowhere" in capsys.readouterr().out
    assert said is not prepared
    if prepared:
        # What chooses thresholds is not what is trained on.
        assert source.asked == ["train[:-5000]", "train[-5000:]", "test"]
    else:
        assert [len(part) for part in parts] == [1097, 300, 400]


def test_a_model_that_is_not_there_is_named(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--model", "ResNet49"])
    with pytest.raises(SystemExit):
        example.parse_args()
    error = capsys.readouterr().err
    assert "ResNet49" in error and "ResNet50" in error


def test_the_quick_run_is_small(example, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick"])
    args = example.parse_args()
    assert (args.data, args.size, args.epochs) == ("digits", 32, 4)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick", "--size", "48"])
    assert example.parse_args().size == 48


@pytest.mark.long
@pytest.mark.parametrize("model", ["MobileNetV2", "ResNet50", "EfficientNetV2B0"])
def test_it_runs_for_models_of_keras_applications(model):
    options = ["--quick", "--model", model, "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("An exit at '") == 2 and "leave at each exit" in done.stdout
