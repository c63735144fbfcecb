# SPDX-License-Identifier: Apache-2.0
"""What early exits do on labelled samples: accuracy, shares and expected cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_branchy.cost import StageCost, expected_macs
from keras_branchy.criteria import CRITERIA
from keras_branchy.export.decisions import decide, score_all
from keras_branchy.thresholds import gate_thresholds

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["ExpectedCost", "Outcome", "expected_cost", "outcome"]


@dataclass(frozen=True)
class Outcome:
    """What happened to n labelled samples.

    Attributes:
        samples: n.
        accuracy: Share of right answers with early exits.
        last_accuracy: The same if every sample went to the last exit.
        shares: [N] share of the samples that leaves at each exit.
        accuracy_where_taken: [N] accuracy on those that leave there; None for none.
        exit_accuracy: [N] accuracy of each exit on all samples.
        by_agreement: [N] share of the samples that leaves there only because exits agree.
    """

    samples: int
    accuracy: float
    last_accuracy: float
    shares: list[float]
    accuracy_where_taken: list[float | None]
    exit_accuracy: list[float]
    by_agreement: list[float]


@dataclass(frozen=True)
class ExpectedCost:
    """Mean multiply-accumulates of a sample, and what they are of the plain backbone's.

    Attributes:
        macs: MACs.
        of_backbone: These as a share of the backbone's without exits.
    """

    macs: float
    of_backbone: float


def outcome(
    model: BranchyModel,
    logits: Sequence[np.ndarray],
    labels: np.ndarray,
    thresholds: Sequence[float | None] | None,
) -> Outcome:
    """Decides for every sample from the logits of all exits, as staged inference would.

    Args:
        model: The model, for its criteria and its patience.
        logits: N arrays [n, C], as `scoring.all_logits` returns them.
        labels: [n] classes.
        thresholds: One per exit but the last, `None` for a disabled exit.

    Raises:
        ValueError: If there is no sample, or `thresholds` is None.
    """
    if not len(labels):
        raise ValueError(
            "An outcome needs labelled samples. Received: 0 samples. Check the data set."
        )
    scores, answers = score_all(np.stack(logits), model.criteria, model.gates)
    gates = gate_thresholds(thresholds, model.criteria)
    chosen, exits = decide(scores, answers, model.criteria, gates, model.patience)
    right = chosen == labels
    every = (answers == labels).mean(axis=1)
    taken = [right[exits == index] for index in range(len(answers))]
    agreed = [
        (exits == k) & ~CRITERIA[name].exits(scores[k], gates[k])
        for k, name in enumerate(model.criteria)
    ]
    return Outcome(
        samples=len(labels),
        accuracy=float(right.mean()),
        last_accuracy=float(every[-1]),
        shares=[len(part) / len(labels) for part in taken],
        accuracy_where_taken=[float(x.mean()) if len(x) else None for x in taken],
        exit_accuracy=[float(value) for value in every],
        by_agreement=[*(float(where.mean()) for where in agreed), 0.0],
    )


def expected_cost(
    costs: Sequence[StageCost], shares: Sequence[float], **counting: Any
) -> ExpectedCost:
    """`cost.expected_macs` beside the backbone's own; `heads=False` leaves heads out."""
    macs = expected_macs(costs, shares, **counting)
    return ExpectedCost(macs, macs / costs[-1].trunk_macs_to_leave)
