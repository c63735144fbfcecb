# SPDX-License-Identifier: Apache-2.0
"""The trials behind the engines: they agree on answers, and their table is complete."""

import json
import subprocess
import sys

import pytest
from project import ROOT


@pytest.mark.long
def test_every_trial_is_measured_beside_what_it_would_replace(tmp_path):
    path = tmp_path / "trials.json"
    command = [sys.executable, "benchmarks/engine_trials.py", "--seconds", "0.01"]
    subprocess.run([*command, "--json", str(path)], cwd=ROOT, check=True, timeout=600)
    report = json.loads(path.read_text("utf-8"))
    assert len({row["trial"] for row in report["rows"]}) == 12
    for row in report["rows"]:
        assert len(row["ms"]) > 1 and row["rounds"] >= 5
        for found in row["ms"].values():
            assert 0 < found["lower"] <= found["median"] <= found["upper"]
