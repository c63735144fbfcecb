# SPDX-License-Identifier: Apache-2.0
"""How the time and memory of choosing thresholds grow with samples and exits.

    python benchmarks/calibration_speed.py [--json FILE] [--quick]

Scores are cached, as they are when `BranchyModel.calibrate` comes to this point. Each row
is the median of three runs, the sizes taking turns, with a target kept on the samples
themselves and with one kept at a confidence; every result is checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# This file's own folder goes: TensorFlow looks for a module called `litert`, too.
sys.path[:1] = [str(ROOT), str(ROOT / "examples")]

import evidence  # noqa: E402

from keras_branchy.calibration import calibrate  # noqa: E402

SAMPLES, EXITS, DROP = (1_000, 10_000, 50_000), (2, 4, 8, 12), 0.01


def answers(samples: int, exits: int) -> tuple[list, np.ndarray, np.ndarray]:
    """Scores and right answers of exits that get better."""
    rng = np.random.default_rng([samples, exits])
    hard = rng.beta(0.6, 1.6, samples)
    scores, correct = [], []
    for index in range(exits):
        wrong = (hard * (1.25 - 0.95 * (index + 1) / exits)).clip(0, 1) ** 1.5
        correct.append(rng.random(samples) >= wrong)
        sure = rng.normal(wrong, 0.05)
        scores.append(np.clip(2 * np.abs(sure), 0, 2.3).astype(np.float32))
    return scores[:-1], np.array(correct), np.linspace(1, 2, exits).cumsum()


def run(samples: int, exits: int, confidence: float | None) -> float:
    """Seconds of one calibration."""
    scores, correct, costs = answers(samples, exits)
    start = time.perf_counter()
    report = calibrate(
        scores,
        correct,
        costs,
        ["entropy"] * (exits - 1),
        10,
        max_accuracy_drop=DROP,
        confidence=confidence,
    )
    taken = time.perf_counter() - start
    if confidence is None and report.last_accuracy - report.accuracy > DROP + 1e-9:
        raise RuntimeError(f"The target is not kept: {report}")
    if not report.cost < 1:
        raise RuntimeError(f"Nobody leaves early: {report}")
    return taken


def peak(samples: int, exits: int, confidence: float | None) -> float:
    """MiB that one calibration holds at most, beside its input."""
    tracemalloc.start()
    run(samples, exits, confidence)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="up to 10,000 samples, once")
    args = parser.parse_args()
    sizes = [
        (samples, exits, confidence)
        for samples in (SAMPLES[:2] if args.quick else SAMPLES)
        for exits in EXITS
        for confidence in (None, 0.95)
    ]
    taken: dict = {size: [] for size in sizes}
    for _ in range(1 if args.quick else 3):
        for size in sizes:
            taken[size].append(run(*size))
    rows = [
        {
            "samples": size[0],
            "exits": size[1],
            "confidence": size[2],
            "seconds": round(statistics.median(values), 3),
            "spread": round((max(values) - min(values)) / 2, 3),
            "peak_mib": round(peak(*size), 1),
        }
        for size, values in taken.items()
    ]
    for row in rows:
        print(row)
    if args.json:
        report = {"rows": rows, "made_with": evidence.surroundings()}
        args.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
