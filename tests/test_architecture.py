# SPDX-License-Identifier: Apache-2.0
"""Which module may import what, and what every source file must look like."""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from project import PACKAGE, ROOT, fresh_python, source_files

# A module imports only from rows above its own.
LAYERS = (
    (
        "agreement",
        "criteria",
        "layers",
        "masks",
        "names",
        "seen_data",
        "one_vs_rest_hinge",
        "temperature",
    ),
    ("graph",),
    ("thresholds", "learned_gate", "by_exit", "binomial", "targets", "plots"),
    ("orders", "answers", "drop_test", "expected_gains", "row_gate", "waiting", "compiled"),
    ("batch_gate", "native_step"),
    ("answer_rows",),
    ("walk",),
    ("streaming",),
    ("threshold_search", "risk"),
    ("midpoints", "survey"),
    ("candidates",),
    ("guarantees",),
    ("report",),
    ("reference", "native", "calibration", "runner", "last_exit", "per_exit"),
    ("shared_layers",),
    ("exit_branch", "exit_gate", "exit_scores"),
    ("attach", "early_exiting"),
    ("branchy_model",),
    ("stages", "batches", "direct_call"),
    ("stage_logits",),
    ("early_exit", "cost", "held_out"),
    ("scoring",),
    ("export",),
    ("outcome", "drift"),
    ("networks", "callbacks", "cli"),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

# The verbs of BranchyModel import what does their work when they are called.
LAZILY_UPWARD = {"early_exiting", "exit_scores"}

FRAMEWORKS = {"tensorflow", "keras"}
WITHOUT_FRAMEWORKS = {
    "agreement",
    "answer_rows",
    "answers",
    "binomial",
    "calibration",
    "candidates",
    "compiled",
    "criteria",
    "drift",
    "drop_test",
    "expected_gains",
    "guarantees",
    "held_out",
    "learned_gate",
    "midpoints",
    "native_step",
    "orders",
    "plots",
    "report",
    "risk",
    "row_gate",
    "runner",
    "streaming",
    "survey",
    "targets",
    "temperature",
    "threshold_search",
    "thresholds",
    "waiting",
    "walk",
}
KERAS_ONLY = {"graph", "masks"}
TENSORFLOW_AT_TOP = {"reference", "exit_gate", "early_exit", "native"}

THIRD_PARTY = {
    "numpy",
    "keras",
    "tensorflow",
    "matplotlib",
    "ai_edge_litert",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "tensorflow_datasets",
    "typer",
    "rich",
}


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    lazy: bool  # inside a function, or for the type checker only


def modules():
    """Path and name (`"cost"`, `"networks"`) of every module but the package's own."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        name = inside.parts[0].removesuffix(".py")
        if name != "__init__":
            yield pytest.param(path, name, id=str(inside))


MODULES = list(modules())


def imports_of(path):
    """Every import; `from keras_branchy import cost` counts as keras_branchy.cost."""
    found = []

    def visit(node, lazy):
        if isinstance(node, ast.Import):
            found.extend(Import(name.name, node.lineno, lazy) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            found.extend(
                Import(f"{node.module}.{name.name}", node.lineno, lazy)
                for name in node.names
            )
        typed = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        lazy = lazy or typed or isinstance(node, ast.FunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, lazy)

    visit(ast.parse(path.read_text("utf-8")), False)
    return found


def test_every_module_has_a_place_in_the_layers():
    names = {first for _, first in (case.values for case in MODULES)}
    unplaced = sorted(names - set(RANK))
    assert not unplaced, f"Give each a row in LAYERS, and in DESIGN: {unplaced}"


@pytest.mark.parametrize("path, name", MODULES)
def test_imports_point_one_way(path, name):
    for found in imports_of(path):
        top, _, rest = found.module.partition(".")
        target = rest.partition(".")[0]
        if top != "keras_branchy" or target == name:
            continue
        assert target in RANK, f"line {found.line}: no module keras_branchy.{target}"
        allowed = RANK[target] < RANK[name] or (found.lazy and name in LAZILY_UPWARD)
        assert allowed, f"line {found.line}: {name} must not import {target}"


@pytest.mark.parametrize("path, name", MODULES)
def test_frameworks_are_imported_where_they_are_used(path, name):
    for found in imports_of(path):
        top = found.module.partition(".")[0]
        where = f"line {found.line}: {found.module} in {name}"
        if name in WITHOUT_FRAMEWORKS:
            # For the type checker is no use either: these are read without Keras.
            assert top not in FRAMEWORKS, where
        elif name in KERAS_ONLY:
            assert top != "tensorflow", where
        elif top == "tensorflow":
            assert found.lazy or name in TENSORFLOW_AT_TOP, where


@pytest.mark.parametrize("path, name", MODULES)
def test_only_declared_packages_are_imported(path, name):
    for found in imports_of(path):
        top = found.module.partition(".")[0]
        known = sys.stdlib_module_names | THIRD_PARTY | {"keras_branchy"}
        assert top in known, f"line {found.line}: {top} is not declared in setup.py"


def test_no_private_module_of_a_framework():
    private = re.compile(r"\btensorflow\.python\b|\bkeras\.src\b|\btf\.python\b")
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        found = private.search(path.read_text("utf-8"))
        assert not found, f"{path.relative_to(ROOT)}: {found.group()}"


def test_importing_the_package_is_light():
    loaded = fresh_python(
        "import sys, keras_branchy as kb; dir(kb), kb.__version__, kb.__all__\n"
        "print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    )
    assert loaded == "[]"


def test_modules_without_frameworks_load_none():
    present = sorted(
        name for name in WITHOUT_FRAMEWORKS if (PACKAGE / f"{name}.py").exists()
    )
    lines = [f"import keras_branchy.{name}" for name in present]
    loaded = fresh_python(
        "\n".join(["import sys", *lines])
        + "\nprint(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    assert present and loaded == "[]"


@pytest.mark.parametrize("path, name", MODULES)
def test_a_module_is_one_concept(path, name):
    lines = path.read_text("utf-8").count("\n")
    assert lines <= 300, f"{lines} lines: split it"


def test_source_files_name_their_licence():
    suffixes = {".py", ".cc", ".h", ".cu", ".sh"}
    for path in source_files():
        if path.suffix in suffixes:
            head = " ".join(path.read_text("utf-8").split("\n")[:2])
            named = "SPDX-License-Identifier: Apache-2.0" in head
            assert named, path.relative_to(ROOT)


def test_no_path_of_a_machine_in_any_file():
    general = re.compile(r"(?<![\w.:/~-])/(?:home|Users|root|tmp|work)/\w+")
    here = [str(place) for place in (ROOT, Path.home()) if len(place.parts) > 1]
    for path in source_files():
        text = path.read_bytes().decode("utf-8", "ignore")
        found = [place for place in here if re.search(rf"{re.escape(place)}\b", text)]
        found += general.findall(text)
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_only_ci_names_the_shared_folder():
    for path in source_files():
        if path.suffix in {".py", ".md", ".toml", ".sh", ""} and path.name != "run":
            text = path.read_bytes().decode("utf-8", "ignore")
            assert "".join(("..", "/shared")) not in text, path.relative_to(ROOT)
