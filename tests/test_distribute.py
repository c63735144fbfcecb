# SPDX-License-Identifier: Apache-2.0
"""Training on two replicas of tf.distribute.MirroredStrategy, two CPUs of one process."""

import json
import os
import subprocess
import sys

import pytest
from project import ROOT

# In a process of its own: logical devices are set before TensorFlow starts.
SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, halves)
import keras, numpy as np
from cases import exits, gates, images, residual
from keras_branchy import BranchyModel, OneVsRestHinge

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rng = np.random.default_rng(0)
x, y, weights = images(32, rng), rng.integers(0, 4, 32), rng.random(32)
starts = {
    heads: BranchyModel(residual(), heads("stem", "join")).get_weights()
    for heads in (exits, gates)
}


def compiled(model, loss="sparse_categorical_crossentropy", **options):
    model.compile(
        keras.optimizers.SGD(0.1), loss,
        loss_weights=[1.0, 0.5, 0.25], metrics=["accuracy"], **options,
    )
    return model


def step(heads=exits, **options):
    model = compiled(BranchyModel(residual(), heads("stem", "join")), **options)
    model.set_weights(starts[heads])
    sample_weight = weights if options else None
    history = model.fit(
        x, y, sample_weight=sample_weight, batch_size=32, shuffle=False, verbose=0
    ).history
    return model, {name: value[0] for name, value in history.items()}


def compare(heads=exits, **options):
    one, logs = step(heads, **options)
    with strategy.scope():
        two, mirrored_logs = step(heads, **options)
    pairs = list(zip(starts[heads], one.get_weights(), two.get_weights(), strict=True))
    return two, {
        "moved": float(max(abs(a - s).max() for s, a, b in pairs)),
        "apart": float(max(abs(a - b).max() for s, a, b in pairs)),
        "logs": logs, "mirrored_logs": mirrored_logs,
    }


def refusal(build):
    try:
        build()
    except ValueError as error:
        return str(error)


def backbone_outside():
    backbone = residual()
    with strategy.scope():
        compiled(BranchyModel(backbone, exits("stem", "join")))


def compile_inside_only():
    model = BranchyModel(residual(), exits("stem", "join"))
    with strategy.scope():
        compiled(model)


def backbone_inside_only():
    with strategy.scope():
        backbone = residual()
    compiled(BranchyModel(backbone, exits("stem", "join")))


def hinge():
    return compare(gates, loss={
        "exit_1": OneVsRestHinge(), "exit_2": OneVsRestHinge(),
        "exit_3": "sparse_categorical_crossentropy",
    })


report = {
    "replicas": strategy.num_replicas_in_sync,
    "joint": compare()[1],
    "hinge": hinge()[1],
    "refused": [
        refusal(build)
        for build in (backbone_outside, compile_inside_only, backbone_inside_only)
    ],
}
model, report["distilled"] = compare(distillation_weight=0.5)
held_out = x + np.float32(0.01)
calibrated = model.calibrate(held_out, y, exit_shares=[0.5, 0.25], verbose=0)
answer = model.predict_early(held_out, batch_size=8, verbose=0)
report["shares"] = calibrated.shares
report["left"] = np.bincount(answer.exits, minlength=3).tolist()
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report():
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["joint", "hinge", "distilled"])
def test_two_replicas_take_the_step_of_one(report, way):
    assert report["replicas"] == 2
    found = report[way]
    assert found["moved"] > 1e-3
    # The float32 sum over 32 samples is taken in two halves.
    assert found["apart"] < 1e-6


@pytest.mark.parametrize("way", ["joint", "hinge", "distilled"])
def test_two_replicas_report_what_one_does(report, way):
    # as above
    assert report[way]["mirrored_logs"] == pytest.approx(report[way]["logs"], rel=1e-5)


def test_a_mirrored_model_calibrates_and_exits_early(report):
    assert report["shares"] == [0.5, 0.25, 0.25]
    assert report["left"] == [16, 8, 8]


@pytest.mark.parametrize("build", range(3), ids=["backbone", "compile", "exits"])
def test_variables_of_another_scope_are_refused(report, build):
    message = report["refused"][build]
    assert "under one tf.distribute strategy. Received: " in message
    assert "'stem/kernel'" in message and "with strategy.scope()" in message
