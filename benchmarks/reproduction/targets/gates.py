# SPDX-License-Identifier: Apache-2.0
"""Exits on a network that is trained and then stays as it is: d-gates, and CDL."""

import numpy as np

from benchmarks.reproduction import measurement
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
    split, rows, curves = run.data(recipe.data), [], []
    for seed in run.seeds:
        for kind in ("hinge", "crossentropy"):
            model = with_gates(run, recipe, kind, seed)
            valid, answers = answers_of(model, split)
            common = {**run.common(recipe, seed), "gates": kind}
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


def with_gates(run, recipe, kind, seed):
    """Linear gates on a frozen, trained network, by either loss."""
    plan, split = schedule(recipe.kind, run.which), run.data(recipe.data)
    trained = run.trainer.trained(
        f"{recipe.name}-{run.which}-{seed}/plain",
        lambda: recipe.make(backbone_only=True),
        split,
        plan.trunk,
        schedule=plan,
        seed=seed,
    )
    loss = OneVsRestHinge() if kind == "hinge" else LOSS

    def start(model):
        copy_weights(trained)(model)
        freeze_all_but(model, model.exit_names[:-1])

    return run.trainer.trained(
        f"{recipe.name}-{run.which}-{seed}/{kind}",
        lambda: recipe.make(gates=kind),
        split,
        plan.joint,
        schedule=plan,
        seed=seed,
        start=start,
        loss={"exit_1": loss, "exit_2": loss},
        metrics={"exit_1": ["accuracy"], "exit_2": ["accuracy"]},
    )


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
