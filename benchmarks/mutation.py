# SPDX-License-Identifier: Apache-2.0
"""Breaks a module in one place at a time, and counts how often its tests notice.

    python benchmarks/mutation.py MODULE TEST_FILE... [--json FILE] [--jobs 2]

Such as `calibration tests/test_calibration.py tests/test_report.py`. Comparisons are
flipped, `ceil` and `floor` dropped, indices and constants shifted by one, + and - swapped,
so are * and /, `and` and `or`, `min` and `max`; a `not` or a sign is dropped, a condition
turned round. No file is changed: each mutant is compiled in memory and imported in a forked
process, where pytest runs the files until the first failure. A mutant that uses up its
processor time counts as noticed. The results file holds the rows of other modules as they
are.
"""

from __future__ import annotations

import argparse
import ast
import copy
import datetime
import importlib.abc
import importlib.util
import json
import os
import platform
import resource
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 120  # of processor time, for one mutant
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
}
OPPOSITES = (("min", "max"), ("argmin", "argmax"), ("any", "all"), ("minimum", "maximum"))
NAMES = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
ROUNDED = {"ceil", "floor", "round"}


# ---- The mutants ----------------------------------------------------------------------
def mutants(source: str) -> Iterator[tuple[str, str]]:
    """What is done in which line, and the mutated source."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        if number in _left_alone(tree):
            continue
        for kind in _kinds(node):
            changed = copy.deepcopy(tree)
            target = list(ast.walk(changed))[number]
            before = _told(target)
            new = _mutated(target, kind)
            if new is not target:
                _Replace(target, new).visit(changed)
            told = f"line {node.lineno}: {before} -> {_told(new)}"
            yield told, ast.unparse(ast.fix_missing_locations(changed))


def _told(node: ast.AST) -> str:
    """The node as source in one line; of a branch its condition."""
    shown = node.test if isinstance(node, (ast.If, ast.IfExp)) else node
    return " ".join(ast.unparse(shown).split())


def _left_alone(tree: ast.AST) -> set[int]:
    """Numbers of nodes in annotations, texts, decorators and `__all__`."""
    numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
    out: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.JoinedStr, ast.Raise)):
            out.append(node)
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation:
            out.append(node.annotation)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            out += node.decorator_list
        if isinstance(node, ast.FunctionDef) and node.returns:
            out.append(node.returns)
    return {numbers[id(inner)] for node in out for inner in ast.walk(node)}


def _kinds(node: ast.AST) -> list[str]:
    """The ways to break this node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        return ["flip"]
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        return ["swap"] if type(node.op) in OPERATORS else []
    if isinstance(node, ast.UnaryOp):
        return ["drop"]
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            return ["negate"]
        return ["more", "less"] if isinstance(node.value, (int, float)) else []
    if isinstance(node, (ast.If, ast.IfExp)):
        # A comparison is flipped already.
        return [] if isinstance(node.test, ast.Compare) else ["turn"]
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        kinds = ["rename"] if name in NAMES else []
        return ["drop call"] if name in ROUNDED and node.args else kinds
    if isinstance(node, ast.Subscript) and isinstance(node.slice, (ast.Name, ast.BinOp)):
        return ["shift"]
    return []


def _mutated(node: ast.AST, kind: str) -> ast.AST:
    """The broken node: itself, changed, or another in its place."""
    if kind == "flip":
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif kind == "swap":
        node.op = OPERATORS[type(node.op)]()
    elif kind == "drop":
        return node.operand
    elif kind == "negate":
        node.value = not node.value
    elif kind in ("more", "less"):
        node.value += 1 if kind == "more" else -1
    elif kind == "turn":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif kind == "rename" and isinstance(node.func, ast.Attribute):
        node.func.attr = NAMES[node.func.attr]
    elif kind == "rename":
        node.func.id = NAMES[node.func.id]
    elif kind == "drop call":
        return node.args[0]
    elif kind == "shift":
        node.slice = ast.BinOp(node.slice, ast.Sub(), ast.Constant(1))
    return node


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else super().visit(node)


# ---- One mutant -----------------------------------------------------------------------
class _Mutant(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module from a source of its own."""

    def __init__(self, name: str, source: str):
        self.name, self.source = name, source

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_loader(name, self)

    def get_source(self, name):
        return self.source


def noticed(module: str, source: str, tests: list[str]) -> str:
    """ "survived", or how the tests noticed."""
    child = os.fork()
    if not child:
        _run(module, source, tests)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "out of time"
    return {0: "survived", 1: "failed"}.get(os.WEXITSTATUS(status), "broken")


def _run(module: str, source: str, tests: list[str]) -> None:
    """Runs the tests in this process, and ends it."""
    import pytest

    code = 2
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        sys.meta_path.insert(0, _Mutant(f"keras_branchy.{module}", source))
        # Without the project's conftest, which loads TensorFlow.
        options = ["-x", "-q", "--noconftest", "-c", os.devnull, "--rootdir", str(ROOT)]
        code = int(pytest.main([*options, "-p", "no:cacheprovider", *tests]))
    finally:
        os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("module", help="such as calibration")
    parser.add_argument("tests", nargs="+", help="its fast tests, the quickest first")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]
    # Loaded once, for every fork.
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401

    path = ROOT / "keras_branchy" / f"{args.module}.py"
    source = path.read_text("utf-8")
    if noticed(args.module, source, args.tests) != "survived":
        raise SystemExit("The tests fail as it is.")
    made = list(mutants(source))
    survivors = []
    with ThreadPoolExecutor(args.jobs) as pool:
        ends = pool.map(lambda one: noticed(args.module, one[1], args.tests), made)
        for number, ((told, _), end) in enumerate(zip(made, ends, strict=True), 1):
            print(f"{number}/{len(made)} {end}: {told}", flush=True)
            if end == "survived":
                survivors.append(told)
    killed = len(made) - len(survivors)
    print(f"{killed} of {len(made)} noticed: {killed / len(made):.1%}")
    if args.json:
        written(args.json, args.module, args.tests, len(made), survivors)


def written(
    path: Path, module: str, tests: list[str], count: int, survivors: list[str]
) -> None:
    """The results file with this module's row; why a survivor is harmless is kept."""
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    before = {row["module"]: row for row in rows}
    known = before.get(module, {}).get("survivors", {})
    before[module] = {
        "module": module,
        "tests": tests,
        "date": datetime.date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "pytest", "hypothesis")},
        },
        "mutants": count,
        "noticed": count - len(survivors),
        "survivors": {told: known.get(told, "") for told in survivors},
    }
    report = {
        "command": "python benchmarks/mutation.py MODULE TEST_FILE... --json FILE",
        "rows": [before[name] for name in sorted(before)],
    }
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
