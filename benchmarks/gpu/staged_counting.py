# SPDX-License-Identifier: Apache-2.0
"""Gains in both countings, their limits, and the shares at which exits begin to pay.

Plain arithmetic on measured times. With n_k samples at stage k and T_k(n) its time, the
stage times allow Σ T_k(n_k) for a batch; the published counting takes the trunk's part of
each stage only, for the plain network too.
"""

PUBLISHED = {"b_lenet": 4.7, "b_alexnet": 2.4, "b_resnet_110": 1.9}


def allowed(counts, time_of):
    """What the stages alone take for a batch, on the average over `counts`.

    Args:
        counts: For each batch, the samples at each stage; nobody takes no time.
        time_of: `(stage, samples) -> time`.
    """
    batches = [
        sum(time_of(stage, n) for stage, n in enumerate(batch) if n) for batch in counts
    ]
    return sum(batches) / len(batches)


def counts_of(exits, stages):
    """Samples at each stage, from the exits that a batch took."""
    return [sum(1 for taken in exits if taken >= stage) for stage in range(stages)]


def shares_of(counts):
    """Share of all samples that leaves at each exit."""
    totals = [sum(column) for column in zip(*counts, strict=True)]
    leaving = [a - b for a, b in zip(totals, [*totals[1:], 0], strict=True)]
    return [n / totals[0] for n in leaving]


def figures(plain, staged, counts, stage_time, trunk_time):
    """The gains of one batch size and one set of thresholds; all times in one unit.

    Args:
        plain: Time of the plain backbone for a batch.
        staged: Time of staged inference for a batch, everything.
        counts: As for `allowed`.
        stage_time: `(stage, samples) -> time` of a stage with its head.
        trunk_time: The same of the trunk's part of it; the whole trunk is the sum of its
            parts, as in the published timings.
    """
    stages = allowed(counts, stage_time)
    batch, last = counts[0][0], len(counts[0])
    whole = sum(trunk_time(stage, batch) for stage in range(last))
    return {
        "gain": plain / staged,
        "gain_published_counting": whole / allowed(counts, trunk_time),
        "gain_of_stage_times": plain / stages,
        "efficiency": stages / staged,
    }


def mac_limits(costs, shares):
    """Gains in multiply-accumulates: everything, and with the heads left out."""
    whole = costs[-1].trunk_macs_to_leave
    paid = sum(s * c.macs_to_leave for s, c in zip(shares, costs, strict=True))
    trunk = sum(s * c.trunk_macs_to_leave for s, c in zip(shares, costs, strict=True))
    return {"mac_limit": whole / paid, "mac_limit_published_counting": whole / trunk}


def break_even(rows):
    """The share that must leave at the first exit for a gain of 1, between two rows.

    Args:
        rows: Rows of one network and batch with `shares` and `gain`.

    Returns:
        The share, 0 if exits always pay, or None if they never do.
    """
    points = sorted((row["shares"][0], row["gain"]) for row in rows)
    if points and points[0][1] >= 1:
        return 0.0
    for (low, slow), (high, fast) in zip(points, points[1:], strict=False):
        if slow < 1 <= fast:
            return low + (high - low) * (1 - slow) / (fast - slow)
    return None


def rounded(figures, digits=4):
    """The same with fewer digits; what is no number stays."""
    return {
        name: round(value, digits) if isinstance(value, float) else value
        for name, value in figures.items()
    }
