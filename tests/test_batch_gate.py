# SPDX-License-Identifier: Apache-2.0
"""The gate for a batch against the definition in float64."""

import numpy as np
import pytest
from cases import coefficients
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keras_branchy.batch_gate import batch_gate, sample_gate
from keras_branchy.criteria import CRITERIA, gate_scores

# Samples in order and classes in order, and so few that Python does it alone.
SHAPES = st.one_of(
    st.tuples(st.integers(0, 9), st.integers(1, 12)),
    st.tuples(st.integers(0, 3), st.integers(45, 52)),
)
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


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("classes", [10, 1000])
def test_one_sample_is_judged_as_among_others(rng, criterion, classes):
    own = coefficients(criterion)
    logits = rng.normal(scale=4.0, size=(9, classes)).astype(np.float32)
    logits[3, 1] = np.nan
    one = sample_gate(criterion, own, classes)
    for row, wanted, label in zip(
        logits, *gate_scores(logits, criterion, own), strict=True
    ):
        score, found, probabilities = one(row[None])
        assert isinstance(score, float) and isinstance(found, int)
        np.testing.assert_allclose(score, wanted, rtol=2e-6)
        assert found == label and len(probabilities) == classes
        z = row.astype(np.float64)
        e = np.exp(z - z.max())
        np.testing.assert_allclose(probabilities, e / e.sum(), rtol=2e-5, atol=1e-12)


def test_small_entropies_keep_their_digits():
    logits = np.array([[30.0, 0.0, 1.0]] * 5, np.float32)
    e = np.exp(np.array([-30.0, -29.0]))
    expected = np.log1p(e.sum()) - (e * [-30.0, -29.0]).sum() / (1 + e.sum())
    np.testing.assert_allclose(batch_gate("entropy")(logits)[0], expected, rtol=1e-6)
