# SPDX-License-Identifier: Apache-2.0
"""Thresholds at which a wanted share leaves at each exit, from scores; NumPy only."""

import numpy as np


def swept(scores, criteria, share):
    """Thresholds at which `share` of those who reach each exit leave there.

    Args:
        scores: [B] scores of each early exit, for the same samples.
        criteria: Its criterion.
        share: Between 0 and 1.
    """
    thresholds, here = [], np.ones(len(scores[0]), bool)
    for row, criterion in zip(scores, criteria, strict=True):
        below = criterion == "entropy"
        if share in (0, 1):
            limit = np.inf if below == (share == 1) else -np.inf
        else:
            limit = between(row[here], share if below else 1 - share)
        thresholds.append(float(limit))
        here &= ~(row < limit if below else row >= limit)
    return thresholds


def between(values, share):
    """A number with `share` of the values below it, midway between two of them."""
    if not len(values):
        return 0.0
    ordered = np.sort(values)
    at = int(round(share * len(ordered)))
    if at == 0:
        return ordered[0] - 1
    if at == len(ordered):
        return ordered[-1] + 1
    return (ordered[at - 1] + ordered[at]) / 2
