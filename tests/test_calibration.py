# SPDX-License-Identifier: Apache-2.0
"""Thresholds from held-out samples, against every combination that there is."""

import itertools

import numpy as np
import pytest

from keras_branchy.calibration import calibrate
from keras_branchy.criteria import CRITERIA


def held_out(count, exits, rng, ties=False):
    """Scores and right answers of exits that get better; costs rise."""
    hard = rng.random(count)
    scores, correct = [], []
    for index in range(exits):
        reached = (index + 1) / exits
        correct.append(rng.random(count) < np.clip(1.1 - hard * (1.3 - reached), 0.05, 1))
        score = np.clip(hard * (1.4 - reached) + rng.normal(0, 0.15, count), 0, 2.3)
        scores.append((score.round(1) if ties else score).astype(np.float32))
    return scores[:-1], np.array(correct), np.cumsum(rng.random(exits) + 0.2)


def by_rule(scores, criteria, thresholds, correct, costs):
    """Accuracy, mean cost and shares of thresholds, sample by sample."""
    taken = []
    for sample in range(correct.shape[1]):
        exit_ = len(scores)
        for index in reversed(range(len(scores))):
            score, threshold = scores[index][sample], thresholds[index]
            if threshold is None or np.isnan(score):
                continue
            below = criteria[index] == "entropy"
            if score < np.float32(threshold) if below else score >= np.float32(threshold):
                exit_ = index
        taken.append(exit_)
    right = [correct[exit_, sample] for sample, exit_ in enumerate(taken)]
    shares = np.bincount(taken, minlength=len(correct)) / len(taken)
    return np.mean(right), np.mean(np.take(costs, taken)) / costs[-1], shares


