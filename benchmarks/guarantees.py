# SPDX-License-Identifier: Apache-2.0
"""How often calibrated thresholds break their promise, by simulation.

    python benchmarks/guarantees.py [--json FILE] [--parts FOLDER] [--jobs 2] [--quick]

Each setting has a population of 50,000 samples, which is the truth; n are drawn from it
with replacement, thresholds are chosen on them, with a confidence and without, and judged
on the whole population: by the accuracy that early exit loses, by the right answers of the
last exit that it loses, and by cost beside the cheapest thresholds found on the population
itself. One draw serves every limit and confidence, by `Survey`; every 50th is calibrated
again by `calibrate`, from its arrays, and must give the same thresholds.

Repeats are run in parts of 50, which `--parts` keeps: a run that is cut off goes on from
there, and its rows say how many repeats they have.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from keras_branchy.answers import Answers  # noqa: E402
from keras_branchy.calibration import calibrate, on_these  # noqa: E402
from keras_branchy.guarantees import certified  # noqa: E402
from keras_branchy.midpoints import thresholds_at  # noqa: E402
from keras_branchy.survey import Survey  # noqa: E402
from keras_branchy.targets import Target  # noqa: E402

POPULATION = 50_000
CLASSES = 10
RISKS, CONFIDENCES = (0.01, 0.02, 0.05), ("mean", 0.95, 0.9)
SAMPLES, EXITS, KINDS = (500, 2_000, 10_000), (2, 4, 8), ("well", "badly")
REPEATS, PART = 1_000, 50
# What is searched without a confidence takes longer, and needs no such precision.
NAIVE_REPEATS = 100


@lru_cache(maxsize=1)
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
            as_sure = rng.normal(0, 0.05, POPULATION)
            sure = np.where(rng.random(POPULATION) < 0.1, as_sure, sure)
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


def least_costs(survey: Survey, limit: float) -> dict[str, float]:
    """Of the cheapest thresholds found that keep risk, or drop, in the population."""
    truth, found = survey.answers, {}
    for name, counted in (
        ("least_cost_at_risk", truth.correct | ~truth.correct[-1]),
        ("least_cost_at_drop", truth.correct),
    ):
        search = survey.search(counted)
        needed = int(counted[-1].sum()) - int(limit * truth.samples)
        cuts = search.cheapest(survey.front(counted), needed)
        thresholds = thresholds_at(search, cuts, truth.bounds)
        found[name] = judged(truth, thresholds)[2]
    return found


def chosen(survey: Survey, limit: float, confidence: Any) -> list | None:
    """The thresholds, or None where the request is refused."""
    target = Target("max_accuracy_drop", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            if confidence is None:
                return on_these(survey, target)[0]
            return certified(survey, target, confidence)[0]
        except ValueError:
            return None


def calibrated(answers: Answers, limit: float, confidence: Any) -> list | None:
    """What `chosen` must give: the same by the public function, from nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return calibrate(
                answers.scores,
                answers.correct,
                answers.costs,
                answers.criteria,
                answers.num_classes,
                max_accuracy_drop=limit,
                confidence=confidence,
            ).thresholds
        except ValueError:
            return None


def repeats_of(
    truth: Answers, seeds: list[list[int]], samples: int, limits: tuple, confidences: tuple
) -> dict[tuple, list]:
    """For each limit and confidence, what each draw gives; None for a refusal."""
    found: dict[tuple, list] = {key: [] for key in product(limits, confidences)}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        survey = Survey(truth.of(rng.integers(0, truth.samples, samples)))
        for limit, confidence in found:
            thresholds = chosen(survey, limit, confidence)
            if seed[-1] % PART == 0:
                same = calibrated(survey.answers, limit, confidence)
                if thresholds != same:
                    raise RuntimeError(f"calibrate differs: {same}, {thresholds}")
            judgement = None if thresholds is None else judged(truth, thresholds)
            found[limit, confidence].append(judgement)
    return found


def part(exits: int, kind: str, samples: int, start: int) -> dict[tuple, list]:
    """The repeats from `start`; the first few without a confidence, too."""
    confidences = (None, *CONFIDENCES) if start < NAIVE_REPEATS else CONFIDENCES
    seeds = [
        [exits, kind == "badly", samples, repeat] for repeat in range(start, start + PART)
    ]
    return repeats_of(population(exits, kind), seeds, samples, RISKS, confidences)


