# SPDX-License-Identifier: Apache-2.0
"""The tables that documents show are those of the committed results."""

import importlib.util

import pytest
from project import ROOT

spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


@pytest.mark.parametrize("path", tables.documents(), ids=lambda path: path.name)
def test_documents_agree_with_their_results(path):
    text = path.read_text("utf-8")
    assert tables.rendered(text) == text, "run `python benchmarks/tables.py`"


def test_a_stale_table_is_seen_and_mended():
    stale = "x\n<!-- results: mnist_b_lenet -->\n| 1 |\n<!-- /results -->\ny\n"
    new = tables.rendered(stale)
    assert new != stale and new.startswith("x\n<!-- results") and new.endswith("y\n")
    assert "plain LeNet" in new and tables.rendered(new) == new
