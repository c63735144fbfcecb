# SPDX-License-Identifier: Apache-2.0
"""One batch size: early exit against the plain backbone, the MACs and the stages alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_branchy.cli.stage_times import StageTimes, reaching
from keras_branchy.cli.timing import Contestant, exits_by_rule, summary, take_turns
from keras_branchy.outcome import expected_cost

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["race"]

DISTURBED = 3  # times the usual time
LAPS = 4  # whole networks, then stages, then again: slow moments hit both


def race(
    model: BranchyModel,
    contestants: dict[str, Contestant],
    batches: Sequence[Any],
    logits: np.ndarray,
    seconds: float,
) -> dict[str, Any]:
    """Times both for batches of one size, and says how near the stages' own time they are.

    The efficiency of a batch is Σ_k t_k(n_k) over its measured time, where n_k of its
    samples reach stage k, which alone takes t_k for so many, its head included. Here it is
    the median over batches. Rounds that take three times as long as usual are left out,
    and counted.
    """
    size = len(keras.tree.flatten(batches[0])[0])
    exits = exits_by_rule(model, logits)[: size * len(batches)]
    needed = reaching(exits, size, len(model.exit_names))
    stages = StageTimes(model, batches[0], needed)
    laps: list[dict[str, np.ndarray]] = []
    rounds = 0
    for _ in range(LAPS):
        laps.append(take_turns(contestants, batches, seconds / LAPS / 2, rounds))
        rounds += len(laps[-1]["plain"])
        stages.measure(seconds / LAPS / 2)
    plain, early = (np.concatenate([x[name] for x in laps]) for name in contestants)
    steady = _undisturbed(plain, early)
    plain, early = plain[steady], early[steady]
    alone = stages.of(needed[np.flatnonzero(steady) % len(batches)])
    counts = np.bincount(exits, minlength=len(model.exit_names))
    shares = [float(share) for share in counts / len(exits)]
    parts = alone.mean(0) * 1e3 / size
    return {
        "batch_size": size,
        "shares": shares,
        "plain": summary(plain, size),
        "early_exit": summary(early, size),
        "gain": float(plain.mean() / early.mean()),
        "gain_macs_allow": _macs_allow(model, shares),
        "efficiency": float(np.median(alone.sum(1) / early)),
        "stages": [
            {
                "exit_name": name,
                "samples": float(samples),
                "us_per_image": float(time),
                "whole_batch_ms": whole,
            }
            for name, samples, time, whole in zip(
                model.exit_names, needed.mean(0), parts, stages.whole(), strict=True
            )
        ],
        "between_stages_us_per_image": float(early.mean() * 1e3 / size - parts.sum()),
        "measurements": rounds,
        "disturbed": int(rounds - steady.sum()),
    }


def _undisturbed(plain: np.ndarray, early: np.ndarray) -> np.ndarray:
    """Which rounds no other work broke into.

    The plain backbone always does the same, and early exit little more at most.
    """
    usual = np.median(plain)
    limit = DISTURBED * max(usual, np.median(early))
    return (plain <= DISTURBED * usual) & (early <= limit)


def _macs_allow(model: BranchyModel, shares: list[float]) -> float | None:
    """The gain if time were MACs; None where they cannot be counted."""
    from keras_branchy import cost

    try:
        rows = cost.stage_costs(model)
    except ValueError:
        return None
    return 1 / expected_cost(rows, shares).of_backbone
