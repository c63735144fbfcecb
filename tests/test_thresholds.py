# SPDX-License-Identifier: Apache-2.0
"""Thresholds as the gate takes them; test_branchy_model has how a model checks them."""

import numpy as np
import pytest

from keras_branchy.thresholds import gate_thresholds


def test_disabled_exits_are_infinite_on_the_side_where_nobody_leaves():
    got = gate_thresholds([0.5, None, None], ["entropy", "entropy", "margin"])
    np.testing.assert_array_equal(got, np.array([0.5, -np.inf, np.inf], np.float32))
    assert got.dtype == np.float32


def test_without_thresholds():
    with pytest.raises(ValueError, match=r"no thresholds yet.*a list of 2 floats"):
        gate_thresholds(None, ["entropy", "margin"])
