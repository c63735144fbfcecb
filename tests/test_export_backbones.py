# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of parity and of speed: what is committed, and parity where data are."""

import json
import os
import subprocess
import sys

import pytest
from project import ROOT

TRAINED = ROOT / "build" / "litert" / "b_lenet.keras"


RESULTS = ROOT / "benchmarks" / "results"


def mnist_is_prepared():
    import tensorflow_datasets as tfds

    return tfds.builder("mnist").is_prepared()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["b_lenet", "mobilenet_v2", "resnet50_v2"])
def test_files_of_real_networks_agree_with_keras(name, tmp_path):
    if not mnist_is_prepared():
        pytest.skip("MNIST is not at hand: `tfds build mnist` prepares it")
    if name == "b_lenet" and not TRAINED.exists():
        pytest.skip(
            "B-LeNet is not trained, which takes a quarter of an hour: "
            "`python benchmarks/litert.py --prepare` does it"
        )
    work = TRAINED.parent if name == "b_lenet" else tmp_path
    command = [sys.executable, "benchmarks/litert_parity.py", "--only", name]
    command += ["--json", str(tmp_path / "rows.json"), "--work", str(work)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    rows = json.loads((tmp_path / "rows.json").read_text("utf-8"))["rows"]
    assert len(rows) == 8 and all(row["holds"] for row in rows)


def committed(name):
    return json.loads((RESULTS / name).read_text("utf-8"))


def test_the_committed_parity_holds():
    rows = committed("litert_parity.json")["rows"]
    assert {row["network"] for row in rows} == {"b_lenet", "mobilenet_v2", "resnet50_v2"}
    assert [row for row in rows if not row["holds"]] == []
    for row in rows:
        if row["quantization"] is None:
            assert row["differ"] == 0 and row["near_threshold"] <= 0.002 * row["images"]
        elif row["quantization"] == "int8":
            assert row["accuracy_lost"] <= 0.005
        else:
            assert row["exits_moved"] <= 0.01


def test_the_committed_speed_is_what_documents_say():
    report = committed("litert.json")

    def mean(network, runtime):
        (row,) = (
            row
            for row in report["rows"]
            if (row["network"], row["runtime"], row["quantization"])
            == (network, runtime, None)
        )
        return row["mean_us"]

    assert mean("b_lenet", "cascade") <= 0.7 * mean("lenet", "litert")
    assert 3 * mean("light_exit", "cascade") <= mean("lenet", "litert")
