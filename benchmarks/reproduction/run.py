# SPDX-License-Identifier: Apache-2.0
"""What every target is given: data, trained networks, and what the rows have in common."""

from dataclasses import dataclass, field, replace

from benchmarks.reproduction import data, measurement, networks
from benchmarks.reproduction.schedules import schedule
from benchmarks.reproduction.training import Trainer

REHEARSAL_IMAGES = 200


@dataclass
class Run:
    """One call of benchmarks/reproduce.py.

    Attributes:
        trainer: Trains networks, or finds them trained.
        which: Name of the schedule, `"default"`, `"full"` or `"quick"`.
        seeds: One training each.
        timed: True to measure time too.
        made_up: True for images that need no data set.
        judged: So many validation and test images, None for all.
    """

    trainer: Trainer
    which: str
    seeds: list[int]
    timed: bool = True
    made_up: bool = False
    judged: int | None = None
    loaded: dict = field(default_factory=dict)

    def data(self, name):
        if name not in self.loaded:
            whole = data.load(name, made_up=self.made_up)
            few = REHEARSAL_IMAGES if self.which == "quick" else None
            whole = whole.first(few)
            if self.judged is not None:
                judges = whole.first(self.judged)
                whole = replace(whole, valid=judges.valid, test=judges.test)
            self.loaded[name] = whole
        return self.loaded[name]

    def plain(self, recipe, seed):
        return networks.plain(
            self.trainer, recipe, self.data(recipe.data), self.which, seed
        )

    def branchy(self, recipe, seed, part="branchy", **options):
        return networks.branchy(
            self.trainer, recipe, self.data(recipe.data), self.which, seed, part, **options
        )

    def common(self, recipe, seed):
        """What each row says of how it came about."""
        return {
            "network": recipe.name,
            "stands_in_for": recipe.stands_in_for if self.which != "full" else None,
            "seed": seed,
            "schedule": schedule(recipe.kind, self.which).describe(),
            "data": self.data(recipe.data).describe(),
        }

    def rows(self, recipe, figures):
        """For each seed the plain network, and the branchy one at several thresholds."""
        rows = []
        for seed in self.seeds:
            plain, model = self.plain(recipe, seed), self.branchy(recipe, seed)
            rows += self.compared(recipe, seed, plain, model, figures)
            print(f"{recipe.name}, seed {seed}: measured", flush=True)
        return rows

    def compared(self, recipe, seed, plain, model, figures):
        split = self.data(recipe.data)
        answers = measurement.Answers(model, split.test)
        alone = measurement.plain_accuracy(plain, split.test)
        rows = []
        for how, thresholds in measurement.choices(model, split.valid, figures).items():
            found = answers.at(thresholds)
            rows.append(
                {
                    **self.common(recipe, seed),
                    "chosen": how,
                    "plain_accuracy": alone,
                    **found,
                    "exit_accuracies": answers.accuracies(),
                    "times": self.times(plain, model, thresholds, split, found),
                }
            )
        return rows

    def times(self, plain, model, thresholds, split, found):
        if not self.timed:
            return None
        from benchmarks.reproduction import timing

        return timing.times(plain, model, thresholds, split.test[0], found["shares"])

    def curve(self, recipe, seed):
        """Accuracy and cost over thresholds, on test images, for the figures."""
        model = self.branchy(recipe, seed)
        answers = measurement.Answers(model, self.data(recipe.data).test)
        return measurement.sweep(answers)
