# SPDX-License-Identifier: Apache-2.0
"""The tool that breaks modules to see whether their tests notice, and what it found."""

import importlib.util
import json

import pytest
from project import ROOT

spec = importlib.util.spec_from_file_location(
    "mutation", ROOT / "benchmarks" / "mutation.py"
)
mutation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutation)


@pytest.mark.parametrize(
    "source, want",
    [
        ("a < b", {"a <= b"}),
        ("a == b", {"a != b"}),
        ("x[i]", {"x[i - 1]"}),
        ("x[2]", {"x[3]", "x[1]"}),
        ("math.ceil(a)", {"a"}),
        ("a + b", {"a - b"}),
        ("a / b", {"a * b"}),
        ("a and b", {"a or b"}),
        ("not a", {"a"}),
        ("min(a, b)", {"max(a, b)"}),
        ("a.any()", {"a.all()"}),
        ("b if a else c", {"b if not a else c"}),
        ("b if a > c else c", {"b if a >= c else c"}),
        ("f(True)", {"f(False)"}),
        ("raise ValueError(f'{a + 1}')", set()),
        ("'text'", set()),
        ("def f(a: x[i]) -> y[i]:\n    pass", set()),
    ],
)
def test_one_place_is_broken_at_a_time(source, want):
    assert {made for _, made in mutation.mutants(source)} == want


def test_a_mutant_is_told_by_its_line_and_what_changed():
    told = [told for told, _ in mutation.mutants("x = 1\nif a or b:\n    y = c - 2")]
    assert told == [
        "line 2: a or b -> not (a or b)",
        "line 1: 1 -> 2",
        "line 1: 1 -> 0",
        "line 2: a or b -> a and b",
        "line 3: c - 2 -> c + 2",
        "line 3: 2 -> 3",
        "line 3: 2 -> 1",
    ]


def test_what_it_found_of_calibration():
    """At least 85 % are noticed; why each of the others does no harm is written down."""
    found = json.loads((ROOT / "benchmarks" / "results" / "mutation.json").read_text())
    (row,) = (row for row in found["rows"] if row["module"] == "calibration")
    assert row["noticed"] >= 0.85 * row["mutants"] and row["mutants"] > 50
    assert row["noticed"] + len(row["survivors"]) == row["mutants"]
    assert all(row["survivors"].values())
