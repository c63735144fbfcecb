# SPDX-License-Identifier: Apache-2.0
"""How often calibrated thresholds keep their promise on MNIST and CIFAR-10.

    python benchmarks/guarantees_real.py --model b_lenet.keras --data mnist \\
        [--json FILE] [--repeats 200] [--answers FOLDER]

The model's answers to all held-out images, validation and test together, are the
population: what thresholds lose on all of them is the truth. 5,000 are drawn from it with
replacement, thresholds are chosen on these with a confidence and without, and judged on the
whole; 200 times for each drop. Answers are kept in `--answers`, so the network runs once.
The file holds the rows of other data sets as they are.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# This file's own folder goes: TensorFlow looks for a module called `litert`, too.
sys.path[:1] = [str(ROOT)]

from benchmarks import guarantees  # noqa: E402
from keras_branchy.answers import Answers  # noqa: E402
from keras_branchy.survey import Survey  # noqa: E402

DROPS, CONFIDENCES = (0.005, 0.01, 0.02), ("mean", 0.95, 0.9, None)
SAMPLES, SEED = 5_000, 7


def answers_of(path: Path, data: str, folder: Path) -> tuple[Answers, str]:
    """What the model at `path` says of all held-out images, and what these are."""
    known = folder / f"{data}.npz"
    if not known.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(known, **asked(path, data))
    with np.load(known) as file:
        answers = Answers(
            list(file["scores"]),
            file["correct"],
            file["costs"],
            [str(name) for name in file["criteria"]],
            int(file["classes"]),
        )
        return answers, str(file["source"])


def asked(path: Path, data: str) -> dict:
    """Scores and right answers of each exit for the validation and the test images."""
    from benchmarks.reproduction.data import load
    from keras_branchy import BranchyModel, cost
    from keras_branchy.criteria import gate_scores
    from keras_branchy.scoring import all_logits

    import keras  # isort: skip

    split = load(data)
    model = keras.saving.load_model(path, compile=False)
    if not isinstance(model, BranchyModel):
        raise SystemExit(f"{path} holds no BranchyModel: {type(model).__name__}")
    images, labels = (
        np.concatenate(both) for both in zip(split.valid, split.test, strict=True)
    )
    logits, _ = all_logits(model, images, batch_size=500, verbose=0)
    scores = [
        gate_scores(values, criterion)[0].astype(np.float32)
        for values, criterion in zip(logits, model.criteria, strict=False)
    ]
    sizes = f"{len(split.valid[1]):,} validation and {len(split.test[1]):,} test images"
    return {
        "scores": np.stack(scores),
        "correct": np.stack([values.argmax(-1) == labels for values in logits]),
        "costs": [row.macs_to_leave for row in cost.stage_costs(model)],
        "criteria": model.criteria,
        "classes": model.num_classes,
        "source": f"{model.name} on {sizes} of {split.source}",
    }


def rows_of(truth: Answers, data: str, source: str, repeats: int) -> list[dict]:
    """One row for each drop and confidence."""
    seeds = [[SEED, repeat] for repeat in range(repeats)]
    found = guarantees.repeats_of(truth, seeds, SAMPLES, DROPS, CONFIDENCES)
    survey = Survey(truth)
    rows = []
    for (drop, confidence), judgements in found.items():
        best = guarantees.least_costs(survey, drop)
        rows.append(
            {
                "data": data,
                "source": source,
                "population": truth.samples,
                "exits": [round(float(right.mean()), 5) for right in truth.correct],
                "samples": SAMPLES,
                "limit": drop,
                "confidence": confidence,
                **guarantees.summary(judgements, drop),
                **{name: round(value, 5) for name, value in best.items()},
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a .keras file")
    parser.add_argument("--data", choices=("mnist", "cifar10"), required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--answers", type=Path, default=ROOT / "build" / "guarantees_real")
    args = parser.parse_args()
    truth, source = answers_of(args.model, args.data, args.answers)
    rows = rows_of(truth, args.data, source, args.repeats)
    for row in rows:
        print(row)
    if args.json:
        others = []
        if args.json.exists():
            before = json.loads(args.json.read_text("utf-8"))["rows"]
            others = [row for row in before if row["data"] != args.data]
        report = {
            "date": datetime.date.today().isoformat(),
            "command": "python benchmarks/guarantees_real.py --model FILE --data NAME "
            f"--json FILE --repeats {args.repeats}",
            "versions": {"numpy": version("numpy"), "python": platform.python_version()},
            "rows": sorted(others + rows, key=lambda row: row["data"]),
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
