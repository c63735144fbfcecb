# SPDX-License-Identifier: Apache-2.0
"""The test of a drop in accuracy, against every possible outcome and by simulation."""

import math

import numpy as np
import pytest

from keras_branchy.drop_test import DropTest, _Sizes, drop_test, score_statistic


def multinomial(count):
    """[G, L] log of the number of ways, -inf where there are not so many samples."""
    lost, gained = np.meshgrid(np.arange(count + 1), np.arange(count + 1))
    rest = count - lost - gained
    logs = np.array([math.lgamma(k + 1) for k in range(count + 1)])
    ways = logs[count] - logs[lost] - logs[gained] - logs[rest.clip(0)]
    return np.where(rest >= 0, ways, -np.inf), lost, gained, rest


def chances(ways, of_lost, of_gained):
    log, lost, gained, rest = ways
    rate = math.log(1 - of_lost - of_gained)
    return np.exp(
        log + lost * math.log(of_lost) + gained * math.log(of_gained) + rest * rate
    )


@pytest.mark.parametrize(
    "count, limit, error",
    [
        *((25, 0.2, 0.2), (40, 0.15, 0.05), (80, 0.03, 0.3), (80, 0.05, 0.1)),
        *((150, 0.05, 0.05), (59, 0.05, 0.05), (62, 0.05, 0.05), (92, 0.05, 0.01)),
    ],
)
def test_no_drop_above_the_limit_passes_more_often_than_allowed(count, limit, error):
    """All outcomes, all rates of gains, and drops at the limit and above."""
    test = DropTest(count, limit, error)
    ways = multinomial(count)
    passes = np.array(
        [
            [lost + gained <= count and test.passes(lost, gained)
             for lost in range(count + 1)]
            for gained in range(count + 1)
        ]
    )  # fmt: skip
    at_limit = []
    for gained in np.linspace(1e-9, (1 - limit) / 2 - 1e-6, 120):
        for more in (0, 0.01, 0.1):
            if 2 * gained + limit + more < 1:
                chance = chances(ways, gained + limit + more, gained)[passes].sum()
                assert chance <= error, (gained, more)
                at_limit += [chance] * (more == 0)
    # And it wastes little of it, whatever the gains are, but where only L = 0 can pass.
    assert count == 59 or np.median(at_limit) > 0.75 * error


@pytest.mark.parametrize("gained", [0.002, 0.03, 0.2])
def test_how_often_it_passes_by_simulation(gained):
    count, limit, error, repeats = 3000, 0.02, 0.1, 4000
    test = drop_test(count, limit, error)
    rng = np.random.default_rng(0)

    def passed(drop):
        rates = [gained + drop, gained, 1 - 2 * gained - drop]
        drawn = rng.multinomial(count, rates, repeats)
        return np.mean([test.passes(int(lost), int(more)) for lost, more, _ in drawn])

    slack = 3 * math.sqrt(error * (1 - error) / repeats)
    assert error - 0.025 - slack < passed(limit) <= error + slack
    # A drop that lies three standard errors below the limit passes as often as a normal
    # variable is below -1.28 + 3.
    below = limit - 3 * math.sqrt((2 * gained + limit) / count)
    if gained + below > 0:
        assert passed(below) > 0.9


@pytest.mark.parametrize("gained", [0, 3, 40, 200])
@pytest.mark.parametrize("error", [0.01, 0.05, 0.1])
def test_as_many_losses_pass_as_are_allowed(gained, error):
    test = DropTest(5000, 0.01, error)
    most = test.losses_allowed(gained)
    assert test.passes(most, gained) and not test.passes(most + 1, gained)
    quantile = {0.01: 2.326, 0.05: 1.645, 0.1: 1.282}[error]
    normal = gained + 50 - quantile * math.sqrt(2 * gained + 50)
    assert normal - 3.5 <= most <= normal + 2.5


def test_losses_at_the_limit_never_pass():
    test = DropTest(1000, 0.05, 0.5)
    assert test.passes(40, 0) and not test.passes(50, 0) and not test.passes(90, 40)
    assert DropTest(20, 0.01, 0.05).losses_allowed(0) == -1
    assert DropTest(320, 0.01, 0.05).losses_allowed(150) > 100  # half of them gained


@pytest.mark.parametrize("count, limit", [(50, 0.1), (300, 0.01), (200, 0.6)])
def test_the_statistic_is_the_drop_in_standard_errors_at_the_likeliest_rate(count, limit):
    rng = np.random.default_rng(1)
    rates = np.linspace(1e-6, (1 - limit) / 2 - 1e-6, 200_001)
    for lost, gained, rest in rng.multinomial(count, [0.3, 0.2, 0.5], 20):
        likely = (
            lost * np.log(rates + limit)
            + gained * np.log(rates)
            + rest * np.log(1 - limit - 2 * rates)
        )
        rate = rates[likely.argmax()]
        variance = count * (2 * rate + limit - limit**2)
        want = (lost - gained - count * limit) / math.sqrt(variance)
        found = float(score_statistic(lost, gained, count, limit))
        assert found == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("count, limit", [(30, 0.05), (60, 0.3)])
def test_the_statistic_rises_with_losses_and_falls_with_gains(count, limit):
    lost, gained = np.meshgrid(np.arange(count + 1), np.arange(count + 1))
    values = score_statistic(lost, gained, count, limit)
    fits = lost + gained <= count
    more_lost, more_gained = fits[:, 1:], fits[1:]
    assert (np.diff(values, axis=1)[more_lost] > 0).all()
    assert (np.diff(values, axis=0)[more_gained] < 0).all()


def test_probabilities_are_those_of_the_multinomial():
    """At each step of the rates, and with what is not summed up counted as passed."""
    count, limit, value = 120, 0.1, -1.0
    rates = np.linspace(0.05, 0.12, 9)
    ways = multinomial(count)
    passes = (score_statistic(ways[1], ways[2], count, limit) <= value) | (ways[1] == 0)
    want = max(
        chances(ways, low + limit, high)[passes].sum()
        for low, high in zip(rates[:-1], rates[1:], strict=True)
    )
    found = _Sizes(DropTest(count, limit, 0.1), rates).largest(value)
    assert want <= found + 1e-12 and found < want + 1e-4


def test_one_test_serves_all_that_ask_alike():
    assert drop_test(500, 0.1, 0.05) is drop_test(500, 0.1, 0.05)
    assert drop_test(500, 0.1, 0.05) is not drop_test(500, 0.1, 0.1)
