# SPDX-License-Identifier: Apache-2.0
"""The targets of benchmarks/reproduce.py by name."""

from benchmarks.reproduction.targets import (
    chainer,
    depth,
    gates,
    placement,
    tables,
    ways,
)

# Each takes a `Run` and gives {"rows": […]}, and {"curves": …} for its figures.
TARGETS = {
    "lenet": tables.lenet,
    "alexnet": tables.alexnet,
    "resnet": tables.resnet,
    "chainer-table": tables.chainer_table,
    "chainer-branch1": chainer.branch1,
    "chainer-layers": chainer.layers,
    "training-modes": ways.training_modes,
    "exit-placement": placement.exit_placement,
    "dgate-resnet101": gates.resnet101,
    "dgate-densenet201": gates.densenet201,
    "cdl": gates.conditional_deep_learning,
    "stochastic-depth": depth.stochastic_depth,
}
