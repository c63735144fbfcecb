# SPDX-License-Identifier: Apache-2.0
"""One network, batch size and number of threads: all runtimes in turn on the same data."""

import time
from dataclasses import dataclass, field

import numpy as np

from benchmarks.speed import settings as who
from benchmarks.speed.stage_contestants import ways

PLAIN = ("tensorflow", "litert", "onnxruntime", "torch", "torch.compile")
OURS = (
    "predict_early",
    "early_exit",
    "stage_runner",
    "stage_runner, stream",
    "stage_runner, one",
)
LOOPS = ("torch, loop", "torch.compile, loop")
STAGES = ("stages in tensorflow", "stages in litert")

SWEPT_IMAGES = {1: 200, 8: 320, 32: 640, 256: 1024}  # at most, for each swept share
LEAST_IMAGES, LEAST_REAL = 20, 200  # of a swept share, and as calibrated
MOST_BATCHES = 2000
TURN = 0.03  # seconds of a runtime, at least: the first batches find caches cold
AIM, FEWEST, MOST = 7, 3, 40  # rounds
BEHIND = 1.4  # times the best way, by which a stage's other ways are dropped
GRID = 6  # numbers of samples at which a stage is timed, where more occur


@dataclass
class Cell:
    """What was measured.

    Attributes:
        settings: In the order of the rows.
        taken: Seconds [rounds, batches] by runtime and name of setting (None if plain); a
            stream has one column.
        exits: Where samples left, by runtime and name of setting.
        labels: What they were taken for.
        peaks: MiB by runtime and name of setting.
        stages: Seconds by stage, number of samples, runtime and way.
        rounds: How many.
    """

    batch: int
    threads: int
    settings: list = field(default_factory=list)
    taken: dict = field(default_factory=dict)
    exits: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)
    peaks: dict = field(default_factory=dict)
    stages: dict = field(default_factory=dict)
    rounds: int = 0


class Measurement:
    """Measures one cell with a team that is there.

    Args:
        team: A `Team`.
        answers: A `settings.Answers`.
        info: Of the network.
        batch: Samples in a call.
        seconds: About how long the turns may take.
        kinds: Runtimes of the team that take part.
    """

    def __init__(self, team, answers, info, batch, seconds, kinds):
        self.team, self.answers, self.info = team, answers, info
        self.batch, self.seconds, self.kinds = batch, seconds, kinds
        self.plain = [kind for kind in kinds if kind in PLAIN]
        self.staged = [kind for kind in kinds if kind in OURS + LOOPS]
        self.cell = Cell(batch, team.config["threads"])

    def run(self):
        for kind in self.kinds:
            self.team.ask(kind, "open", self.batch)
        self.choose()
        self.validate()
        self.plan_stages()
        end = time.perf_counter() + self.seconds
        turns = self.turns()
        while self.cell.rounds < FEWEST or (
            time.perf_counter() < end and self.cell.rounds < MOST
        ):
            for turn in turns if self.cell.rounds % 2 == 0 else turns[::-1]:
                self.take(*turn)
            self.cell.rounds += 1
            self.drop_slow_ways()
        return self.cell

    # ---- How many batches ------------------------------------------------------------
    def choose(self):
        """Numbers of batches that fit the time, and the settings."""
        images = self.answers.logits.shape[1]
        most = images // self.batch
        half = self.answers.swept(0.5, min(images, 256))
        costs = {kind: self.cost(kind, half) for kind in self.plain + self.staged}
        plain = sum(costs[kind] for kind in self.plain)
        staged = sum(costs[kind] for kind in self.staged)
        each = plain + len(who.SWEPT) * staged
        swept = min(most, max(SWEPT_IMAGES.get(self.batch, 2048) // self.batch, 1))
        room, least = self.seconds / AIM, -(-LEAST_IMAGES // self.batch)
        least = max(least, int(TURN / np.median(list(costs.values()))))
        swept = int(np.clip(room / 2 // each, min(least, swept), swept))
        real = swept
        if self.info["thresholds"] is not None:
            left = (room - swept * each) // (plain + staged)
            least = min(max(LEAST_REAL // self.batch, swept), most)
            real = int(np.clip(left, least, min(most, MOST_BATCHES)))
        self.batches = max(real, swept)
        self.cell.settings = who.settings(self.answers, self.info, self.batch, swept, real)

    def cost(self, kind, thresholds):
        """Seconds of a batch, after one to warm up."""
        count = max(1, 8 // self.batch)
        self.team.ask(kind, "time", thresholds, 1)
        return sum(self.team.ask(kind, "time", thresholds, count)) / count

    # ---- Answers first ---------------------------------------------------------------
    def validate(self):
        """Every runtime's answers in every setting, and its memory; this warms up, too."""
        for kind in self.plain:
            self.answer(kind, None, self.settings_of(kind)[0])
        for kind in self.staged:
            for setting in self.cell.settings:
                self.answer(kind, setting.name, setting)

    def settings_of(self, kind):
        everything = who.Setting("", self.cell.settings[0].thresholds, self.batches)
        return [everything] if kind in PLAIN else self.cell.settings

    def answer(self, kind, name, setting):
        given = self.team.ask(kind, "answers", setting.thresholds, setting.count)
        labels, exits, peak = given
        self.answers.check(kind, labels, exits, setting.thresholds)
        self.cell.labels[kind, name], self.cell.exits[kind, name] = labels, exits
        self.cell.peaks[kind, name] = peak

    # ---- Turns -----------------------------------------------------------------------
    def turns(self):
        """Everything that is timed in a round."""
        plain = [(kind, None, self.settings_of(kind)[0]) for kind in self.plain]
        staged = [
            (kind, setting.name, setting)
            for setting in self.cell.settings
            for kind in self.staged
        ]
        return [*plain, *staged, (None, None, None)]

    def take(self, kind, name, setting):
        if kind is None:
            self.take_stages()
            return
        taken = self.team.ask(kind, "time", setting.thresholds, setting.count)
        self.cell.taken.setdefault((kind, name), []).append(taken)

    def take_stages(self):
        for kind, stage, count, way in self.stage_runs:
            seconds = self.team.ask(kind, "stage", stage, count, way)
            key = stage, count, kind, way
            self.cell.stages.setdefault(key, []).append(seconds)

    def plan_stages(self):
        reached = self.needed()
        self.stage_runs = [
            (kind, stage, count, way)
            for stage, sizes in enumerate(reached)
            for count in sizes
            for kind in STAGES
            if kind in self.kinds
            for way in ways(kind, count, self.cell.threads)
        ]

    def needed(self):
        """Rising numbers of samples at which each stage is timed."""
        stages = len(self.info["exit_names"])
        found = [
            who.counts(exits, self.batch, stages)
            for (kind, _), exits in self.cell.exits.items()
            if kind in OURS
        ]
        every = np.concatenate(found)
        return [grid(np.unique(column[column > 0])) for column in every.T]

    def drop_slow_ways(self):
        """After a round: ways that are far behind the best for their stage and number."""
        best = {}
        for (stage, count, *_), taken in self.cell.stages.items():
            best[stage, count] = min(min(taken), best.get((stage, count), np.inf))
        self.stage_runs = [
            (kind, stage, count, way)
            for kind, stage, count, way in self.stage_runs
            if min(self.cell.stages[stage, count, kind, way]) <= BEHIND * best[stage, count]
        ]


def grid(occur):
    """Some of the numbers that occur, the first and the last among them, and one."""
    if len(occur) <= GRID:
        return [int(n) for n in occur]
    places = np.linspace(0, 1, GRID)
    return sorted({round(float(n)) for n in np.quantile(occur, places)})
