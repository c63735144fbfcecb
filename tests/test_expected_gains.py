# SPDX-License-Identifier: Apache-2.0
"""What exits gain in expectation, against another regression and a known truth."""

import numpy as np

from keras_branchy.expected_gains import expected_gains


def drawn(count, seed=0):
    """Three exits; the chance of a right answer is known from the first two's scores."""
    rng = np.random.default_rng(seed)
    scores = rng.random((2, count))
    chance = np.array([1 - 0.8 * scores[0], 1 - 0.5 * scores[0] * scores[1]])
    good = np.concatenate([rng.random((2, count)) < chance, np.ones((1, count), bool)])
    return scores, good, chance - 1


def test_they_are_near_the_truth_and_nearer_than_what_is_seen():
    scores, good, truth = drawn(4000)
    found = expected_gains(scores, good)
    assert found.shape == (3, 4000) and (found[-1] == 0).all()
    # Each loss counts a fifth more, for the doubt that it brings.
    assert np.abs(found[:2] / 1.2 - truth).mean() < 0.03
    assert np.abs(good[:2] - 1.0 - truth).mean() > 0.15


def test_they_are_a_ridge_regression_on_the_scores_until_there():
    """Least squares on rows that pull each coefficient to 0, by another solver."""
    scores, good, _ = drawn(300, seed=1)
    found = expected_gains(scores, good)
    columns = []
    for index, score in enumerate(scores):
        place = np.array([(score < one).mean() for one in score])
        columns += [place, *(np.maximum(place - bend / 7, 0) for bend in range(1, 7))]
        known = np.stack(columns, axis=1) - np.mean(columns, axis=1)
        gained = good[index].astype(float) - good[-1]
        wanted = gained - 0.2 * abs(gained)
        rows = np.concatenate([known, np.sqrt(10.0) * np.eye(len(columns))])
        values = np.concatenate([wanted - wanted.mean(), np.zeros(len(columns))])
        weights = np.linalg.lstsq(rows, values, rcond=None)[0]
        np.testing.assert_allclose(found[index], wanted.mean() + known @ weights, atol=1e-9)


def test_only_order_matters_and_nan_is_the_least_sure():
    scores, good, _ = drawn(500, seed=2)
    found = expected_gains(scores, good)
    np.testing.assert_allclose(expected_gains(np.exp(9 * scores), good), found)
    scores[0, :100] = np.nan
    assert np.isfinite(expected_gains(scores, good)).all()


def test_gains_and_losses_have_opposite_signs():
    scores = [np.linspace(0, 1, 4000)]
    here = scores[0] < 0.5
    found = expected_gains(scores, np.array([here, ~here]))[0]
    # A gain counts a fifth less, a loss a fifth more.
    assert 0.7 < found[1000] < 0.9 and -1.3 < found[3000] < -1.1
    same = expected_gains(scores, np.array([here, here]))
    np.testing.assert_allclose(same, 0, atol=1e-12)
