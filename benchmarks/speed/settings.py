# SPDX-License-Identifier: Apache-2.0
"""Who leaves where: thresholds that were calibrated, and thresholds for swept shares."""

from dataclasses import dataclass

import numpy as np

from keras_branchy.criteria import CRITERIA
from keras_branchy.export.decisions import decide, score_all
from keras_branchy.thresholds import gate_thresholds

SWEPT = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
# A score so near to its threshold may fall on either side in another runtime.
ABSOLUTE, RELATIVE = 1e-4, 1e-3
CLEAR = 1e-2  # between the best two logits, for a label to be the same in every runtime


@dataclass(frozen=True)
class Setting:
    """Thresholds, and the batches that are run with them.

    Attributes:
        name: `"calibrated"`, or the share that is to leave at exit 1.
        thresholds: One for each early exit.
        count: How many batches, from the first on.
    """

    name: str
    thresholds: tuple[float | None, ...]
    count: int


class Answers:
    """What is right: from the logits of every exit, by the rule in NumPy."""

    def __init__(self, logits, plain, criteria, labels=None):
        self.logits, self.plain, self.criteria = logits, plain, criteria
        self.labels = labels
        self.scores, self.given = score_all(logits, criteria)

    def swept(self, share, images):
        """Thresholds by which a share of the first images leaves at exit 1, the rest last.

        None is disabled: whoever runs this must not see from the thresholds who leaves.
        """
        first = np.sort(self.scores[0][:images].astype(np.float64))
        below = CRITERIA[self.criteria[0]].exits_below
        place = round(share * images) if below else images - round(share * images)
        edges = np.concatenate([[2 * first[0] - first[-1] - 1], first, [first[-1] + 1]])
        limit = float((edges[place] + edges[place + 1]) / 2)
        return (limit, *map(self.hardly, range(1, len(self.criteria))))

    def hardly(self, index):
        """A finite threshold at which nobody leaves."""
        scores = self.scores[index]
        below = CRITERIA[self.criteria[index]].exits_below
        return float(scores.min() - 1) if below else float(scores.max() + 1)

    def exits(self, thresholds, images):
        gates = gate_thresholds(thresholds, self.criteria)
        some = self.scores[:, :images], self.given[:, :images]
        return decide(*some, self.criteria, gates, None)[1]

    def check(self, runtime, labels, exits, thresholds):
        """Raises where an answer differs by more than rounding."""
        count, where = len(labels), np.arange(len(labels))
        if exits is None:
            told = np.log(np.maximum(self.plain[:count], 1e-30))
        else:
            told = self.logits[exits, where]
            wrong = exits != self.exits(thresholds, count)
            self.refuse(runtime, "exits", wrong & ~self.near(thresholds, count))
        top = np.sort(told, -1)
        clear = top[:, -1] - top[:, -2] > CLEAR
        self.refuse(runtime, "labels", (labels != told.argmax(-1)) & clear)

    def refuse(self, runtime, what, wrong):
        if wrong.any():
            raise RuntimeError(
                f"{runtime} gives other {what} than Keras for {int(wrong.sum())} of "
                f"{len(wrong)} images, the first being number {int(wrong.argmax())}; "
                "nothing was timed."
            )

    def near(self, thresholds, count):
        limits = gate_thresholds(thresholds, self.criteria)[:, None]
        distance = np.abs(self.scores[:-1, :count] - limits)
        return (distance <= RELATIVE * np.abs(limits) + ABSOLUTE).any(0)

    def accuracy(self, labels):
        if self.labels is None:
            return None
        return float((labels == self.labels[: len(labels)]).mean())


def settings(answers, info, batch, swept, real, shares=SWEPT):
    """The settings of a cell: `swept` batches for each share, `real` as calibrated."""
    found = [
        Setting(f"{share:g}", answers.swept(share, swept * batch), swept)
        for share in shares
    ]
    if info["thresholds"] is not None:
        found.insert(0, Setting("calibrated", tuple(info["thresholds"]), real))
    return found


def counts(exits, batch, stages):
    """How many samples of each batch reach each stage: [batches, N]."""
    batched = exits.reshape(-1, batch)
    return np.stack([(batched >= k).sum(1) for k in range(stages)], axis=1)
