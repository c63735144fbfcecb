# SPDX-License-Identifier: Apache-2.0
"""Thresholds as they are set and as the gate takes them."""

import numpy as np
import pytest

from keras_branchy.thresholds import check_thresholds, gate_thresholds

NAMES = ["exit_1", "exit_2"]


@pytest.mark.parametrize(
    "given, want",
    [
        (None, None),
        ([0.5, None], [0.5, None]),
        ((1, np.float32(0.25)), [1.0, 0.25]),
        (np.array([0.5, -3.0]), [0.5, -3.0]),
        (iter([0.5, 0.25]), [0.5, 0.25]),
        ([3e38, -3e38], [3e38, -3e38]),
    ],
)
def test_thresholds_become_a_list_of_floats(given, want):
    got = check_thresholds(given, NAMES)
    assert got == want
    assert got is None or all(value is None or type(value) is float for value in got)


@pytest.mark.parametrize(
    "given, message",
    [
        (0.5, r"must be a list in exit order. Received: thresholds=0.5. Expected 2"),
        ("ab", r"must be a list in exit order. Received: thresholds='ab'"),
        ({"exit_1": 0.1, "exit_2": 0.2}, r"must be a list in exit order"),
        ({0.1, 0.2}, r"must be a list in exit order"),  # a set has none
        (np.array(0.5), r"must be a list in exit order"),
        (np.ones((2, 2)), r"must be a list in exit order"),
        ([0.5, "low"], r"holds floats, and None for a disabled exit. Received: 'low' in"),
        ([0.5, [0.5]], r"holds floats.*Received: \[0.5\] in it"),
        ([0.5], r"one entry per exit but the last.*1 entries. Expected 2, for \['exit_1"),
        ([0.5] * 3, r"Received: 3 entries"),
        ([0.5, np.nan], r"must be finite.*nan\]. Use None to disable an exit"),
        ([-np.inf, 0.5], r"must be finite"),
        ([0.5, 1e39], r"must be finite, in float32"),
    ],
)
def test_thresholds_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_thresholds(given, NAMES)


def test_disabled_exits_are_infinite_on_the_side_where_nobody_leaves():
    got = gate_thresholds(
        [0.5, None, None, None, None],
        ["entropy", "entropy", "margin", "max_probability", "distance"],
    )
    want = np.array([0.5, -np.inf, np.inf, np.inf, np.inf], np.float32)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.float32


def test_without_thresholds():
    with pytest.raises(ValueError, match=r"no thresholds yet.*a list of 2 floats"):
        gate_thresholds(None, ["entropy", "margin"])
