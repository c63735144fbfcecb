# SPDX-License-Identifier: Apache-2.0
"""Who leaves because successive exits agree, and thresholds beside it, by brute force."""

from itertools import product

import numpy as np
import pytest

from keras_branchy.agreement import agreements
from keras_branchy.calibration import calibrate

EXITS, CLASSES, COSTS = 4, 3, [1.0, 2.0, 4.0, 7.0]


def by_hand(scores, labels, patience, sample):
    """The exits at which a sample's last `patience` labels are equal, one by one."""
    found = []
    for index in range(len(labels)):
        last = range(index - patience + 1, index + 1)
        inside = last[0] >= 0 and not np.isnan([scores[k][sample] for k in last]).any()
        found.append(inside and len({labels[k][sample] for k in last}) == 1)
    return found


@pytest.mark.parametrize("patience", [2, 3, 4])
def test_agreements_by_hand(rng, patience):
    labels = rng.integers(0, CLASSES, (EXITS, 200))
    scores = np.where(rng.random((EXITS, 200)) < 0.15, np.nan, 1.0)
    found = agreements(scores, labels, patience)
    expected = [by_hand(scores, labels, patience, sample) for sample in range(200)]
    np.testing.assert_array_equal(found, np.transpose(expected))
    assert found.any() and not found[: patience - 1].any()
    assert not agreements(scores, labels, None).any()


def made_up(rng, samples):
    scores = list(rng.random((EXITS - 1, samples)).round(1))
    labels = rng.integers(0, CLASSES, (EXITS, samples))
    labels[:, rng.random(samples) < 0.5] = 0
    truth = np.where(
        rng.random(samples) < 0.8, labels[-1], rng.integers(0, CLASSES, samples)
    )
    leaving = agreements(np.stack(scores), labels[:-1], 2)
    return scores, labels == truth, leaving


def outcomes(scores, correct, leaving):
    """Accuracy and cost of all thresholds that differ, each sample walked by itself."""
    samples = correct.shape[1]
    tried = [[-1.0, *(np.unique(score) + 0.05)] for score in scores]
    for limits in product(*tried):
        right, cost, taken = 0, 0.0, []
        for sample in range(samples):
            goes = (
                k
                for k in range(EXITS - 1)
                if scores[k][sample] < limits[k] or leaving[k][sample]
            )
            taken.append(next(goes, EXITS - 1))
            right += correct[taken[-1]][sample]
            cost += COSTS[taken[-1]]
        yield right / samples, cost / samples / COSTS[-1], taken


def test_thresholds_beside_agreement_are_the_best_there_are(rng):
    for _ in range(6):
        scores, correct, leaving = made_up(rng, 24)
        every = list(outcomes(scores, correct, leaving))
        kept = [
            cost for right, cost, _ in every if right >= correct[-1].mean() - 0.25 - 1e-9
        ]
        given = scores, correct, COSTS, ["entropy"] * 3, CLASSES
        report = calibrate(*given, max_accuracy_drop=0.25, leaving=leaving)
        assert report.cost == pytest.approx(min(kept))
        right, cost, taken = min(
            every, key=lambda found: (abs(found[1] - report.cost), -found[0])
        )
        assert report.accuracy == pytest.approx(right) and report.cost == pytest.approx(
            cost
        )
        # The cheapest that anything can be: everyone at the first exit.
        least = calibrate(*given, max_cost=COSTS[0] * 1.001, leaving=leaving)
        assert least.shares == [1.0, 0.0, 0.0, 0.0]


def test_shares_count_who_leaves_anyway(rng):
    scores, correct, leaving = made_up(rng, 2000)
    scores = list(rng.random((EXITS - 1, 2000)))
    given = scores, correct, COSTS, ["entropy"] * 3, CLASSES
    anyway = leaving[1].mean()
    report = calibrate(*given, exit_shares=[0.0, anyway + 0.1, 0.0], leaving=leaving)
    assert report.shares[1] == pytest.approx(anyway + 0.1, abs=0.001)
    # A lower share is not to be had, and no threshold adds to it.
    report = calibrate(*given, exit_shares=[0.0, anyway / 2, 0.0], leaving=leaving)
    assert report.thresholds[1] is None and report.shares[1] == pytest.approx(anyway)


def test_a_promise_counts_what_agreement_loses(rng):
    """2,000 samples, of whom agreement loses the answers of a tenth."""
    samples = 2000
    scores = list(np.full((3, samples), np.nan))  # nobody leaves by a threshold
    correct = np.ones((EXITS, samples), bool)
    leaving = np.zeros((3, samples), bool)
    leaving[1, : samples // 10] = True
    correct[1, : samples // 10] = False
    given = scores, correct, COSTS, ["entropy"] * 3, CLASSES
    with pytest.raises(ValueError, match="or set model.patience higher"):
        calibrate(*given, max_accuracy_drop=0.09, confidence=0.9, leaving=leaving)
    with pytest.warns(UserWarning, match="only where successive exits agree"):
        report = calibrate(*given, max_accuracy_drop=0.13, confidence=0.9, leaving=leaving)
    assert report.guarantee.risks[0] == pytest.approx(0.1, abs=0.02)
    assert report.accuracy == pytest.approx(0.9)


def test_arrays_that_do_not_fit(rng):
    scores, correct, leaving = made_up(rng, 20)
    given = scores, correct, COSTS, ["entropy"] * 3, CLASSES
    with pytest.raises(ValueError, match=r"leaving of shape \(2, 20\)"):
        calibrate(*given, max_cost=3.0, leaving=leaving[:2])
