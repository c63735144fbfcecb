# SPDX-License-Identifier: Apache-2.0
"""The report that a person reads after calibration."""

import html
import json
import re

import matplotlib.pyplot as plt
import numpy as np

from keras_branchy.calibration import calibrate


def report(drop=0.25):
    scores = [np.array([0.1, 0.2, 0.6, 0.9]), np.array([0.1, 0.2, 0.3, 0.4])]
    correct = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    return calibrate(
        scores, correct, [1, 2, 4], ["entropy", "margin"], 10, max_accuracy_drop=drop
    )


def test_the_table_names_rule_share_accuracy_and_cost():
    lines = str(report(0.0)).splitlines()
    assert lines[0] == (
        "Calibrated on 4 samples: 100.00 % right with early exits, 100.00 % at the last "
        "exit (0.00 points lost, 0.00 allowed)."
    )
    cells = [line.split("  ") for line in lines[1:5]]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    assert rows == [
        ["exit", "leaves if", "share", "right there", "right on all", "cost"],
        ["exit_1", "entropy < 0.4 nats", "50.00 %", "100.00 %", "50.00 %", "25.00 %"],
        ["exit_2", "never", "0.00 %", "–", "50.00 %", "50.00 %"],
        ["exit_3", "it gets here", "50.00 %", "100.00 %", "100.00 %", "100.00 %"],
    ]
    assert lines[5] == "Mean cost 62.50 % of the whole model: 1.60 times less."


def test_a_gain_is_called_one():
    correct = np.array([[1, 1], [1, 0]], bool)
    text = str(calibrate([np.array([0.1, 0.9])], correct, [1, 2], ["margin"], 10,
                         max_accuracy_drop=0))  # fmt: skip
    assert "50.00 % at the last exit (50.00 points gained, 0.00 allowed)" in text


def test_without_a_drop_none_is_said_to_be_allowed():
    scores, correct = [np.array([0.1, 0.9])], np.ones((2, 2), bool)
    text = str(calibrate(scores, correct, [1, 2], ["margin"], 10, exit_shares=[0.5]))
    assert "allowed" not in text and "margin ≥ 0.5" in text


def test_json_holds_everything(tmp_path):
    made = report()
    data = made.to_json(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert read == data == json.loads(json.dumps(data))
    assert read["point"]["thresholds"] == made.thresholds
    assert read["exit_names"] == ["exit_1", "exit_2", "exit_3"]
    assert len(read["front"]) == len(made.front)


def counted():
    """Of two exits, with labels and both countings; the second sample leaves wrongly."""
    scores = [np.array([0.1, 0.2, 0.6, 0.9])]
    correct = np.array([[1, 0, 0, 0], [1, 1, 1, 0]], bool)
    return calibrate(
        scores, correct, [2, 4], ["entropy"], 4, exit_shares=[0.5],
        labels=[0, 1, 1, 3], trunk_costs=[1, 4],
    )  # fmt: skip


def test_both_countings_and_what_each_class_loses():
    made = counted()
    assert made.cost == 0.75 and made.trunk_cost == (2 * 1 + 2 * 4) / 16
    assert made.class_drops == [0.0, 0.5, None, 0.0]
    assert str(made).splitlines()[-2:] == [
        "Mean cost 75.00 % of the whole model: 1.33 times less (62.50 % with heads left "
        "out, as published figures count).",
        "Class 1 loses most: 50.00 points.",
    ]


def test_a_notebook_shows_the_same():
    made = counted()
    shown = made._repr_html_()
    text = re.sub("<[^>]*>", " ", shown)
    for line in str(made).splitlines():
        for cell in line.split("  "):
            assert html.escape(cell.strip()) in text
    assert shown.count("<tr>") == 3 and shown.count("<th>") == 6
    assert "entropy &lt; 0.4 nats" in shown


def test_a_plot_of_the_front_and_the_chosen_point():
    made = report(0.25)
    ax = made.plot()
    curve = {tuple(pair) for line in ax.get_lines() for pair in line.get_xydata()}
    for point in [made.point, *made.front]:
        assert any(
            np.allclose(pair, (100 * point.cost, 100 * point.accuracy)) for pair in curve
        )
    assert counted().plot(ax) is ax
    plt.close("all")


def test_all_countings_of_three_exits():
    """The samples leave at exits 1, 2, 3 and 3; the first is lost."""
    scores = [np.array([0.1, 0.9, 0.9, 0.9]), np.array([0.1, 0.2, 0.8, 0.9])]
    correct = np.array([[0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]], bool)
    made = calibrate(
        scores, correct, [2, 4, 8], ["entropy"] * 2, 4, exit_shares=[0.25, 0.25],
        labels=[0, 0, 1, 2], trunk_costs=[1, 2, 8], exit_names=["a", "b", "c"],
    )  # fmt: skip
    assert made.shares == [0.25, 0.25, 0.5] and made.exit_names == ["a", "b", "c"]
    assert made.class_drops == [0.5, 0.0, 0.0, None]
    assert made.trunk_cost == (1 + 2 + 8 + 8) / 32 and made.cost == (2 + 4 + 8 + 8) / 32
    assert made.exit_costs == [0.25, 0.5, 1.0] and made.exit_accuracy == [0.25, 0.5, 1.0]
    assert made.accuracy_where_taken == [0.0, 1.0, 1.0]
    assert made.accuracy == 0.75 and made.last_accuracy == 1.0 and made.samples == 4
