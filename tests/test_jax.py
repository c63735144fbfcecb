# SPDX-License-Identifier: Apache-2.0
"""Building, training, calibrating and saving on the JAX backend."""

import os
import subprocess
import sys

import keras
import numpy as np
from project import ROOT

from keras_branchy import BranchyModel

SCRIPT = """
import sys
sys.path.insert(0, "tests")
import keras, numpy as np
from cases import attention, exits, images, residual, tokens
from keras_branchy import BranchyModel, cost
from keras_branchy.scoring import all_logits

assert keras.backend.backend() == "jax"
folder = sys.argv[1]
for name, backbone, taps, samples in (
    ("residual", residual(), ("stem", "join"), images),
    ("attention", attention(), ("lstm", "norm"), tokens),
):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = BranchyModel(backbone, exits(*taps))
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    x, y = samples(96, rng), rng.integers(0, 4, 96)
    model.compile(
        "adam", "sparse_categorical_crossentropy", metrics=["accuracy"],
        loss_weights=[1.0, 0.5, 0.25], distillation_weight=0.1,
    )
    weights = np.linspace(0.5, 1.5, 96)
    first, *_, last = model.fit(
        x, y, sample_weight=weights, epochs=6, verbose=0
    ).history["loss"]
    assert last < first
    model.stages()
    model.fit(x, y, verbose=0)  # stages must follow further training
    logits, _ = all_logits(model, x, verbose=0)
    for values, output in zip(logits, model.predict(x, verbose=0).values(), strict=True):
        p = np.exp(values - values.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        np.testing.assert_allclose(p, output, rtol=1e-5, atol=1e-6)
    held_out = samples(96, rng)
    last = list(model.predict(held_out, verbose=0).values())[-1].argmax(-1)
    report = model.calibrate(held_out, last, max_accuracy_drop=0.05, verbose=0)
    assert report.accuracy >= report.last_accuracy - 0.05
    assert cost.stage_costs(model)[-1].macs_to_leave > 0
    try:
        model.predict_early(x)
    except RuntimeError as error:
        assert "KERAS_BACKEND=jax. Save the model" in str(error), error
    else:
        raise AssertionError("staged inference ran without TensorFlow")
    model.save(f"{folder}/{name}.keras")
    np.savez(f"{folder}/{name}.npz", x=x, **model.predict(x, verbose=0))
print("done")
"""


def test_a_model_trained_on_jax_exits_early_on_tensorflow(tmp_path):
    environment = os.environ | {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "done" in done.stdout, done.stderr
    for name in ("residual", "attention"):
        model = keras.models.load_model(tmp_path / f"{name}.keras")
        kept = np.load(tmp_path / f"{name}.npz")
        for exit_name, output in model.predict(kept["x"], verbose=0).items():
            # two runtimes' float32 rounding
            np.testing.assert_allclose(output, kept[exit_name], rtol=1e-3, atol=1e-5)
        assert isinstance(model, BranchyModel)
        answer = model.predict_early(kept["x"], verbose=0)
        assert len(answer) == 96 and model.thresholds is not None
