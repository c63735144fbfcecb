# SPDX-License-Identifier: Apache-2.0
"""The targets of benchmarks/reproduce.py: by name, the module and function of each."""

from importlib import import_module

TARGETS = {
    "lenet": "tables.lenet",
    "alexnet": "tables.alexnet",
    "resnet": "tables.resnet",
    "chainer-table": "tables.chainer_table",
    "chainer-branch1": "chainer.branch1",
    "chainer-layers": "chainer.layers",
    "training-modes": "ways.training_modes",
    "exit-placement": "placement.exit_placement",
    "dgate-resnet101": "gates.resnet101",
    "dgate-densenet201": "gates.densenet201",
    "cdl": "gates.conditional_deep_learning",
    "stochastic-depth": "depth.stochastic_depth",
}


def target(name):
    """Takes a `Run` and gives {"rows": […]}, and more for its figures.

    Imported when it is asked for: a wrong name is told before Keras is there.
    """
    module, function = TARGETS[name].split(".")
    return getattr(import_module(f"{__name__}.{module}"), function)
