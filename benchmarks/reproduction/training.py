# SPDX-License-Identifier: Apache-2.0
"""Trainings that survive being killed, and are not repeated once they are done.

Each has a name and a folder: `settings.json` says what it depends on, `epochs.jsonl` grows
by a line an epoch, Keras' own BackupAndRestore keeps the state after every epoch, and
`model.keras` is the trained network in float32. Where the settings change, the training
begins anew.
"""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import keras
import numpy as np

LOSS = "sparse_categorical_crossentropy"


class Trainer:
    """Trains networks into one folder, or finds them there.

    Args:
        store: The folder.
        until: Seconds on `time.monotonic` after which no further epoch begins; the call
            then ends with `OutOfTime`, and the next goes on from there.
    """

    def __init__(self, store, until=float("inf")):
        self.store = Path(store)
        self.until = until

    def trained(
        self, name, build, data, epochs, *, schedule, seed, start=None, **compile_as
    ):
        """The network `build()`, trained for some epochs.

        Args:
            name: Of the training, and of its folder.
            build: Makes the network, compiled by nobody; called under the dtype policy.
            data: A `data.Data`, or `features.Features`.
            epochs: How many.
            schedule: A `Schedule`: batch size, learning rate, dtype.
            seed: Of weights, order and dropout.
            start: `start(network)` gives it weights, or freezes some, before it trains.
            **compile_as: For `compile`, beside the optimizer: `loss_weights`, `loss`.

        Returns:
            The trained network, float32.
        """
        folder = self.store / name
        settings = {
            "data": data.describe(),
            "epochs": epochs,
            "seed": seed,
            "schedule": schedule.to_json(),
            "compile": {key: described(value) for key, value in compile_as.items()},
        }
        self._check(folder, settings)
        if not (folder / "model.keras").exists():
            keras.utils.set_random_seed(seed)
            with policy(schedule.dtype):
                model = build()
            if start is not None:
                start(model)
            self._fit(model, name, folder, data, epochs, schedule, compile_as)
            save(in_float32(model, build), folder / "model.keras")
            shutil.rmtree(folder / "state", ignore_errors=True)
        return keras.models.load_model(folder / "model.keras", compile=False)

    def _check(self, folder, settings):
        """Empties a folder that another training has left, and says so."""
        path = folder / "settings.json"
        if path.exists() and json.loads(path.read_text("utf-8")) != settings:
            print(f"{folder.name}: its settings have changed, so it is trained anew.")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")

    def _fit(self, model, name, folder, data, epochs, schedule, compile_as):
        some = data.first(schedule.images)
        images, labels = some.train
        rate = schedule.learning_rate
        if schedule.cosine:
            steps = epochs * -(-some.count // schedule.batch_size)
            rate = keras.optimizers.schedules.CosineDecay(rate, steps)
        model.compile(
            keras.optimizers.Adam(rate),
            **{"loss": LOSS, "metrics": ["accuracy"], **compile_as},
        )
        # The order of these: the state is saved before the clock may end the call.
        watched = [
            keras.callbacks.BackupAndRestore(
                str(folder / "state"), delete_checkpoint=False
            ),
            EpochLine(name, folder / "epochs.jsonl", epochs),
            Clock(self.until),
        ]
        given = {"x": images, "y": labels, "batch_size": schedule.batch_size}
        if schedule.shift:
            given = {"x": Moved(images, labels, schedule)}
        model.fit(
            **given,
            epochs=epochs,
            validation_data=data.valid,
            validation_batch_size=1000,
            callbacks=watched,
            verbose=0,
        )


def described(value):
    """Text that says the same in every process, where `repr` may hold an address."""
    if isinstance(value, dict):
        return {key: described(one) for key, one in value.items()}
    if hasattr(value, "get_config"):
        return f"{type(value).__name__} {value.get_config()}"
    return repr(value)


class Moved(keras.utils.PyDataset):
    """Batches in random order, each image moved by up to `schedule.shift` pixels.

    What moves in is zero. The order and the moves come from NumPy's global generator.
    """

    def __init__(self, images, labels, schedule):
        super().__init__()
        self.images, self.labels = images, labels
        self.size, self.most = schedule.batch_size, schedule.shift
        self.order = np.random.permutation(len(labels))

    def __len__(self):
        return -(-len(self.labels) // self.size)

    def __getitem__(self, index):
        some = self.order[index * self.size : (index + 1) * self.size]
        return self.moved(self.images[some]), self.labels[some]

    def on_epoch_end(self):
        self.order = np.random.permutation(len(self.labels))

    def moved(self, images):
        most, (count, rows, columns) = self.most, images.shape[:3]
        padded = np.pad(images, [(0, 0), (most, most), (most, most), (0, 0)])
        down, right = np.random.randint(0, 2 * most + 1, (2, count, 1))
        at = np.arange(count)[:, None, None]
        return padded[
            at,
            (down + np.arange(rows))[:, :, None],
            (right + np.arange(columns))[:, None, :],
        ]


class OutOfTime(Exception):
    """No further epoch may begin; what was trained is kept."""


class Clock(keras.callbacks.Callback):
    """Ends a training between two epochs once it is time."""

    def __init__(self, until):
        super().__init__()
        self.until = until

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 < self.params["epochs"] and time.monotonic() > self.until:
            raise OutOfTime


class EpochLine(keras.callbacks.Callback):
    """A line an epoch, for a person and, in a file, for later."""

    def __init__(self, name, path, epochs):
        super().__init__()
        self.name, self.path, self.epochs = name, path, epochs

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.started
        given = {key: float(value) for key, value in (logs or {}).items()}
        row = {"epoch": epoch + 1, "seconds": round(seconds, 1), **given}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shown = "  ".join(
            f"{key[4:-8].strip('_') or 'valid'} {100 * value:.2f} %"
            for key, value in sorted(given.items())
            if key.startswith("val_") and key.endswith("accuracy")
        )
        print(
            f"{self.name}  epoch {epoch + 1}/{self.epochs}  loss {given['loss']:.4f}  "
            f"{shown}  {seconds:.1f} s",
            flush=True,
        )


def in_float32(model, build):
    """The same weights in a network that computes in float32."""
    with policy("float32"):
        copy = build()
    copy.set_weights(model.get_weights())
    return copy


def copy_weights(source):
    """For `start=`: gives a network the weights of the layers that `source` has too."""

    def start(model):
        names = {layer.name for layer in model.layers}
        shared = [layer for layer in source.layers if layer.name in names]
        if not any(layer.weights for layer in shared):
            raise ValueError(
                f"{source.name} and {model.name} have no layer with weights in common."
            )
        for layer in shared:
            model.get_layer(layer.name).set_weights(layer.get_weights())

    return start


def freeze_all_but(model, names):
    """Before `compile`: only the layers of these names train."""
    for layer in model.layers:
        layer.trainable = layer.name in names


@contextlib.contextmanager
def policy(name):
    before = keras.dtype_policies.get(keras.config.dtype_policy())
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def save(model, path):
    """As a whole or not at all."""
    beside = path.with_name("part.keras")
    model.save(beside)
    os.replace(beside, path)
