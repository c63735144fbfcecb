# SPDX-License-Identifier: Apache-2.0
"""Tests of a risk against exact binomial arithmetic and simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest

from keras_branchy.binomial import binomial_cdf, binomial_interval, log_factorials
from keras_branchy.drop_test import drop_test
from keras_branchy.risk import RiskTest, _hoeffding_bentkus


def exact_cdf(successes, trials, probability):
    """Σ C(n, k) p^k (1-p)^(n-k) in exact arithmetic."""
    p = Fraction(probability)
    return float(
        sum(
            math.comb(trials, k) * p**k * (1 - p) ** (trials - k)
            for k in range(successes + 1)
        )
    )


@pytest.mark.parametrize(
    "trials, probability", [(1, 0.5), (7, 0.125), (60, 0.01), (300, 0.25)]
)
def test_the_binomial_distribution(trials, probability):
    k = np.arange(-1, trials + 1)
    want = [exact_cdf(int(x), trials, probability) for x in k]
    np.testing.assert_allclose(binomial_cdf(k, trials, probability), want, rtol=1e-10)


@pytest.mark.parametrize("trials, first, last", [(60, 0, 0), (60, 3, 7), (40, 40, 40)])
def test_the_interval_of_a_probability_is_clopper_and_pearsons(trials, first, last):
    least, most = binomial_interval(first, last, trials, 0.02)
    if first > 0:
        assert 1 - exact_cdf(first - 1, trials, least) == pytest.approx(0.01, rel=1e-6)
    if last < trials:
        assert exact_cdf(last, trials, most) == pytest.approx(0.01, rel=1e-6)
    assert (least == 0) is (first == 0) and (most == 1) is (last == trials)


def test_factorials():
    want = [math.log(math.factorial(k)) for k in range(30)]
    np.testing.assert_allclose(log_factorials(29), want, rtol=1e-13)


def test_the_binomial_distribution_at_its_ends():
    assert binomial_cdf(np.array([0, 3]), 3, 0.0).tolist() == [1.0, 1.0]
    assert binomial_cdf(np.array([0, 2, 3]), 3, 1.0).tolist() == [0.0, 0.0, 1.0]
    # 1e5 terms of a long tail still sum up to one.
    assert binomial_cdf(np.array([200_000]), 200_000, 0.02)[0] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    "confidence, needed", [(0.9, 230), (0.95, 299), (0.99, 459), ("mean", 99)]
)
def test_the_samples_that_one_percent_needs(confidence, needed):
    test = RiskTest(confidence)
    assert test.samples_needed(0.01) == needed
    for count in (needed - 1, needed):
        assert test(np.zeros(count), 0.01).passes is (count == needed)
        assert (test.losses_allowed(count, 0.01) >= 0) is (count == needed)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("count, limit", [(500, 0.02), (300, 0.05), (459, 0.01)])
def test_a_test_lets_through_as_many_losses_as_the_tail_allows(confidence, count, limit):
    test = RiskTest(confidence)
    allowed = test.losses_allowed(count, limit)
    delta = 1 - confidence
    assert exact_cdf(allowed, count, limit) <= delta < exact_cdf(allowed + 1, count, limit)
    losses = np.zeros(count, bool)
    losses[:allowed] = True
    assert test(losses, limit).passes
    losses[allowed] = True
    assert not test(losses, limit).passes


def test_on_average_allows_what_conformal_risk_control_says():
    """(n·R̂ + 1) / (n + 1) ≤ limit."""
    test = RiskTest("mean")
    for count in (99, 100, 1000):
        allowed = test.losses_allowed(count, 0.01)
        assert (allowed + 1) / (count + 1) <= 0.01 < (allowed + 2) / (count + 1)
        assert test(np.arange(count) < allowed, 0.01).passes
        assert not test(np.arange(count) < allowed + 1, 0.01).passes


def test_losses_that_are_no_zeros_and_ones():
    """Rejected less often than 1 - confidence where the mean is just above the limit."""
    rng = np.random.default_rng(0)
    test = RiskTest(0.9)
    wrong = np.mean([test(rng.beta(2, 3, 400), 0.399).passes for _ in range(2000)])
    assert wrong <= 0.1 + 3 * math.sqrt(0.09 / 2000)
    assert np.mean([test(rng.beta(2, 3, 400), 0.5).passes for _ in range(200)]) > 0.9


def test_where_gains_count_they_make_up_for_losses():
    test = RiskTest(0.95, gains_count=True)
    losses = np.zeros(5000)
    losses[:60] = 1
    assert not test(losses, 0.01).passes
    losses[60:120] = -1
    found = test(losses, 0.01)
    assert found.passes and found.risk == 0
    assert not test(losses, 0.0).passes and test(losses, 1.0).passes
    assert test.losses_allowed(5000, 0.01) == drop_test(5000, 0.01, 0.05).losses_allowed(0)
    mean = RiskTest("mean", gains_count=True)
    assert mean(losses, 1 / 5001).passes and not mean(losses, 0.99 / 5001).passes
    assert mean.samples_needed(0.01) == 99 and mean.losses_allowed(99, 0.01) == 0


@pytest.mark.parametrize("confidence, limit", [(0.95, 0.01), (0.9, 0.05), (0.99, 0.02)])
def test_a_drop_needs_no_more_samples_than_lost_answers(confidence, limit):
    needed = RiskTest(confidence, gains_count=True).samples_needed(limit)
    assert needed == RiskTest(confidence).samples_needed(limit)
    for count in (needed - 1, needed, needed + 40):
        passes = RiskTest(confidence, gains_count=True)(np.zeros(count), limit).passes
        assert passes is (count >= needed)


def test_the_walk_ends_at_the_first_that_fails():
    test = RiskTest(0.95)
    fine, bad = [(np.zeros(400), 0.01)], [(np.ones(400), 0.01)]
    assert len(test.walk([fine, fine, bad, fine])) == 2
    assert test.walk([bad, fine]) == []
    both = [(np.zeros(400), 0.01), (np.ones(400), 0.5)]
    assert len(test.walk([fine, both])) == 1
    (found,) = test.walk([fine])[0]
    assert (found.risk, found.limit, found.samples) == (0.0, 0.01, 400)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1, 1.5, np.nan, True, "often", None])
def test_a_confidence_that_is_none(confidence):
    with pytest.raises(ValueError, match=r"`confidence` is a probability between 0 and 1"):
        RiskTest(confidence)


def test_limits_that_cannot_or_need_not_be_tested():
    assert RiskTest(0.95).samples_needed(0.0) == math.inf
    assert RiskTest(0.95).samples_needed(1.0) == 1
    assert not RiskTest(0.95)(np.zeros(10_000), 0.0).passes
    assert RiskTest(0.95)(np.ones(10), 1.0).passes
    assert RiskTest(0.95)(np.full(10, 0.5), 1.0).passes


@pytest.mark.parametrize(
    "mean, count, limit",
    [
        *((0.0, 50, 0.1), (0.01, 300, 0.05), (0.24, 40, 0.5), (0.05, 20, 0.4)),
        *((0.299, 1000, 0.3), (0.1, 10, 0.11), (0.45, 400, 0.5), (1e-12, 60, 0.05)),
    ],
)
def test_the_p_value_of_a_mean(mean, count, limit):
    """The lesser of Hoeffding's and Bentkus' bounds, 2110.01052, equations 12 and 13."""
    ratio = 0 if mean < 1e-9 else mean * math.log(mean / limit)
    hoeffding = math.exp(-count * (ratio + (1 - mean) * math.log((1 - mean) / (1 - limit))))
    bentkus = math.e * exact_cdf(math.ceil(round(count * mean, 6)), count, limit)
    want = min(hoeffding, bentkus)
    assert _hoeffding_bentkus(mean, count, limit) == pytest.approx(want, rel=1e-7)


def test_a_mean_at_or_above_the_limit_is_no_evidence():
    assert _hoeffding_bentkus(0.3, 1000, 0.3) == 1.0
    assert _hoeffding_bentkus(1.0, 1000, 0.3) == 1.0
    assert _hoeffding_bentkus(0.9, 10, 1.0) == 0.0


def test_a_mean_passes_where_its_p_value_is_small_enough():
    losses = np.full(400, 0.25)
    value = _hoeffding_bentkus(0.25, 400, 0.3)
    assert 0.01 < value < 0.2
    assert RiskTest(1 - value - 1e-6)(losses, 0.3).passes
    assert not RiskTest(1 - value + 1e-6)(losses, 0.3).passes


def test_a_confidence_may_be_a_number_of_numpy():
    assert RiskTest(np.float64(0.95)).samples_needed(0.01) == 299
