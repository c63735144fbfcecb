# SPDX-License-Identifier: Apache-2.0
"""The package as it is imported and installed."""

import importlib
import inspect
import re
from types import ModuleType

import pytest
from project import PACKAGE, ROOT, fresh_python

import keras_branchy

OBJECTS = {"BranchyModel", "ExitBranch", "OneVsRestHinge", "StageRunner", "exit_gate"}
MODULES = {"calibration", "callbacks", "cost", "drift", "networks", "plots"}

# What a class adds to what it inherits from Keras.
ADDED = {
    "BranchyModel": {
        "branches",
        "calibrate",
        "criteria",
        "early_exit",
        "ensemble",
        "exit_names",
        "export_stages",
        "fit_gates",
        "fit_temperatures",
        "gates",
        "num_classes",
        "patience",
        "predict_early",
        "stream_early",
        "stages",
        "temperatures",
        "thresholds",
    },
    "ExitBranch": {"logits"},
}


def test_public_names_are_these():
    # A public name needs a reason: it enters DESIGN's vocabulary before this list.
    assert set(keras_branchy.__all__) == OBJECTS | MODULES
    assert sorted(keras_branchy.__all__) == keras_branchy.__all__


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_an_object_resolves_to_its_definition(name):
    value = getattr(keras_branchy, name)
    assert value.__name__ == name
    assert value.__module__.startswith("keras_branchy.")
    assert value.__doc__


@pytest.mark.parametrize("name", sorted(ADDED))
def test_what_a_class_adds_is_pinned_and_documented(name):
    added = getattr(keras_branchy, name)
    inherited = next(base for base in added.__mro__ if "branchy" not in base.__module__)
    names = {key for key in dir(added) if not key.startswith("_")}
    assert names - set(dir(inherited)) == ADDED[name]
    assert [key for key in ADDED[name] if not inspect.getdoc(getattr(added, key))] == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_what_a_module_offers_is_documented(name):
    module = getattr(keras_branchy, name)
    functions = [getattr(module, key) for key in module.__all__]
    assert [f.__name__ for f in functions if callable(f) and not f.__doc__] == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_resolves_to_itself(name):
    module = getattr(keras_branchy, name)
    assert module is importlib.import_module(f"keras_branchy.{name}")
    assert set(module.__all__) <= set(dir(module))


def test_star_import_gives_the_public_names():
    scope = {}
    exec("from keras_branchy import *", scope)
    assert set(scope) - {"__builtins__"} == set(keras_branchy.__all__)


def test_dir_lists_names_before_they_are_used():
    code = "import keras_branchy as kb; print(set(kb.__all__) <= set(dir(kb)))"
    assert fresh_python(code) == "True"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'keras_branchy' has no attribute 'exti'"):
        keras_branchy.exti  # noqa: B018


@pytest.mark.parametrize(
    "first",
    [
        "import keras_branchy.exit_gate",
        "from keras_branchy.exit_gate import exit_gate",
        "import importlib; importlib.import_module('keras_branchy.exit_gate')",
        "import keras_branchy; keras_branchy.exit_gate",
    ],
)
def test_exit_gate_is_the_function_after(first):
    # The module of that name is bound to the package by whoever imports it first.
    then = "from keras_branchy import exit_gate; print(type(exit_gate).__name__)"
    assert fresh_python(f"{first}\n{then}") == "function"


def test_importing_the_model_registers_what_its_file_needs():
    code = (
        "from keras_branchy import BranchyModel\n"
        "import keras\n"
        "names = ('BranchyModel', 'ExitBranch', 'OneVsRestHinge', 'ResidualBlock', "
        "'LocalResponseNormalization', 'StochasticDepth', 'ZeroPaddedShortcut')\n"
        "found = [keras.saving.get_registered_object(f'keras_branchy>{n}') "
        "for n in names]\n"
        "print(None not in found)"
    )
    assert fresh_python(code).splitlines()[-1] == "True"


def test_the_version_is_one_that_the_changelog_knows():
    version = keras_branchy.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", version)
    assert version in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_folder_of_the_package_is_found_by_setup():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    missing = [folder for folder in folders if not (folder / "__init__.py").exists()]
    assert not missing
    assert (PACKAGE / "py.typed").exists()


def test_submodules_are_modules_for_the_type_checker():
    # What `if TYPE_CHECKING` imports is what `__getattr__` gives.
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    block = source.partition("if TYPE_CHECKING:\n")[2].partition("\n\n")[0]
    seen = set(re.findall(r"\w+", " ".join(re.findall(r"import (.+)", block))))
    assert seen == set(keras_branchy.__all__)
    assert isinstance(keras_branchy.cost, ModuleType)
