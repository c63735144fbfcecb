# SPDX-License-Identifier: Apache-2.0
"""From what was measured in a cell to its rows."""

import numpy as np

from benchmarks.speed import settings as who
from benchmarks.speed.cell import LOOPS, OURS, PLAIN

RESAMPLES, BLOCK = 400, 2  # of the block bootstrap, and rounds in a block
CONFIDENCE = 98  # per cent, of intervals

# What each runtime is compared with where it says `gain_same_runtime`.
SAME = {
    "predict_early": "tensorflow",
    "early_exit": "tensorflow",
    "stage_runner": "litert",
    "stage_runner, stream": "litert",
    "stage_runner, one": "litert",
    "torch, loop": "torch",
    "torch.compile, loop": "torch.compile",
}


class Rows:
    """The rows of a cell.

    Args:
        network: Its name.
        info: Of the network.
        cell: A `Cell`.
        answers: A `settings.Answers`.
        first: Milliseconds to the first answer by runtime.
    """

    def __init__(self, network, info, cell, answers, first):
        self.network, self.info, self.cell = network, info, cell
        self.answers, self.first = answers, first
        self.taken = {key: np.array(value) for key, value in cell.taken.items()}
        self.plain = [kind for kind in PLAIN if (kind, None) in self.taken]
        self.alone = fastest(cell.stages)

    def all(self):
        rows = [self.plain_row(kind) for kind in self.plain]
        for kind in OURS + LOOPS:
            for setting in self.cell.settings:
                if (kind, setting.name) in self.taken:
                    rows.append(self.staged_row(kind, setting))
        return rows

    def common(self, kind, name, count):
        taken = self.taken[kind, name] * 1e6 / self.cell.batch
        if kind.endswith("stream"):
            taken = taken / count
        rounds = taken.mean(1)
        low, high = np.percentile(rounds, (25, 75))
        first = self.first.get(kind)
        return {
            "network": self.network,
            "runtime": kind,
            "ours": kind in OURS,
            "plain": kind in PLAIN,
            "batch": self.cell.batch,
            "threads": self.cell.threads,
            "us_per_image": digits(float(np.median(taken, 0).mean())),
            "spread": digits(float(high - low) / 2),
            "peak_mib": round(self.cell.peaks[kind, name], 1),
            "time_to_first_answer_ms": None if first is None else round(first),
            "rounds": self.cell.rounds,
            "batches": count,
        }

    def plain_row(self, kind):
        count = self.taken[kind, None].shape[1]
        tested = self.info.get("test_accuracy")
        return {
            **self.common(kind, None, count),
            "setting": None,
            "shares": None,
            "accuracy": None if tested is None else tested["plain"],
        }

    def staged_row(self, kind, setting):
        exits = self.cell.exits[kind, setting.name]
        shares = np.bincount(exits, minlength=len(self.info["exit_names"])) / len(exits)
        return {
            **self.common(kind, setting.name, setting.count),
            "setting": setting.name,
            "shares": [round(float(share), 4) for share in shares],
            "accuracy": self.accuracy(kind, setting),
            **self.gains(kind, setting),
            **(self.near_the_limit(kind, setting, exits) if self.alone else {}),
            "mac_limit": digits(self.mac_limit(shares)),
        }

    def accuracy(self, kind, setting):
        if setting.name != "calibrated":
            return None
        return self.answers.accuracy(self.cell.labels[kind, setting.name])

    # ---- Against plain backbones -----------------------------------------------------
    def gains(self, kind, setting):
        """Ratios of medians on the same batches, and an interval of the first."""
        ours = self.per_batch(kind, setting)
        plain = {
            name: self.taken[name, None][:, : setting.count].mean(1) for name in self.plain
        }
        medians = {
            name: median_of(self.taken[name, None][:, : setting.count])
            for name in self.plain
        }
        mine = median_of(self.columns(kind, setting))
        best = min(medians, key=medians.get)
        found = {
            "gain_fastest_plain": digits(medians[best] / mine),
            "fastest_plain": best,
        }
        same = SAME[kind]
        if same not in medians:
            return {"gain_same_runtime": None, "gain_interval": None, **found}
        ratios = plain[same], ours
        return {
            "gain_same_runtime": digits(medians[same] / mine),
            "gain_interval": interval(lambda rows: ratio(ratios, rows), len(ours)),
            **found,
        }

    def columns(self, kind, setting):
        """Seconds [rounds, batches]; a stream's are those of an average batch."""
        taken = self.taken[kind, setting.name]
        return taken / setting.count if kind.endswith("stream") else taken

    def per_batch(self, kind, setting):
        return self.columns(kind, setting).mean(1)

    def mac_limit(self, shares):
        expected = float(np.dot(shares, self.info["macs_to_leave"]))
        return self.info["plain_macs"] / expected

    # ---- Against the stages alone ----------------------------------------------------
    def near_the_limit(self, kind, setting, exits):
        """The efficiency, and what the stages take alone, in µs an image."""
        reached = who.counts(exits, self.cell.batch, len(self.info["exit_names"]))
        alone = self.stage_seconds(reached)
        columns = self.columns(kind, setting)
        if kind.endswith("stream"):
            alone = np.array([alone.mean()])

        def efficiency(rows):
            return float(np.median(alone / np.median(columns[rows], 0)))

        found = efficiency(np.arange(len(columns)))
        return {
            "efficiency": digits(found),
            "efficiency_interval": interval(efficiency, len(columns)),
            "stages_us": digits(float(alone.mean()) * 1e6 / self.cell.batch),
        }

    def stage_seconds(self, reached):
        """Seconds [batches] of all stages alone; interpolated between numbers timed."""
        total = np.zeros(len(reached))
        for stage, column in enumerate(reached.T):
            sizes = sorted(self.alone.get(stage, {}))
            if sizes:
                times = [self.alone[stage][n] for n in sizes]
                total += np.interp(column, [0, *sizes], [0.0, *times])
        return total


