# SPDX-License-Identifier: Apache-2.0
"""The two curves of BranchyNet_chainer.

Accuracy and largest exited entropy against the share that leaves at branch 1, and accuracy
against the convolutions of B-AlexNet's first branch.
"""

import numpy as np

from benchmarks.reproduction import measurement, networks
from benchmarks.reproduction.networks import B_LENET, CHAINER_ALEXNET, CHAINER_RESNET
from benchmarks.reproduction.schedules import schedule

SHARES = np.linspace(0, 1, 21)


def branch1(run):
    """By share at branch 1, nothing leaving in between."""
    rows = []
    for recipe in (B_LENET, CHAINER_ALEXNET, CHAINER_RESNET):
        for seed in run.seeds:
            model = run.branchy(recipe, seed)
            split, points = run.data(recipe.data), []
            for part in (split.valid, split.test):
                points.append(by_share(measurement.Answers(model, part)))
            rows += [
                {**run.common(recipe, seed), **there, "valid_accuracy": here["accuracy"]}
                for here, there in zip(*points, strict=True)
            ]
    return {"rows": rows}


def by_share(answers):
    """The surest images leave at branch 1, as many as the share says."""
    scores = answers.scores[0]
    order = np.argsort(scores, kind="stable")
    nobody = [0.0] * (len(answers.correct) - 2)
    for share in SHARES.tolist():
        leave = order[: round(share * len(order))]
        right = answers.correct[-1].copy()
        right[leave] = answers.correct[0][leave]
        yield {
            "share": share,
            "accuracy": float(right.mean()),
            "largest_entropy": float(scores[leave[-1]]) if len(leave) else None,
            "accuracy_at_branch_1": (
                float(answers.correct[0][leave].mean()) if len(leave) else None
            ),
            "macs": measurement.macs(answers.stages, [share, *nobody, 1 - share]),
        }


def layers(run):
    """By the number of convolutions in branch 1, all from the same trunks."""
    recipe, rows = CHAINER_ALEXNET, []
    split, plan = run.data(recipe.data), schedule("layers", run.which)
    for seed in run.seeds:
        for convs in range(5):
            model = run.trainer.trained(
                f"{recipe.name}-{run.which}-{seed}/layers-{convs}",
                lambda convs=convs: recipe.make(branch1_convs=convs),
                split,
                plan.joint,
                schedule=plan,
                seed=seed,
                start=networks.copy_weights(
                    networks.trunk(run.trainer, recipe, split, run.which, seed)
                ),
            )
            answers = measurement.Answers(model, split.test)
            valid = measurement.Answers(model, split.valid)
            chosen = answers.chosen_on(valid, max_accuracy_drop=0.0)
            rows.append(
                {
                    **run.common(recipe, seed),
                    "schedule": plan.describe(),
                    "branch1_convs": convs,
                    "exit_accuracies": answers.accuracies(),
                    "valid_accuracy": valid.at(chosen["thresholds"])["accuracy"],
                    **chosen,
                }
            )
    return {"rows": rows}
