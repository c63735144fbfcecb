# SPDX-License-Identifier: Apache-2.0
"""Thresholds from held-out samples, against every combination that there is."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_branchy import threshold_search
from keras_branchy.calibration import calibrate
from keras_branchy.criteria import CRITERIA
from keras_branchy.thresholds import check_thresholds, gate_thresholds


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


def exits_by_rule(scores, criteria, thresholds):
    """The exit of each sample, one after another, as the gate compares: in float32."""
    thresholds = check_thresholds(thresholds, list(criteria))
    limits = gate_thresholds(thresholds, criteria)
    taken = []
    for row in zip(*scores, strict=True):
        leaves = [
            score < limit if criterion == "entropy" else score >= limit
            for score, limit, criterion in zip(row, limits, criteria, strict=True)
        ]
        taken.append([*leaves, True].index(True))
    return np.array(taken)


def by_rule(scores, criteria, thresholds, correct, costs):
    """Accuracy, mean cost and shares of thresholds."""
    taken = exits_by_rule(scores, criteria, thresholds)
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
@pytest.mark.parametrize("exits, count", [(2, 60), (3, 40), (4, 15)])
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


def unrelated(count, exits, seed):
    """Exits that are sure of other samples, which is hard for a search in steps."""
    rng = np.random.default_rng(seed)
    scores = [
        rng.permutation(count).astype(np.float32) / count + 0.01 for _ in range(exits)
    ]
    correct = [rng.random(count) < 0.55 + 0.35 * k / exits for k in range(exits + 1)]
    for score, right in zip(scores, correct, strict=False):
        right |= (score < 0.3) & (rng.random(count) < 0.5)
    return scores, np.array(correct), np.cumsum(rng.uniform(0.5, 2, exits + 1))


@pytest.mark.parametrize("seed", range(8))
def test_near_the_least_cost_where_not_all_combinations_are_tried(monkeypatch, seed):
    # As if there were too many samples: 2,048 combinations of 24³.
    monkeypatch.setattr(threshold_search, "ALL", 2**11)
    monkeypatch.setattr(threshold_search, "CELLS", 2**11)
    scores, correct, costs = unrelated(23, 3, seed)
    for drop in (0.0, 0.1):
        report = calibrate(
            scores, correct, costs, ["entropy"] * 3, 10, max_accuracy_drop=drop
        )
        needed = correct[-1].sum() - np.floor(drop * 23 + 1e-9)
        assert report.accuracy * 23 >= needed - 1e-9
        assert report.cost <= 1.01 * cheapest_of_all(scores, correct, costs, needed)


@pytest.mark.long
def test_many_samples_and_exits_take_seconds():
    scores, correct, costs = held_out(50_000, 8, np.random.default_rng(3))
    tracemalloc.start()
    began = time.process_time()
    report = calibrate(scores, correct, costs, ["entropy"] * 7, 10, max_accuracy_drop=0.01)
    # 3 s on an idle core, more beside other work; its arrays hold 30 MB
    assert time.process_time() - began < 30
    assert tracemalloc.get_traced_memory()[1] < 2e8
    tracemalloc.stop()
    assert report.accuracy >= report.last_accuracy - 0.01
    assert report.cost < 0.9


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-20])
def test_rounding_on_another_runtime_moves_nobody(criterion, scale):
    rng = np.random.default_rng(1)
    scores, correct, costs = held_out(600, 3, rng)
    scores = [(score * np.float32(scale)).astype(np.float32) for score in scores]
    if criterion == "max_probability":
        # Near 1 there are ties, and neighbours one unit of float32 apart.
        scores = [1 - score / 4 for score in scores]
    elif criterion != "entropy":
        scores = [np.float32(2.3 * scale) - score for score in scores]
    criteria = [criterion] * 2
    for target in ({"max_accuracy_drop": 0.02}, {"exit_shares": [0.3, 0.3]}):
        report = calibrate(scores, correct, costs, criteria, 10, **target)
        want = exits_by_rule(scores, criteria, report.thresholds)
        np.testing.assert_allclose(np.bincount(want, minlength=3) / 600, report.shares)
        # Scores were seen to move by 2.4e-7 with the batch size.
        for size in (1e-7, 3e-7):
            signs = [rng.choice([-size, size], 600) for _ in scores]
            moved = [(s * (1 + d)).astype(np.float32)
                     for s, d in zip(scores, signs, strict=True)]  # fmt: skip
            got = exits_by_rule(moved, criteria, report.thresholds)
            np.testing.assert_array_equal(got, want)


def test_no_cut_between_scores_that_may_change_places():
    near = [0.1, 0.5, 0.5 * (1 + 5e-7), 0.9]
    # The second leaves with the third, which is wrong, or not at all.
    scores, correct = [np.array(near)], np.array([[True, True, False, False], [True] * 4])
    report = calibrate(scores, correct, [1, 4], ["entropy"], 10, max_accuracy_drop=0.0)
    assert report.thresholds == [pytest.approx(0.3)]
    scores = [np.array([0.0, 1e-45, 1e-40, 0.5])]
    report = calibrate(scores, correct, [1, 4], ["entropy"], 10, max_accuracy_drop=0.0)
    assert report.thresholds == [None]


HOSTILE = [
    *(0.0, 1e-45, 1e-40, 1e-38, 3e-37, 1e-30, 2e-7, 0.1, 0.5, 0.50000006, 0.500001),
    *(0.75, 0.99999994, 1.0, 2.3025851, np.nan),
]
ANY = [*HOSTILE, -1e-45, -3e-37, -0.5, -1e4, 1e4, 1e38, -1e38, 3e38, -3e38, -np.inf]


@st.composite
def hostile_instances(draw):
    exits, count = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    criteria = draw(st.lists(st.sampled_from(sorted(CRITERIA)), min_size=exits,
                             max_size=exits))  # fmt: skip
    scores = [
        np.array(
            draw(st.lists(st.sampled_from(ANY if name == "distance" else HOSTILE),
                          min_size=count, max_size=count)),
            np.float32,
        )
        for name in criteria
    ]  # fmt: skip
    bits = st.lists(st.booleans(), min_size=count, max_size=count)
    correct = np.array([draw(bits) for _ in range(exits + 1)])
    return scores, correct, criteria, draw(st.sampled_from([0.0, 0.2, 1.0, None]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(hostile_instances())
def test_the_report_holds_for_hostile_scores(instance):
    scores, correct, criteria, drop = instance
    exits = len(scores)
    target = {"max_accuracy_drop": drop}
    if drop is None:
        target = {"exit_shares": [1 / exits] * exits}
    costs = np.arange(1, exits + 2)
    report = calibrate(scores, correct, costs, criteria, 10, **target)
    for point in (report.point, *report.front):
        accuracy, cost, shares = by_rule(scores, criteria, point.thresholds, correct, costs)
        assert point.accuracy == pytest.approx(accuracy, abs=1e-12)
        assert point.cost == pytest.approx(cost, abs=1e-12)
        np.testing.assert_allclose(point.shares, shares, atol=1e-12)
    if drop is not None:
        assert report.accuracy >= report.last_accuracy - drop - 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_every_criterion_finds_the_least_cost(seed):
    """Four exits, each with another criterion, as sure in other units."""
    rng = np.random.default_rng(seed)
    entropy, correct, costs = held_out(11, 5, rng)
    as_sure = [lambda s: s, lambda s: 1 - s / 4, lambda s: np.exp(-s), lambda s: -9 * s]
    scores = [f(score) for f, score in zip(as_sure, entropy, strict=True)]
    criteria = ["entropy", "max_probability", "margin", "distance"]
    report = calibrate(scores, correct, costs, criteria, 10, max_accuracy_drop=0.1)
    best = cheapest_of_all(entropy, correct, costs, correct[-1].sum() - 1)
    assert report.cost == pytest.approx(best)


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


@pytest.mark.parametrize(
    "shares, want",
    [
        ([0.0, 0.0], [0.0, 0.0]),
        ([0.4, 0.4], [0.4, 0.4]),
        ([1.0, 0.0], [1.0, 0.0]),
        ([0.0, 1.0], [0.0, 0.8]),  # two samples have no score at exit 2
        ([0.3, 0.1], [0.2, 0.1]),  # 0.2 and 0.4 are as near
    ],
)
def test_shares_are_of_all_samples(shares, want):
    scores = [
        np.array([0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]),
        np.arange(10) / 10,
    ]
    scores[1][:2] = np.nan
    report = calibrate(scores, np.ones((3, 10), bool), [1, 2, 3], ["entropy", "margin"],
                       10, exit_shares=shares)  # fmt: skip
    np.testing.assert_allclose(report.shares[:2], want)
    assert [t is None for t in report.thresholds] == [share == 0 for share in want]
    assert report.front == []


def test_the_chosen_point_is_on_the_front():
    scores, correct, costs = held_out(60, 3, np.random.default_rng(5))
    for drop in (0.0, 0.03, 0.1, 1.0):
        report = calibrate(
            scores, correct, costs, ["entropy"] * 2, 10, max_accuracy_drop=drop
        )
        assert report.point in report.front


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
        ({}, r"exactly one target, of max_accuracy_drop, .*Received: none"),
        (
            {"max_accuracy_drop": 0.1, "exit_shares": [0.5]},
            r"Received: max_accuracy_drop=0.1, exit_shares=\[0.5\]",
        ),
        ({"min_accuracy": -0.1}, r"`min_accuracy` is a fraction between 0 and 1"),
        ({"max_disagreement": "1"}, r"`max_disagreement` is a fraction.*Received: '1'"),
        ({"exit_shares": 0.5}, r"`exit_shares` holds the share of all.*Received: 0.5"),
        ({"exit_shares": "abc"}, r"`exit_shares` holds the share of all.*Received: 'abc'"),
        ({"max_cost": 0}, r"`max_cost` is the mean cost of a sample.*Received: 0"),
        ({"max_cost": float("inf")}, r"`max_cost` is the mean cost of a sample"),
        ({"max_cost": 0.5}, r"`max_cost`=0.5 cannot be kept: leaving at the first exit"),
        (
            {"max_accuracy_drop": 1.5},
            r"a fraction between 0 and 1. Received: 1.5. One point",
        ),
        ({"max_accuracy_drop": float("nan")}, r"a fraction between 0 and 1"),
        ({"exit_shares": [0.5, 0.2]}, r"each exit but the last: 1 numbers"),
        ({"exit_shares": [1.2]}, r"a sum of at most 1. Received: \[1.2\]"),
        ({"exit_shares": [-0.1]}, r"at least 0"),
        ({"exit_shares": [float("nan")]}, r"at least 0"),
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


SCORES, RIGHT = [np.array([0.1, 0.2], np.float32)], np.ones((2, 2), bool)


@pytest.mark.parametrize(
    "scores, correct, costs, message",
    [
        (SCORES, RIGHT[:1], [1, 2], r"correct of shape \(1, 2\)"),
        (SCORES, RIGHT[0], [1, 2], r"`correct` must be \[exits, samples\].*shape \(2,\)"),
        ([SCORES[0][:1]], RIGHT, [1, 2], r"of 1 criteria.*scores of shapes \[\(1,\)\]"),
        (SCORES * 2, RIGHT, [1, 2], r"scores of shapes \[\(2,\), \(2,\)\]"),
        (SCORES, RIGHT, [2, 1], r"`costs` must be 2 numbers.*Received: costs=\[2, 1\]"),
        (SCORES, RIGHT, [0, 1], r"more than 0 that never fall"),
        (SCORES, RIGHT, [1], r"`costs` must be 2 numbers"),
        (SCORES, RIGHT, [1, np.inf], r"`costs` must be 2 numbers"),
        (SCORES, RIGHT, [1, np.nan], r"`costs` must be 2 numbers"),
    ],
)
def test_arrays_that_do_not_fit_together(scores, correct, costs, message):
    with pytest.raises(ValueError, match=message):
        calibrate(scores, correct, costs, ["entropy"], 10, max_accuracy_drop=0.1)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"agrees": RIGHT[:1]}, r"Received: .*, agrees of shape \(1, 2\)\."),
        ({"labels": [1]}, r"Received: .*, labels of shape \(1,\)\."),
    ],
)
def test_what_comes_beside_must_fit_too(more, message):
    with pytest.raises(ValueError, match=message):
        calibrate(SCORES, RIGHT, [1, 2], ["entropy"], 10, max_cost=1.5, **more)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("exits", [2, 3])
def test_the_most_accurate_within_a_budget(exits, seed):
    scores, correct, costs = held_out(40, exits, np.random.default_rng(seed))
    criteria = ["entropy"] * (exits - 1)
    for share in (0.5, 0.7, 0.9):
        budget = costs[0] + share * (costs[-1] - costs[0])
        report = calibrate(scores, correct, costs, criteria, 10, max_cost=budget)
        taken = exits_by_rule(scores, criteria, report.thresholds)
        assert costs[taken].mean() <= budget * (1 + 1e-9)
        best = 0
        for combination in itertools.product(*([-1.0, *np.unique(s)] for s in scores)):
            leaves = [s <= t for s, t in zip(scores, combination, strict=True)]
            at = np.select(leaves, range(len(scores)), len(scores))
            if costs[at].mean() <= budget * (1 + 1e-9):
                best = max(best, np.choose(at, correct).sum())
        assert report.accuracy * 40 == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
def test_an_accuracy_and_an_agreement_are_kept_at_the_least_cost(seed):
    rng = np.random.default_rng(seed)
    scores, correct, costs = held_out(40, 3, rng)
    criteria = ["entropy"] * 2
    wanted = correct[-1].mean() - 0.1
    report = calibrate(scores, correct, costs, criteria, 10, min_accuracy=wanted)
    assert report.accuracy >= wanted - 1e-9
    needed = np.ceil(wanted * 40 - 1e-9)
    assert report.cost == pytest.approx(cheapest_of_all(scores, correct, costs, needed))
    agrees = rng.random((3, 40)) < [[0.6], [0.8], [1.1]]
    report = calibrate(scores, correct, costs, criteria, 10, max_disagreement=0.1,
                       agrees=agrees)  # fmt: skip
    best = cheapest_of_all(scores, agrees, costs, 36)
    assert report.cost == pytest.approx(best)
    report = calibrate(scores, correct, costs, criteria, 10, max_lost_answers=0.1)
    best = cheapest_of_all(scores, correct | ~correct[-1], costs, 36)
    assert report.cost == pytest.approx(best)


def test_an_accuracy_that_no_exit_has():
    scores, correct, costs = held_out(60, 3, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"min_accuracy=0.999 cannot be kept: the last"):
        calibrate(scores, correct, costs, ["entropy"] * 2, 10, min_accuracy=0.999)
