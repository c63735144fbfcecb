# SPDX-License-Identifier: Apache-2.0
"""The report that a person reads after calibration."""

import json

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
