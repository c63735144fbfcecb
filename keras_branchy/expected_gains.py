# SPDX-License-Identifier: Apache-2.0
"""What leaving at an exit gains, in expectation, by the scores known there.

The best of many thresholds on few samples fits the luck of single answers. Expectations
have little of it: a regression on the scores of this exit and those before it tells how
often such samples are right here and not at the last exit, or the other way round. So
a path that is laid by them leads to cheaper thresholds on other samples; as others test it,
a bad fit costs power, and never the guarantee.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["expected_gains"]

# Bends of the broken line that a score's place among the others has in the regression.
BENDS = 6
# Samples' worth of doubt in every coefficient.
RIDGE = 10.0
# An answer that changes makes the test less sure, whether it is lost or gained. What this
# is worth, in lost answers, by trial: paths of eight exits cost less than with half of it.
DOUBT = 0.2


def expected_gains(scores: Sequence[np.ndarray], good: np.ndarray) -> np.ndarray:
    """Good answers gained [N, n] float64 by leaving at each exit, 0 at the last.

    Args:
        scores: For each exit but the last, [n] scores; NaN for a sample that never leaves.
        good: [N, n] bool, whether each exit's answer is good.

    Example:

    ```python
    import numpy as np
    from keras_branchy.expected_gains import expected_gains

    scores = [np.linspace(0, 2, 500)]  # the exit is wrong where it is least sure
    gains = expected_gains(scores, np.array([scores[0] < 1.5, np.ones(500, bool)]))
    assert gains.shape == (2, 500) and gains[0, 50] > -0.1 and gains[0, 450] < -0.8
    ```
    """
    good = np.asarray(good, bool)
    gains = np.zeros(good.shape)
    known = np.concatenate([_bent(score) for score in scores], axis=1)
    known -= known.mean(axis=0)
    products = known.T @ known + RIDGE * np.eye(known.shape[1])
    for index in range(len(scores)):
        gained = np.subtract(good[index], good[-1], dtype=float)
        wanted = gained - DOUBT * np.abs(gained)
        until = (index + 1) * (1 + BENDS)
        here = known[:, :until]
        means = here.T @ (wanted - wanted.mean())
        weights = np.linalg.solve(products[:until, :until], means)
        gains[index] = wanted.mean() + here @ weights
    return gains


def _bent(score: np.ndarray) -> np.ndarray:
    """A sample's place from 0 to 1, and how far it is beyond each bend: [n, 1 + BENDS]."""
    score = np.asarray(score, np.float64)
    place = np.searchsorted(np.sort(score), score) / len(score)
    bends = np.linspace(0, 1, BENDS + 2)[1:-1]
    return np.concatenate([place[:, None], (place[:, None] - bends).clip(0)], axis=1)