def refused(samples: int, limit: float, confidence: Any) -> bool:
    """Whether so few samples could show nothing, reckoned from the request alone.

    Without a loss among t test samples the p-value is (1 - limit)^t, and on average 1/(t+1)
    must not exceed the limit. Of the samples 20 at least lay the path.
    """
    tested = samples - 20
    if confidence is None:
        return False
    if confidence == "mean":
        return 1 / (tested + 1) > limit * (1 + 1e-12)
    return (1 - limit) ** tested > (1 - confidence) * (1 + 1e-12)


def summary(found: list, limit: float) -> dict:
    """One row of the results; shares are of the repeats that were not refused."""
    rows = [judgement for judgement in found if judgement is not None]
    risks, drops, costs = np.array(rows).reshape(-1, 3).T

    def mean(values: np.ndarray) -> float | None:
        return round(float(values.mean()), 5) if len(rows) else None

    return {
        "repeats": len(found),
        "refused": len(found) - len(rows),
        "risk_exceeds": mean(risks > limit),
        "drop_exceeds": mean(drops > limit),
        "mean_risk": mean(risks),
        "mean_drop": mean(drops),
        "mean_cost": mean(costs),
    }


def tabled(parts: dict[tuple, dict]) -> list[dict]:
    """The rows of all parts: one for each population, n, limit and confidence."""
    rows = []
    for exits, kind in product(EXITS, KINDS):
        here = {key: found for key, found in parts.items() if key[:2] == (exits, kind)}
        if not here:
            continue
        survey = Survey(population(exits, kind))
        best = {limit: least_costs(survey, limit) for limit in RISKS}
        for samples, limit, confidence in product(SAMPLES, RISKS, (*CONFIDENCES, None)):
            key = limit, confidence
            found = [
                judgement
                for place, made in sorted(here.items())
                if place[2] == samples
                for judgement in made.get(key, [])
            ]
            if found:
                row = {"exits": exits, "calibrated": kind, "samples": samples}
                row |= {"limit": limit, "confidence": confidence}
                rounded = {name: round(cost, 5) for name, cost in best[limit].items()}
                row |= summary(found, limit) | rounded
                must = refused(samples, limit, confidence)
                rows.append(row | {"must_be_refused": must})
    return rows


def run(todo: list[tuple], jobs: int, keep: Callable, done: dict[tuple, dict]) -> None:
    """Runs the parts that are not done, and adds them to `done`."""
    with ProcessPoolExecutor(jobs) as pool:
        runs = {pool.submit(part, *place): place for place in todo}
        for number, made in enumerate(as_completed(runs), 1):
            place = runs[made]
            done[place] = made.result()
            keep(place, done[place])
            print(f"{number}/{len(runs)} {place}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", type=Path, default=ROOT / "build" / "guarantees")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only-table", action="store_true", help="run nothing more")
    parser.add_argument("--quick", action="store_true", help="500 samples, 50 repeats")
    args = parser.parse_args()
    args.parts.mkdir(parents=True, exist_ok=True)
    counts, most = (SAMPLES[:1], PART) if args.quick else (SAMPLES, REPEATS)
    places = list(product(EXITS, KINDS, counts, range(0, most, PART)))
    # Some draws of each setting first, the quick ones before others, so that a run that is
    # cut off has all rows.
    places.sort(key=lambda place: (place[3] // 200, place[2] * place[0] ** 2, place))
    done = {place: stored(args.parts, place) for place in places}
    done = {place: found for place, found in done.items() if found is not None}
    if not args.only_table:
        todo = [place for place in places if place not in done]
        run(todo, args.jobs, lambda *made: store(args.parts, *made), done)
    rows = tabled(done)
    for row in rows:
        print(row)
    if args.json:
        report = {
            "date": datetime.date.today().isoformat(),
            "command": "python benchmarks/guarantees.py --json FILE",
            "versions": {"numpy": version("numpy"), "python": platform.python_version()},
            "population": POPULATION,
            "settings": len(list(product(EXITS, KINDS, counts, RISKS))),
            "wanted_repeats": most,
            "naive_repeats": NAIVE_REPEATS,
            "rows": rows,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def name_of(place: tuple) -> str:
    return "_".join(map(str, place)) + ".json"


def store(folder: Path, place: tuple, found: dict[tuple, list]) -> None:
    """Writes one part, whole or not at all."""
    listed = [[*key, values] for key, values in found.items()]
    beside = folder / (name_of(place) + ".part")
    beside.write_text(json.dumps(listed), "utf-8")
    beside.replace(folder / name_of(place))


def stored(folder: Path, place: tuple) -> dict[tuple, list] | None:
    path = folder / name_of(place)
    if not path.exists():
        return None
    listed = json.loads(path.read_text("utf-8"))
    return {(limit, confidence): values for limit, confidence, values in listed}


if __name__ == "__main__":
    main()
