# SPDX-License-Identifier: Apache-2.0
"""What exits cost: parameters, multiply-accumulates (MACs), bytes and measured time.

Everything is per sample and counts what staged inference really does: a sample that leaves
at exit k has paid for every stage and every head up to k. Published gains often leave the
heads out; each function says which of the two it counts.
"""

from keras_branchy.cost.break_even import ExitWorth, judge_exits
from keras_branchy.cost.measured import StageTime, profile
from keras_branchy.cost.placement import ExitPlace, ExitPlaces, suggest_exits
from keras_branchy.cost.registry import register
from keras_branchy.cost.staged import (
    StageCost,
    count_macs,
    expected_macs,
    stage_costs,
)

__all__ = [
    "ExitPlace",
    "ExitPlaces",
    "ExitWorth",
    "StageCost",
    "StageTime",
    "count_macs",
    "expected_macs",
    "judge_exits",
    "profile",
    "register",
    "stage_costs",
    "suggest_exits",
]
