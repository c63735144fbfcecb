# SPDX-License-Identifier: Apache-2.0
"""The gate for a batch against the definition in float64."""

import numpy as np
import pytest
from cases import coefficients
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keras_branchy.batch_gate import batch_gate
from keras_branchy.criteria import CRITERIA, gate_scores

SHAPES = st.tuples(st.integers(0, 9), st.integers(1, 12))
FLOATS = st.floats(-60, 60, width=32)
ODD = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1.5, 3e38])


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(max_examples=100, deadline=None)
@given(logits=st.one_of(arrays(np.float32, SHAPES, elements=e) for e in (FLOATS, ODD)))
def test_it_is_the_definition(criterion, logits):
    own = coefficients(criterion)
    score, label, probabilities = batch_gate(criterion, own)(logits)
    expected, wanted = gate_scores(logits, criterion, own)
    np.testing.assert_allclose(score, expected.astype(np.float32), rtol=2e-6, atol=1e-12)
    np.testing.assert_array_equal(label, wanted)
    z = logits.astype(np.float64)
    whole = ~np.isnan(expected)
    e = np.exp(z[whole] - z[whole].max(1, keepdims=True))
    softmax = e / e.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities[whole], softmax, rtol=2e-5, atol=1e-12)
    assert np.isnan(probabilities[~whole]).all()
    assert (score.dtype, label.dtype, probabilities.dtype) == (np.float32, int, np.float32)


def test_small_entropies_keep_their_digits():
    logits = np.array([[30.0, 0.0, 1.0]] * 5, np.float32)
    e = np.exp(np.array([-30.0, -29.0]))
    expected = np.log1p(e.sum()) - (e * [-30.0, -29.0]).sum() / (1 + e.sum())
    np.testing.assert_allclose(batch_gate("entropy")(logits)[0], expected, rtol=1e-6)
