# SPDX-License-Identifier: Apache-2.0
"""What a trained network does: accuracy, exits, and both countings of its cost."""

import numpy as np

from keras_branchy import cost
from keras_branchy.criteria import gate_scores
from keras_branchy.scoring import all_logits
from keras_branchy.thresholds import gate_thresholds

BATCH = 500


class Answers:
    """Every exit's scores and answers for some images; thresholds are then NumPy's work.

    Attributes:
        scores: [N-1, n] by each early exit's criterion.
        correct: [N, n] whether the exit is right.
    """

    def __init__(self, model, part):
        images, labels = part
        logits, _ = all_logits(model, images, batch_size=BATCH, verbose=0)
        self.criteria = list(model.criteria)
        self.scores = np.stack(
            [
                gate_scores(z, rule)[0]
                for z, rule in zip(logits, self.criteria, strict=False)
            ]
        )
        self.correct = np.stack([z.argmax(-1) == labels for z in logits])

    def exits(self, thresholds):
        """[n] where each image leaves."""
        bounds = gate_thresholds(thresholds, self.criteria)
        taken = np.full(self.correct.shape[1], len(self.correct) - 1)
        for k in reversed(range(len(bounds))):
            below = self.criteria[k] == "entropy"
            with np.errstate(invalid="ignore"):
                leaves = (
                    self.scores[k] < bounds[k] if below else self.scores[k] >= bounds[k]
                )
            taken[leaves] = k
        return taken

    def at(self, thresholds):
        """Accuracy, and share and accuracy of each exit, at some thresholds."""
        taken = self.exits(thresholds)
        right = self.correct[taken, np.arange(len(taken))]
        places = [taken == k for k in range(len(self.correct))]
        return {
            "thresholds": [None if t is None else float(t) for t in thresholds],
            "accuracy": float(right.mean()),
            "shares": [float(place.mean()) for place in places],
            "accuracy_where_taken": [
                float(right[place].mean()) if place.any() else None for place in places
            ],
        }

    def accuracies(self):
        """Of every exit on all images."""
        return [float(right.mean()) for right in self.correct]


def plain_accuracy(model, part):
    images, labels = part
    given = model.predict(images, batch_size=BATCH, verbose=0)
    return float((given.argmax(-1) == labels).mean())


def choices(model, valid, *, thresholds, shares):
    """Thresholds by each rule: the published ones, and two chosen on validation images."""
    chosen = {}
    if thresholds is not None:
        chosen["the published thresholds"] = list(thresholds)
    if shares is not None:
        report = model.calibrate(
            *valid, exit_shares=list(shares[:-1]), batch_size=BATCH, verbose=0
        )
        chosen["the published shares, on validation images"] = report.thresholds
    report = model.calibrate(*valid, max_accuracy_drop=0.0, batch_size=BATCH, verbose=0)
    chosen["no loss on validation images"] = report.thresholds
    return chosen


def macs(model, shares):
    """Multiply-accumulates an image, as published (trunk only) and with everything."""
    stages = cost.stage_costs(model)
    whole = stages[-1].trunk_macs_to_leave
    trunk = cost.expected_macs(stages, shares, heads=False)
    everything = cost.expected_macs(stages, shares)
    return {
        "plain": whole,
        "trunk_only": round(trunk),
        "everything": round(everything),
        "gain_trunk_only": whole / trunk,
        "gain_everything": whole / everything,
    }


def sweep(model, answers, points=60):
    """Cost, share at exit 1 and accuracy along one threshold for all exits, rising.

    For figures only: nothing is chosen by them.
    """
    levels = np.quantile(answers.scores, np.linspace(0, 1, points))
    rows = []
    for level in levels if answers.criteria[0] == "entropy" else levels[::-1]:
        row = answers.at([float(level)] * len(answers.scores))
        rows.append({**row, "macs": macs(model, row["shares"])})
    return rows
