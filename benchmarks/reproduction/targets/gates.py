# SPDX-License-Identifier: Apache-2.0
"""Exits on a network that is trained and then stays as it is: d-gates, and CDL."""

import numpy as np

from benchmarks.reproduction import measurement
from benchmarks.reproduction.features import Features, classifiers, readings
from benchmarks.reproduction.networks import B_LENET, Recipe
from benchmarks.reproduction.schedules import schedule
from benchmarks.reproduction.training import LOSS, copy_weights, freeze_all_but
from keras_branchy import OneVsRestHinge, networks

COSTS = np.linspace(0.3, 1.0, 15)  # of the whole network
DROPS = (0.0, 0.01, 0.02)

RESNET = Recipe(
    "d_gate_resnet26_quarter_width",
    "d_gate_resnet",
    "dgate",
    "cifar10",
    {"blocks": (2, 2, 2, 2), "width": 16},
    "d_gate_resnet101",
    full=Recipe("d_gate_resnet101", "d_gate_resnet", "dgate", "cifar10"),
)
DENSENET = Recipe(
    "d_gate_densenet103_growth8",
    "d_gate_densenet",
    "dgate",
    "cifar10",
    {"blocks": (3, 6, 24, 16), "growth": 8},
    "d_gate_densenet201",
    full=Recipe("d_gate_densenet201", "d_gate_densenet", "dgate", "cifar10"),
)
PUBLISHED = {
    "resnet101": [
        {"thresholds": [2.5, 2.5], "flops_saved": 67e6, "accuracy_drop": 0.0},
        {"thresholds": [1.0, 2.0], "share_saved": 0.39, "accuracy_drop": 0.017},
    ],
    "densenet201": [{"share_saved": 0.36, "accuracy_drop": 0.02}],
}


def resnet101(run):
    return gated(run, RESNET.for_schedule(run.which), PUBLISHED["resnet101"])


def densenet201(run):
    return gated(run, DENSENET.for_schedule(run.which), PUBLISHED["densenet201"])


def gated(run, recipe, published):
    split, plan, rows, curves = run.data(recipe.data), schedule("gates", run.which), [], []
    for seed in run.seeds:
        network = trained(run, recipe, seed)
        read = what_gates_read(run, recipe, network)
        for kind in ("hinge", "crossentropy"):
            model = with_gates(run, recipe, kind, seed, network, read)
            valid, answers = answers_of(model, split)
            common = {**run.common(recipe, seed), "gates": kind}
            common["schedule"] += f"; then the gates alone, {plan.describe()}"
            accuracies = {"exit_accuracies": answers.accuracies()}
            for drop in DROPS:
                found = answers.chosen_on(valid, max_accuracy_drop=drop)
                rows.append({**common, "allowed_drop": drop, **accuracies, **found})
            curves += [
                {**common, "allowed_cost": float(share), **found}
                for share in COSTS
                if (found := within(answers, valid, share))
            ]
    return {"published": published, "rows": rows, "curves": curves}


def answers_of(model, split):
    """To the validation images, and to the test images."""
    return [measurement.Answers(model, part) for part in (split.valid, split.test)]


def within(answers, valid, share):
    """The most accurate thresholds within a share of the whole network's cost, if any."""
    whole = answers.stages[-1].trunk_macs_to_leave
    try:
        return answers.chosen_on(valid, max_cost=share * whole)
    except ValueError:  # no thresholds are that cheap
        return None


def trained(run, recipe, seed):
    """The plain network."""
    plan = schedule(recipe.kind, run.which)
    return run.trainer.trained(
        f"{recipe.name}-{run.which}-{seed}/plain",
        lambda: recipe.make(backbone_only=True),
        run.data(recipe.data),
        plan.trunk,
        schedule=plan,
        seed=seed,
    )


def what_gates_read(run, recipe, network):
    """Of either kind: it does not depend on their loss."""
    model = recipe.make()
    copy_weights(network)(model)
    how = schedule(recipe.kind, run.which).describe()
    return Features(readings(model), run.data(recipe.data), how)


def with_gates(run, recipe, kind, seed, network, read):
    """Linear gates by either loss on a network that is trained and stays as it is."""
    plan = schedule("gates", run.which)
    loss = OneVsRestHinge() if kind == "hinge" else LOSS
    alone = run.trainer.trained(
        f"{recipe.name}-{run.which}-{seed}/{kind}",
        lambda: classifiers(recipe.make(gates=kind)),
        read,
        plan.joint,
        schedule=plan,
        seed=seed,
        loss={"exit_1": loss, "exit_2": loss},
        metrics={"exit_1": ["accuracy"], "exit_2": ["accuracy"]},
    )
    model = recipe.make(gates=kind)
    copy_weights(network)(model)
    copy_weights(alone)(model)
    return model


def conditional_deep_learning(run):
    """Linear classifiers at LeNet's convolutions, trained one after another."""
    plan, split, rows = schedule("heads", run.which), run.data("mnist"), []
    for seed in run.seeds:
        model = run.plain(B_LENET, seed)
        for name in ("exit_1", "exit_2"):

            def start(fresh, source=model, name=name):
                copy_weights(source)(fresh)
                freeze_all_but(fresh, [name])

            model = run.trainer.trained(
                f"cdl_lenet-{run.which}-{seed}/{name}",
                networks.cdl_lenet,
                split,
                plan.joint,
                schedule=plan,
                seed=seed,
                start=start,
                loss={name: LOSS},
                metrics={name: ["accuracy"]},
            )
        valid, answers = answers_of(model, split)
        common = {**run.common(B_LENET, seed), "network": "cdl_lenet"}
        common["schedule"] += f"; then each exit alone, {plan.describe()}"
        for drop in DROPS:
            found = answers.chosen_on(valid, max_accuracy_drop=drop)
            rows.append(
                {
                    **common,
                    "allowed_drop": drop,
                    "exit_accuracies": answers.accuracies(),
                    **found,
                }
            )
    return {"rows": rows}