def cheapest_of_all(scores, correct, costs, needed):
    """The least cost over every combination of thresholds, by enumeration."""
    choices = [[-1.0, *np.unique(score[~np.isnan(score)])] for score in scores]
    best = np.inf
    for combination in itertools.product(*choices):
        leaves = [s <= t for s, t in zip(scores, combination, strict=True)]
        taken = np.select(leaves, range(len(scores)), len(scores))
        right = np.choose(taken, correct).sum()
        if right >= needed:
            best = min(best, np.take(costs, taken).mean() / costs[-1])
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("exits, count", [(2, 60), (3, 40), (4, 18)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_target_is_kept_at_the_least_cost_there_is(exits, count, ties, seed):
    rng = np.random.default_rng(seed)
    scores, correct, costs = held_out(count, exits, rng, ties)
    scores[0][:2] = np.nan
    criteria = ["entropy"] * (exits - 1)
    for drop in (0.0, 0.05, 0.2):
        report = calibrate(scores, correct, costs, criteria, 10, max_accuracy_drop=drop)
        needed = correct[-1].sum() - np.floor(drop * count + 1e-9)
        assert report.accuracy * count >= needed - 1e-9
        best = cheapest_of_all(scores, correct, costs, needed)
        assert report.cost <= 1.01 * best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "target", [{"max_accuracy_drop": 0.03}, {"exit_shares": [0.3, 0.3]}]
)
def test_the_report_says_what_its_thresholds_do(target, seed):
    rng = np.random.default_rng(seed)
    scores, correct, costs = held_out(300, 3, rng)
    scores[1] = 2.3 - scores[1]  # sure is high
    criteria = ["entropy", "margin"]
    report = calibrate(scores, correct, costs, criteria, 10, **target)
    for point in (report.point, *report.front):
        accuracy, cost, shares = by_rule(scores, criteria, point.thresholds, correct, costs)
        assert point.accuracy == pytest.approx(accuracy, abs=1e-12)
        assert point.cost == pytest.approx(cost, abs=1e-12)
        np.testing.assert_allclose(point.shares, shares, atol=1e-12)
    assert report.last_accuracy == correct[-1].mean()
    np.testing.assert_allclose(report.exit_accuracy, correct.mean(1))
    if "exit_shares" in target:
        np.testing.assert_allclose(report.shares[:2], [0.3, 0.3], atol=1 / 300)


def test_rounding_on_another_runtime_moves_nobody():
    rng = np.random.default_rng(1)
    scores, correct, costs = held_out(2000, 3, rng)
    criteria = ["entropy"] * 2
    report = calibrate(scores, correct, costs, criteria, 10, max_accuracy_drop=0.02)
    for sign in (1, -1):
        # twice what scores were seen to move by with the batch size, relatively
        moved = [s * np.float32(1 + sign * 2e-7) for s in scores]
        moved_shares = by_rule(moved, criteria, report.thresholds, correct, costs)[2]
        np.testing.assert_array_equal(moved_shares, report.shares)


def test_a_threshold_is_midway_between_two_scores():
    scores = [np.array([0.1, 0.2, 0.6, 0.9], np.float32)]
    correct = np.array([[True, True, False, False], [True, True, True, True]])
    report = calibrate(scores, correct, [1, 4], ["entropy"], 10, max_accuracy_drop=0)
    assert report.thresholds == [pytest.approx(0.4)]
    assert report.shares == [0.5, 0.5]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_everyone_and_nobody(criterion):
    low, high = CRITERIA[criterion].bounds(10)
    scores = [np.array([0.2, 0.5, 0.7, 0.7], np.float32)]
    sure, useless = np.ones((2, 4), bool), np.array([[False] * 4, [True] * 4])
    everyone = calibrate(scores, sure, [1, 2], [criterion], 10, max_accuracy_drop=0)
    assert everyone.shares == [1.0, 0.0]
    assert low < everyone.thresholds[0] < high
    nobody = calibrate(scores, useless, [1, 2], [criterion], 10, max_accuracy_drop=0)
    assert nobody.thresholds == [None] and nobody.shares == [0.0, 1.0]
    assert nobody.accuracy_where_taken == [None, 1.0]


def test_everyone_leaves_though_a_score_is_at_its_bound():
    scores = [np.array([0.0, np.log(10)], np.float32)]
    report = calibrate(scores, np.ones((2, 2), bool), [1, 2], ["entropy"], 10,
                       max_accuracy_drop=0)  # fmt: skip
    assert np.all(scores[0] < np.float32(report.thresholds[0]))


def test_broken_scores_never_leave():
    scores = [np.full(4, np.nan, np.float32)]
    report = calibrate(scores, np.ones((2, 4), bool), [1, 2], ["margin"], 10,
                       max_accuracy_drop=1.0)  # fmt: skip
    assert report.thresholds == [None] and report.shares == [0.0, 1.0]


def test_equal_scores_leave_together():
    scores = [np.array([0.1, 0.5, 0.5, 0.5, 0.9], np.float32)]
    report = calibrate(scores, np.ones((2, 5), bool), [1, 2], ["entropy"], 10,
                       exit_shares=[0.5])  # fmt: skip
    assert report.shares[0] in (0.2, 0.8)


def test_the_front_rises_in_accuracy_with_cost():
    scores, correct, costs = held_out(3000, 4, np.random.default_rng(2))
    report = calibrate(scores, correct, costs, ["entropy"] * 3, 10, max_accuracy_drop=0.01)
    accuracy = [point.accuracy for point in report.front]
    cost = [point.cost for point in report.front]
    assert len(report.front) > 5
    assert accuracy == sorted(set(accuracy)) and cost == sorted(cost)


@pytest.mark.parametrize(
    "target, message",
    [
        ({}, r"exactly one target. Received: max_accuracy_drop=None, exit_shares=None"),
        ({"max_accuracy_drop": 0.1, "exit_shares": [0.5]}, r"exactly one target"),
        (
            {"max_accuracy_drop": 1.5},
            r"a fraction between 0 and 1. Received: 1.5. One point",
        ),
        ({"max_accuracy_drop": float("nan")}, r"a fraction between 0 and 1"),
        ({"exit_shares": [0.5, 0.2]}, r"each exit but the last: 1 numbers"),
        ({"exit_shares": [1.2]}, r"a sum of at most 1. Received: \[1.2\]"),
        ({"exit_shares": [-0.1]}, r"at least 0"),
    ],
)
def test_targets_that_make_no_sense(target, message):
    scores = [np.array([0.1, 0.2], np.float32)]
    with pytest.raises(ValueError, match=message):
        calibrate(scores, np.ones((2, 2), bool), [1, 2], ["entropy"], 10, **target)


def test_no_samples():
    with pytest.raises(ValueError, match=r"Received: 0 samples"):
        calibrate([np.zeros(0)], np.ones((2, 0), bool), [1, 2], ["entropy"], 10,
                  max_accuracy_drop=0.1)  # fmt: skip
