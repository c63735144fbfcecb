# SPDX-License-Identifier: Apache-2.0
"""The drift check keeps its false-alarm rate and finds changes; both by simulation."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from project import fresh_python

from keras_branchy.calibration import calibrate
from keras_branchy.drift import ExitDrift

SHARES = {2: [0.9, 0.1], 3: [0.6, 0.35, 0.05], 5: [0.5, 0.0, 0.3, 0.15, 0.05]}


def run(rng, calibration, stream_shares, *, samples, batch=500, **options):
    """Samples until the alarm, or None; a monitor fed with batches."""
    drift = ExitDrift(calibration, **options)
    for _ in range(samples // batch):
        status = drift.update(rng.choice(len(stream_shares), batch, p=stream_shares))
        if status.drifted:
            return status.samples
    return None


@pytest.mark.parametrize("exits", SHARES)
def test_false_alarms_stay_below_the_stated_rate(rng, exits):
    runs, rate = 150, 0.2
    alarms = 0
    for _ in range(runs):
        counts = rng.multinomial(400, SHARES[exits])  # shares are uncertain themselves
        found = run(
            rng, counts, SHARES[exits], samples=8000, false_alarm_rate=rate, window=1000
        )
        alarms += found is not None
    assert alarms / runs <= rate + 3 * math.sqrt(rate * (1 - rate) / runs)


def test_false_alarms_stay_below_the_rate_where_thresholds_were_fitted_to_shares(rng):
    """The counts are then no random sample: the threshold was put where they come out."""
    runs, rate, alarms = 150, 0.2, 0
    for _ in range(runs):
        correct = np.ones((2, 300), bool)
        report = calibrate(
            [rng.random(300)], correct, [1, 2], ["entropy"], 10, exit_shares=[0.8]
        )
        drift = ExitDrift.from_report(report, false_alarm_rate=rate, window=1000)
        assert drift.calibration == [240, 60]
        for _ in range(16):
            drift.update((rng.random(500) >= report.thresholds[0]).astype(int))
        alarms += drift.status.drifted
    assert alarms / runs <= rate + 3 * math.sqrt(rate * (1 - rate) / runs)


@pytest.mark.parametrize(
    "now, within",
    [([0.5, 0.4, 0.1], 1500), ([0.55, 0.4, 0.05], 8000), ([0.6, 0.3, 0.1], 2000)],
)
def test_a_change_is_found_in_time(rng, now, within):
    counts = rng.multinomial(10_000, SHARES[3])
    times = [run(rng, counts, now, samples=within, batch=250) for _ in range(40)]
    found = [time for time in times if time is not None]
    assert len(found) >= 0.95 * len(times)


def test_a_late_change_is_found_by_the_window(rng):
    """After long calm the average over all samples would take far longer to move."""
    drift = ExitDrift([9000, 1000])
    for _ in range(40):
        status = drift.update(rng.choice(2, 5000, p=[0.9, 0.1]))
    assert not status.drifted and status.samples == 200_000
    for _ in range(8):
        status = drift.update(rng.choice(2, 250, p=[0.8, 0.2]))
    assert status.drifted and status.samples <= 202_000
    assert status.where.startswith("the last")
    assert status.observed[0] == pytest.approx(0.8, abs=0.04)


def test_a_small_lasting_change_is_found_over_all_samples(rng):
    drift = ExitDrift(rng.multinomial(20_000, [0.9, 0.1]), window=500)
    while not drift.status.drifted and drift.status.samples < 60_000:
        drift.update(rng.choice(2, 500, p=[0.87, 0.13]))
    assert drift.status.drifted and drift.status.where == "all samples"


def test_the_mixture_is_a_probability():
    """Over all sequences of a length it sums to 1, which is what the bound rests on."""
    from keras_branchy.drift import _log_mixture

    for kinds, length in ((2, 6), (3, 5)):
        sequences = product(range(kinds), repeat=length)
        total = sum(
            math.exp(_log_mixture([s.count(k) for k in range(kinds)])) for s in sequences
        )
        assert total == pytest.approx(1.0)


def test_the_evidence_is_the_formula_in_exact_arithmetic():
    calibration, seen = [5, 2], [1, 6]

    def mixture(counts):
        top = math.factorial(len(counts) - 1) * math.prod(map(math.factorial, counts))
        return Fraction(top, math.factorial(sum(counts) + len(counts) - 1))

    value = mixture(calibration) * mixture(seen) / mixture([6, 8])
    rate = 0.5
    drift = ExitDrift(calibration, false_alarm_rate=rate, window=100)
    evidence = drift.update([1] * 6 + [0]).evidence
    assert evidence == pytest.approx(math.log(value) / math.log(2 / rate))


def test_an_alarm_stays():
    drift = ExitDrift([900, 100])
    alarmed = drift.update([1] * 200)
    assert alarmed.drifted and "Recalibrate" in str(alarmed)
    assert drift.update([0] * 5000) == alarmed == drift.status
    assert "exit 1 took 0.0% of all samples, and 90.0% at calibration" in str(alarmed)


def test_the_status_of_a_calm_model(rng):
    drift = ExitDrift([900, 100])
    assert str(drift.status) == "No sample was seen yet."
    status = drift.update(rng.choice(2, 1000, p=[0.9, 0.1]))
    assert not status.drifted and 0 <= status.evidence < 1
    assert status.expected == (0.9, 0.1) and status.samples == 1000
    assert str(status).startswith("No sign of drift in 1,000 samples: exit ")


def test_batches_of_any_size_count_alike(rng):
    exits = rng.choice(2, 5000, p=[0.9, 0.1])
    whole, single = ExitDrift([900, 100], window=700), ExitDrift([900, 100], window=700)
    whole.update(exits)
    for index in exits:
        single.update([index])
    assert whole._total == single._total and whole._recent == single._recent
    assert whole._windows == single._windows == math.ceil(5000 / 700)


def test_drift_needs_the_standard_library_only():
    code = "import sys, keras_branchy.drift; print('numpy' in sys.modules)"
    assert fresh_python(code) == "False"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ExitDrift([10]), r"two exits or more. Received: counts=\[10\]"),
        (lambda: ExitDrift([0, 0]), r"counts=\[0, 0\]"),
        (lambda: ExitDrift([0.9, 0.1]), "Multiply shares by the number of samples"),
        (lambda: ExitDrift([5, -1]), r"counts=\[5, -1\]"),
        (lambda: ExitDrift([5, math.nan]), r"counts=\[5, nan\]"),
        (lambda: ExitDrift([5, 5], false_alarm_rate=0), "false_alarm_rate=0"),
        (lambda: ExitDrift([5, 5], false_alarm_rate=1.0), "between 0 and 1"),
        (lambda: ExitDrift([5, 5], window=0), "`window` is a number .* window=0"),
        (lambda: ExitDrift([5, 5], window=1.5), "window=1.5"),
        (lambda: ExitDrift([5, 5]).update([0, 2]), r"from 0 to 1. Received: \[2\]"),
        (lambda: ExitDrift([5, 5]).update([-1]), r"Received: \[-1\]"),
    ],
)
def test_what_cannot_be_watched_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("exits", [1, [0.5], np.zeros((3, 1), int), None])
def test_what_are_no_exits(exits):
    with pytest.raises(TypeError, match=r"a sequence of indices.*Pass `predict_early"):
        ExitDrift([9, 1]).update(exits)
