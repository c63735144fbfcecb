# SPDX-License-Identifier: Apache-2.0
"""Table I of BranchyNet, and the table of its Chainer version."""

from benchmarks.reproduction.networks import (
    B_ALEXNET,
    B_LENET,
    B_RESNET,
    CHAINER_ALEXNET,
    CHAINER_RESNET,
)
from benchmarks.reproduction.published import BRANCHYNET, CHAINER_TABLE


def lenet(run):
    return one_row(run, B_LENET, "lenet")


def alexnet(run):
    return one_row(run, B_ALEXNET, "alexnet")


def resnet(run):
    return one_row(run, B_RESNET, "resnet")


def one_row(run, recipe, name):
    """A row of BranchyNet's Table I."""
    recipe, figures = recipe.for_schedule(run.which), BRANCHYNET[name]
    return {
        "published": [figures.to_json()],
        "rows": run.rows(recipe, figures),
        "curves": {recipe.name: [run.curve(recipe, seed) for seed in run.seeds]},
    }


def chainer_table(run):
    rows = []
    for name, recipe in (
        ("lenet", B_LENET),
        ("alexnet", CHAINER_ALEXNET),
        ("resnet", CHAINER_RESNET),
    ):
        found = run.rows(recipe, CHAINER_TABLE[name])
        rows += [{**row, "table_row": name} for row in found]
    published = {name: figures.to_json() for name, figures in CHAINER_TABLE.items()}
    return {"published": published, "rows": rows}
