# SPDX-License-Identifier: Apache-2.0
"""How often calibrated thresholds break their promise, by simulation.

    python benchmarks/guarantees.py [--json FILE] [--repeats 1000] [--jobs 2] [--quick]

Each setting has a population of 50,000 samples, which is the truth; n are drawn from it
with replacement, thresholds are chosen on them, with a confidence and without, and judged
on the whole population: by the share of right answers that the last exit has and early exit
loses, and by cost beside the cheapest thresholds found on the population itself. Settings
that the file already holds, made with as many repeats, are not run again.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from keras_branchy.answers import Answers
from keras_branchy.calibration import calibrate
from keras_branchy.midpoints import thresholds_at
from keras_branchy.threshold_search import ThresholdSearch

POPULATION = 50_000
CLASSES = 10
RISKS, ERRORS = (0.01, 0.02, 0.05), (0.05, 0.1)
SAMPLES, EXITS, KINDS = (500, 2_000, 10_000), (2, 4, 8), ("well", "badly")


def population(exits: int, kind: str) -> Answers:
    """Exits that get better; badly calibrated ones are often sure where they are wrong."""
    rng = np.random.default_rng([exits, kind == "badly"])
    hard = rng.beta(0.6, 1.6, POPULATION)
    scores, correct = [], []
    for index in range(exits):
        skill = (index + 1) / exits
        wrong = np.clip(hard * (1.25 - 0.95 * skill), 0, 1) ** 1.5
        correct.append(rng.random(POPULATION) >= wrong)
        sure = rng.normal(wrong, 0.05 if kind == "well" else 0.2)
        if kind == "badly":
            # Every tenth is as sure as any, whatever it says.
            sure = np.where(rng.random(POPULATION) < 0.1, rng.normal(0, 0.05), sure)
        scores.append(np.clip(np.abs(sure) * 2, 0, np.log(CLASSES)).astype(np.float32))
    costs = np.cumsum(np.linspace(1, 2, exits))
    return Answers(
        scores[:-1], np.array(correct), costs, ["entropy"] * (exits - 1), CLASSES
    )


def judged(answers: Answers, thresholds: list) -> tuple[float, float, float]:
    """Share of the last exit's right answers lost, accuracy lost, and relative cost."""
    taken = answers.exits(thresholds)
    right = answers.correct[taken, np.arange(answers.samples)]
    lost = answers.correct[-1] & ~right
    drop = answers.correct[-1].mean() - right.mean()
    cost = answers.costs[taken].mean() / answers.costs[-1]
    return float(lost.mean()), float(drop), float(cost)


def least_costs(answers: Answers, limit: float) -> tuple[float, float]:
    """Of the cheapest thresholds found that keep risk, or drop, in the population."""
    found = []
    for counted in (answers.correct | ~answers.correct[-1], answers.correct):
        search = ThresholdSearch(answers.scores, counted, answers.costs, answers.criteria)
        needed = int(counted[-1].sum()) - int(limit * answers.samples)
        cuts = search.cheapest(search.front(), needed)
        found.append(judged(answers, thresholds_at(search, cuts, answers.bounds))[2])
    return found[0], found[1]


def setting(exits: int, kind: str, samples: int, limit: float, repeats: int) -> list[dict]:
    """The rows of one setting: naive, on average, and each confidence."""
    truth = population(exits, kind)
    best = least_costs(truth, limit)
    found: dict = {}
    for repeat in range(repeats):
        rng = np.random.default_rng([exits, kind == "badly", samples, repeat])
        drawn = truth.of(rng.integers(0, POPULATION, samples))
        for confidence in (None, "mean", *(1 - error for error in ERRORS)):
            rows = found.setdefault(confidence, [])
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    report = calibrate(
                        drawn.scores,
                        drawn.correct,
                        drawn.costs,
                        drawn.criteria,
                        CLASSES,
                        max_accuracy_drop=limit,
                        confidence=confidence,
                    )
            except ValueError:
                continue
            rows.append(judged(truth, report.thresholds))
    place = {"exits": exits, "calibrated": kind, "samples": samples, "limit": limit}
    return [
        {**place, "confidence": confidence, **summary(rows, repeats, limit, best)}
        for confidence, rows in found.items()
    ]


def summary(
    rows: list[tuple[float, ...]], repeats: int, limit: float, best: tuple[float, float]
) -> dict:
    """One row of the results; shares are of the repeats that were not refused."""
    risks, drops, costs = np.array(rows).reshape(-1, 3).T

    def mean(values: np.ndarray) -> float | None:
        return round(float(values.mean()), 5) if len(rows) else None

    return {
        "repeats": repeats,
        "refused": repeats - len(rows),
        "risk_exceeds": mean(risks > limit),
        "drop_exceeds": mean(drops > limit),
        "mean_risk": mean(risks),
        "mean_drop": mean(drops),
        "mean_cost": mean(costs),
        "least_cost_at_risk": round(best[0], 5),
        "least_cost_at_drop": round(best[1], 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="500 samples only, 20 repeats")
    args = parser.parse_args()
    counts = SAMPLES[:1] if args.quick else SAMPLES
    repeats = 20 if args.quick else args.repeats
    report = kept(args.json, repeats)
    done = {place_of(row) for row in report["rows"]}
    todo = [
        place
        for place in itertools.product(EXITS, KINDS, counts, RISKS)
        if place not in done
    ]
    # The quick ones first, so that a run that is cut off has most rows.
    todo.sort(key=lambda place: place[2] * place[0])
    with ProcessPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(setting, *place, repeats) for place in todo]
        for number, run in enumerate(as_completed(runs), 1):
            report["rows"] += run.result()
            for row in run.result():
                print(f"{number}/{len(runs)} {row}", flush=True)
            if args.json:
                written = json.dumps(report, indent=1) + "\n"
                beside = args.json.with_suffix(".part")
                beside.write_text(written, "utf-8")
                beside.replace(args.json)


def kept(path: Path | None, repeats: int) -> dict:
    """The document so far: the rows of an earlier run with as many repeats."""
    rows = []
    if path is not None and path.exists():
        before = json.loads(path.read_text("utf-8"))
        rows = [row for row in before["rows"] if row["repeats"] == repeats]
    return {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/guarantees.py --json FILE --repeats {repeats}",
        "versions": {"numpy": version("numpy"), "python": platform.python_version()},
        "population": POPULATION,
        "rows": rows,
    }


def place_of(row: dict) -> tuple:
    return row["exits"], row["calibrated"], row["samples"], row["limit"]


if __name__ == "__main__":
    main()
