# SPDX-License-Identifier: Apache-2.0
"""How to train exits, asked of B-LeNet, and what they do to early gradients."""

import keras
import numpy as np

from benchmarks.reproduction import measurement
from benchmarks.reproduction.networks import (
    B_LENET,
    CHAINER_ALEXNET,
    CHAINER_RESNET,
    trunk,
)
from benchmarks.reproduction.schedules import schedule
from benchmarks.reproduction.training import LOSS, copy_weights, freeze_all_but
from keras_branchy import BranchyModel, ExitBranch, networks

RECIPE = B_LENET
GRADIENT_IMAGES = 512


def training_modes(run):
    split, rows = run.data(RECIPE.data), []
    for seed in run.seeds:
        for way, model in trained(run, seed):
            answers = measurement.Answers(model, split.test)
            valid = measurement.Answers(model, split.valid)
            rows.append(
                {
                    **run.common(RECIPE, seed),
                    "schedule": schedule("ways", run.which).describe(),
                    "way": way,
                    "exit_accuracies": answers.accuracies(),
                    **answers.chosen_on(valid, max_accuracy_drop=0.0),
                }
            )
    gradients = [row for seed in run.seeds for row in gradient_norms(run, seed)]
    return {"rows": rows, "gradients": gradients}


def trained(run, seed):
    """Name and network of each way, from the same trunk where there is one."""
    plan = schedule("ways", run.which)
    half = fit(run, "trunk", networks.b_lenet, plan.trunk, seed, backbone_only=True)
    whole = fit(run, "alone", networks.b_lenet, plan.joint, seed, half, backbone_only=True)
    yield (
        "from scratch, jointly",
        fit(run, "scratch", networks.b_lenet, plan.trunk + plan.joint, seed),
    )
    for name, weights in (("1, 1", None), ("1, 0.3", [1.0, 0.3]), ("0.3, 1", [0.3, 1.0])):
        part = f"joint-{name.replace(', ', '-')}"
        way = f"trunk first, then jointly, weights {name}"
        given = {"loss_weights": weights} if weights else {}
        yield way, fit(run, part, networks.b_lenet, plan.joint, seed, half, **given)
    yield (
        "trunk first, then jointly, the exit detached",
        fit(run, "detached", detached, plan.joint, seed, half),
    )
    # What is trained apart gets the trunk of the plain network as it ended.
    yield (
        "the trunk alone, then the exit alone",
        fit(run, "apart", networks.b_lenet, plan.joint, seed, whole, frozen=True),
    )


def fit(run, part, build, epochs, seed, start=None, frozen=False, **given):
    options = {"backbone_only": True} if given.pop("backbone_only", False) else {}

    def prepare(model):
        if start is not None:
            copy_weights(start)(model)
        if frozen:
            freeze_all_but(model, ["exit_1"])

    return run.trainer.trained(
        f"ways-{run.which}-{seed}/{part}",
        lambda: build(**options),
        run.data(RECIPE.data),
        epochs,
        schedule=schedule("ways", run.which),
        seed=seed,
        start=prepare,
        **given,
    )


def detached():
    """B-LeNet whose exit does not move the trunk."""
    branch = networks.b_lenet().branches[0]
    branch = ExitBranch.from_config({**branch.get_config(), "stop_gradient": True})
    return BranchyModel(networks.b_lenet(backbone_only=True), {"conv1": branch})


def gradient_norms(run, seed):
    """Of each layer's kernel on the way, with exits and without, at the same weights."""
    for recipe in (B_LENET, CHAINER_ALEXNET, CHAINER_RESNET):
        images, labels = (part[:GRADIENT_IMAGES] for part in run.data(recipe.data).train)
        keras.utils.set_random_seed(seed)
        fresh = recipe.make()
        halfway = recipe.make()
        copy_weights(trunk(run.trainer, recipe, run.data(recipe.data), run.which, seed))(
            halfway
        )
        for state, model in (("untrained", fresh), ("after the trunk", halfway)):
            yield {
                "network": recipe.name,
                "seed": seed,
                "weights": state,
                **norms(model, images, labels),
            }


def norms(model, images, labels):
    import tensorflow as tf

    loss = keras.losses.get(LOSS)
    kernels = {
        layer.name: layer.kernel
        for layer in model.layers
        if hasattr(layer, "kernel") and layer.name not in model.exit_names
    }
    found = {}
    with tf.GradientTape(persistent=True) as tape:
        # As in training: statistics of the batch, dropout.
        outputs = model(images, training=True)
        each = {name: tf.reduce_mean(loss(labels, p)) for name, p in outputs.items()}
        totals = {
            "without_exits": each[model.exit_names[-1]],
            "with_exits": sum(each.values()),
        }
    for name, total in totals.items():
        gradients = tape.gradient(total, list(kernels.values()))
        found[name] = {
            layer: float(np.linalg.norm(np.array(gradient)))
            for layer, gradient in zip(kernels, gradients, strict=True)
        }
    return found
