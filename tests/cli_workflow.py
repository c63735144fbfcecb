# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command line share: a tiny trained model, its data, a runner."""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers
from typer.testing import CliRunner

from keras_branchy import BranchyModel, ExitBranch
from keras_branchy.cli.app import app

CLASSES = 3


@dataclass(frozen=True)
class Workplace:
    """Files that a user would have."""

    model: Path  # trained, not calibrated
    plain: Path  # a classifier without exits
    data: Path  # .npz
    x: np.ndarray
    y: np.ndarray


def backbone():
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="early")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", name="late")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x), name="tiny")


def samples(count, seed):
    """Three noisy stripes; some are hard."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    x = rng.normal(0, 1, (count, 8, 8, 1))
    x[np.arange(count), 2 * y + 1] += rng.uniform(0.2, 2.5, (count, 1, 1))
    return x.astype(np.float32), y


def workplace(factory):
    """Made once for all test files, and all processes that run them: it takes seconds."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "cli"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "data.npz").exists():
            make(folder)
    x, y = samples(600, 2)
    return Workplace(
        folder / "model.keras", folder / "plain.keras", folder / "data.npz", x, y
    )


def make(folder):
    keras.utils.set_random_seed(7)
    plain = backbone()
    plain.save(folder / "plain.keras")
    exits = {"early": ExitBranch(CLASSES, criterion="margin"), "late": ExitBranch(CLASSES)}
    model = BranchyModel(plain, exits)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(*samples(1500, 1), epochs=4, verbose=0)
    model.save(folder / "model.keras")
    x, y = samples(600, 2)
    np.savez(folder / "data.npz", x=x, y=y)


def run(*arguments, width=None, code=0):
    """Runs a command line; (stdout, stderr)."""
    env = {} if width is None else {"COLUMNS": str(width)}
    done = CliRunner(env=env).invoke(app, [str(x) for x in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def answer(*arguments, code=0):
    """The JSON that a command prints."""
    return json.loads(run(*arguments, "--json", code=code)[0])
