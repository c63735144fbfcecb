# SPDX-License-Identifier: Apache-2.0
"""From cuts to thresholds.

A threshold lies midway between the last score that leaves and the first that stays, so that
rounding on another runtime moves no sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from keras_branchy.orders import HUGE, NEAR, Order
from keras_branchy.threshold_search import ThresholdSearch

__all__ = ["thresholds_at"]


def thresholds_at(
    search: ThresholdSearch, cuts: Sequence[int], bounds: Sequence[tuple[float, float]]
) -> list[float | None]:
    """The thresholds at `cuts`; None for an exit at which it lets none leave.

    Args:
        search: The search whose samples the cuts order.
        cuts: One for each exit but the last.
        bounds: What the scores of each exit can be at least and at most.
    """
    exits = search.taken(cuts)
    return [
        _threshold(
            order, cuts[index], (exits >= index) & ~search.always(index), bounds[index]
        )
        for index, order in enumerate(search.orders)
    ]


def _threshold(
    order: Order, cut: int, deciding: np.ndarray, bounds: tuple[float, float]
) -> float | None:
    here = deciding[order.samples]
    leaving, staying = order.scores[:cut][here[:cut]], order.scores[cut:][here[cut:]]
    if not len(leaving):
        return None
    last = float(leaving[-1])
    if len(staying):
        return (last + float(staying[0])) / 2
    return _beyond(last, order.exits_below, bounds)


def _beyond(last: float, exits_below: bool, bounds: tuple[float, float]) -> float:
    """A threshold at which every sample leaves, the least sure one scoring `last`."""
    step = NEAR * max(abs(last), 1.0)
    if exits_below:
        return max((last + bounds[1]) / 2, last + step)
    if math.isinf(bounds[0]):
        return max(last - max(abs(last), 1.0), -HUGE)
    return min((last + bounds[0]) / 2, last - step)
