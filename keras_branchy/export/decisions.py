# SPDX-License-Identifier: Apache-2.0
"""Who leaves where, from the logits of every exit: the rule in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_branchy.agreement import agreements
from keras_branchy.criteria import CRITERIA, gate_scores

__all__ = ["decide", "score_all"]


def score_all(
    logits: np.ndarray, criteria: Sequence[str], gates: Sequence[Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, B] float32, entropy at the last exit, and labels [N, B].

    Args:
        logits: [N, B, C].
        criteria: N - 1 names.
        gates: Coefficients of learned gates, as `BranchyModel.gates` holds them.
    """
    gates = [None] * len(criteria) if gates is None else gates
    rows = [
        gate_scores(values, criterion, gate)
        for values, criterion, gate in zip(
            logits, [*criteria, "entropy"], [*gates, None], strict=True
        )
    ]
    scores, labels = map(np.stack, zip(*rows, strict=True))
    return scores.astype(np.float32), labels


def decide(
    scores: np.ndarray,
    labels: np.ndarray,
    criteria: Sequence[str],
    thresholds: np.ndarray,
    patience: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The label and the exit of each sample.

    Args:
        scores: [N, B] float32.
        labels: [N, B].
        criteria: N - 1 names.
        thresholds: [N - 1] float32, infinite where an exit is disabled.
        patience: As in `BranchyModel`.
    """
    exits = np.full(labels.shape[1], -1)
    agree = agreements(scores[:-1], labels[:-1], patience)
    for index, criterion in enumerate(criteria):
        leaves = CRITERIA[criterion].exits(scores[index], thresholds[index]) | agree[index]
        exits[(exits < 0) & leaves] = index
    exits[exits < 0] = len(criteria)
    return labels[exits, np.arange(labels.shape[1])], exits
