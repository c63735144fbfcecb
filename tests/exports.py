# SPDX-License-Identifier: Apache-2.0
"""Exported models that several tests look at, each written once."""

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from cases import MODELS, NETWORKS

from keras_branchy.export.decisions import score_all
from keras_branchy.scoring import all_logits

CASES = {case.name: case for case in [*MODELS, *NETWORKS]}
SAMPLES = 60


@dataclass(frozen=True)
class Export:
    """A model, samples, the answers of Keras, and where its files are."""

    model: Any
    x: Any
    y: np.ndarray
    answer: Any
    folder: Path
    manifest: dict


@functools.cache
def root():
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def prepared(name):
    """A model of the table at thresholds by which a part of the samples leaves."""
    keras.utils.set_random_seed(7)
    rng = np.random.default_rng(7)
    keras.layers.Dense(1)  # the first automatic name, which a case uses itself
    case = CASES[name]
    model = case.make()
    x = case.samples(SAMPLES, rng)
    y = rng.integers(0, model.num_classes, SAMPLES)
    if model.patience is None and all(branch.activation for branch in model.branches):
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(x, y, epochs=2, verbose=0)
    model.thresholds = medians(model, x)
    return model, x, y, model.predict_early(x, verbose=0)


def medians(model, x):
    """Thresholds in the widest gap about the middle, so that rounding moves nobody."""
    logits, _ = all_logits(model, x, verbose=0)
    scores, _ = score_all(np.stack(logits), model.criteria, model.gates)
    return [float(middle_of_gap(row)) for row in scores[:-1]]


def middle_of_gap(row):
    ordered = np.sort(row)[len(row) * 3 // 8 : len(row) * 5 // 8]
    widest = np.diff(ordered).argmax()
    return ordered[widest : widest + 2].mean()


@functools.cache
def exported(name, with_data=False, **options):
    """Exports a model of the table; with_data gives samples and labels along."""
    model, x, y, answer = prepared(name)
    folder = root() / f"{len(list(root().iterdir()))}"
    data = (x, y) if with_data else None
    manifest = model.export_stages(folder, representative_data=data, verbose=0, **options)
    return Export(model, x, y, answer, folder, manifest)


def rows(x, which):
    """The samples `which` of arrays in any structure."""
    return keras.tree.map_structure(lambda array: array[which], x)
