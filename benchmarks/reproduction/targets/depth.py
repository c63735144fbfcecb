# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth: a ResNet, and one with exits, trained with and without it."""

from dataclasses import replace

from benchmarks.reproduction import measurement
from benchmarks.reproduction.networks import B_RESNET

PUBLISHED = {
    "source": "arXiv 1603.09382, ResNet-110, CIFAR-10, with augmentation, 500 epochs",
    "accuracy": 1 - 0.0641,
    "accuracy_with_stochastic_depth": 1 - 0.0523,
}


def stochastic_depth(run):
    rows = []
    for survival in (None, 0.5):
        recipe = B_RESNET.for_schedule(run.which)
        if survival is not None:
            recipe = replace(
                recipe,
                name=f"{recipe.name}_stochastic",
                options={**recipe.options, "stochastic_depth": survival},
            )
        for seed in run.seeds:
            split = run.data(recipe.data)
            model = run.branchy(recipe, seed)
            valid, answers = (
                measurement.Answers(model, part) for part in (split.valid, split.test)
            )
            rows.append(
                {
                    **run.common(recipe, seed),
                    "survival_of_the_last_block": survival,
                    "plain_accuracy": measurement.plain_accuracy(
                        run.plain(recipe, seed), split.test
                    ),
                    "exit_accuracies": answers.accuracies(),
                    **answers.chosen_on(valid, max_accuracy_drop=0.0),
                }
            )
    return {"published": PUBLISHED, "rows": rows}
