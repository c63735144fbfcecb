# SPDX-License-Identifier: Apache-2.0
"""The laws over the models of `applications`, and the page that shows them."""

import keras
import pytest
from applications import (
    APPLICATIONS,
    MACS_HEADER,
    MODELS,
    Laws,
    laws_table,
    macs_table,
    page,
    told,
)
from project import ROOT

# A network of each kind; all of them are in the table below.
QUICK = ["text LSTM with masks", "transformer with masks", "two inputs", "MobileNetV2"]


@pytest.mark.parametrize("name", QUICK)
def test_laws_of_a_small_model(name):
    (row,) = laws_table([name])
    assert row[0] == name and len(row) == 1 + len(Laws.ALL)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_laws_of_every_model(capsys):
    with capsys.disabled():
        rows = list(told(laws_table(MODELS)))
    assert [row[0] for row in rows] == list(MODELS)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_macs_of_every_application(capsys):
    with capsys.disabled():
        rows = list(told(macs_table(APPLICATIONS)))
    assert [row[0] for row in rows] == APPLICATIONS


def rows_below(lines, header):
    start = lines.index(f"| {' | '.join(header)} |") + 2
    rows = []
    while lines[start + len(rows)].startswith("| "):
        rows.append(lines[start + len(rows)].strip("| ").split(" | "))
    return rows


def test_the_page_shows_every_model_and_law():
    text = (ROOT / "docs" / "models.md").read_text("utf-8")
    lines = text.splitlines()
    laws = rows_below(lines, ["model", *Laws.ALL])
    macs = rows_below(lines, MACS_HEADER)
    assert [row[0] for row in laws] == list(MODELS)
    assert [row[0] for row in macs] == APPLICATIONS
    assert all(len(row) == 1 + len(Laws.ALL) and all(row) for row in laws)
    # Nothing on the page was written by hand; its last paragraph has date and versions.
    made = page(laws, macs)
    assert text.split("\n\n")[:-1] == made.split("\n\n")[:-1]


def test_the_applications_are_the_networks_of_keras():
    assert len(APPLICATIONS) == 7
    assert all(hasattr(keras.applications, name) for name in APPLICATIONS)