def fastest(stages):
    """Seconds by stage and number of samples: the fastest runtime, or one at a time."""
    found = {}
    for (stage, count, *_), taken in stages.items():
        at = found.setdefault(stage, {})
        at[count] = min(float(np.median(taken)), at.get(count, np.inf))
    for at in found.values():
        if 1 in at:
            at.update({n: min(seconds, n * at[1]) for n, seconds in at.items()})
    return found


def stage_rows(network, cell):
    """What each stage takes alone, the fastest way, for the record."""
    best = {}
    for (stage, count, kind, way), taken in cell.stages.items():
        seconds = float(np.median(taken))
        if seconds < best.get((stage, count), (np.inf,))[0]:
            best[stage, count] = seconds, kind, way
    return [
        {
            "network": network,
            "batch": cell.batch,
            "threads": cell.threads,
            "stage": stage + 1,
            "samples": count,
            "us": digits(seconds * 1e6),
            "runtime": kind.removeprefix("stages in "),
            "way": way,
        }
        for (stage, count), (seconds, kind, way) in sorted(best.items())
    ]


def median_of(columns):
    """Of each batch the median over rounds; the mean of these."""
    return float(np.median(columns, 0).mean())


def ratio(pair, rows):
    return float(np.median(pair[0][rows] / pair[1][rows]))


def interval(statistic, rounds, seed=0):
    """Of a statistic of rounds, by a bootstrap of blocks of neighbouring rounds."""
    rng = np.random.default_rng(seed)
    starts = max(1, rounds - BLOCK + 1)
    blocks = -(-rounds // BLOCK)
    found = []
    for _ in range(RESAMPLES):
        first = rng.integers(0, starts, blocks)
        rows = (first[:, None] + np.arange(min(BLOCK, rounds))).ravel()[:rounds]
        found.append(statistic(rows))
    edge = (100 - CONFIDENCE) / 2
    return [digits(float(x)) for x in np.percentile(found, (edge, 100 - edge))]


def digits(value, count=5):
    """Rounded to so many significant digits."""
    return float(f"{value:.{count}g}")
