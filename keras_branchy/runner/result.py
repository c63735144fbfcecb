# SPDX-License-Identifier: Apache-2.0
"""What a call of a StageRunner gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["CallStatistics", "RunnerResult"]


@dataclass(frozen=True)
class CallStatistics:
    """What one `predict` did.

    Attributes:
        samples: How many samples it was given.
        reached: How many of them each stage computed, in exit order.
        left: How many left at each exit.
        seconds: Wall-clock time of the whole call.
    """

    samples: int
    reached: list[int]
    left: list[int]
    seconds: float


@dataclass(slots=True)
class RunnerResult:
    """Answers in the order of the input, as `BranchyModel.predict_early` gives them.

    Attributes:
        labels: [B] int64, the class of the largest logit at the exit taken.
        probabilities: [B, C] float32, the softmax at the exit taken.
        exits: [B] int64, the exit taken, an index into `StageRunner.exit_names`.
        scores: [B] float32, the score of that exit's criterion (entropy for the last).
        seconds: Wall-clock time of the call.
        num_exits: How many exits the model has.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    exits: np.ndarray
    scores: np.ndarray
    seconds: float
    num_exits: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def statistics(self) -> CallStatistics:
        """What the call did; counted when asked for, as it takes longer than a stage."""
        left = np.bincount(self.exits, minlength=self.num_exits).tolist()
        reached = [sum(left[index:]) for index in range(len(left))]
        return CallStatistics(len(self), reached, left, self.seconds)
