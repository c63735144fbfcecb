# SPDX-License-Identifier: Apache-2.0
"""Early exits for Keras models: train as usual, calibrate, stop when sure.

Names resolve on first use, so that `import keras_branchy` imports neither TensorFlow
nor Keras.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_branchy import calibration, callbacks, cost, drift, networks, plots
    from keras_branchy.branchy_model import BranchyModel
    from keras_branchy.exit_branch import ExitBranch
    from keras_branchy.exit_gate import exit_gate
    from keras_branchy.one_vs_rest_hinge import OneVsRestHinge
    from keras_branchy.runner import StageRunner

__version__ = "0.1.0"

__all__ = [
    "BranchyModel",
    "ExitBranch",
    "OneVsRestHinge",
    "StageRunner",
    "calibration",
    "callbacks",
    "cost",
    "drift",
    "exit_gate",
    "networks",
    "plots",
]

_HOMES = {
    "BranchyModel": "branchy_model",
    "ExitBranch": "exit_branch",
    "OneVsRestHinge": "one_vs_rest_hinge",
    "StageRunner": "runner",
    "exit_gate": "exit_gate",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOMES.get(name, name)}")
    value = getattr(module, name) if name in _HOMES else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps a public function from being hidden by its module of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Python binds each imported submodule here: `exit_gate` must stay the function.
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
