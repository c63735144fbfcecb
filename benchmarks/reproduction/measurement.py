# SPDX-License-Identifier: Apache-2.0
"""What a trained network does: accuracy, exits, and both countings of its cost."""

import numpy as np

from keras_branchy import cost
from keras_branchy.calibration import calibrate
from keras_branchy.export.decisions import score_all
from keras_branchy.outcome import expected_cost, outcome
from keras_branchy.scoring import all_logits

BATCH = 500


class Answers:
    """Every exit's scores and answers for some images; thresholds are then NumPy's work.

    Attributes:
        scores: [N-1, n] by each early exit's criterion.
        correct: [N, n] whether the exit is right.
    """

    def __init__(self, model, part):
        images, self.labels = part
        self.model = model
        self.logits = np.stack(all_logits(model, images, batch_size=BATCH, verbose=0)[0])
        self.stages = cost.stage_costs(model)
        scores, given = score_all(self.logits, model.criteria, model.gates)
        self.scores, self.correct = scores[:-1], given == self.labels

    def at(self, thresholds):
        """Accuracy, share and accuracy of each exit, and MACs, at some thresholds."""
        found = outcome(self.model, self.logits, self.labels, thresholds)
        return {
            "thresholds": [None if t is None else float(t) for t in thresholds],
            "accuracy": found.accuracy,
            "shares": found.shares,
            "accuracy_where_taken": found.accuracy_where_taken,
            "macs": macs(self.stages, found.shares),
        }

    def chosen_on(self, valid, **target):
        """The same at thresholds that meet a target on the validation images' answers."""
        return self.at(valid.thresholds_for(**target))

    def thresholds_for(self, **target):
        """What `BranchyModel.calibrate` chooses, without asking the network again."""
        report = calibrate(
            self.scores,
            self.correct,
            [stage.macs_to_leave for stage in self.stages],
            self.model.criteria,
            self.model.num_classes,
            **target,
        )
        return report.thresholds

    def accuracies(self):
        """Of every exit on all images."""
        return [float(right.mean()) for right in self.correct]


def thresholds_for(model, valid, **target):
    report = model.calibrate(*valid, **target, batch_size=BATCH, verbose=0)
    return report.thresholds


def plain_accuracy(model, part):
    images, labels = part
    given = model.predict(images, batch_size=BATCH, verbose=0)
    return float((given.argmax(-1) == labels).mean())


def choices(model, valid, figures):
    """Thresholds by each rule: the published ones, and two chosen on validation images."""
    shares = list(figures.shares[:-1])
    return {
        "the published thresholds": list(figures.thresholds),
        "the published shares, on validation images": thresholds_for(
            model, valid, exit_shares=shares
        ),
        "no loss on validation images": thresholds_for(model, valid, max_accuracy_drop=0.0),
    }


def macs(stages, shares):
    """Multiply-accumulates an image, as published (trunk only) and with everything."""
    trunk = expected_cost(stages, shares, heads=False)
    everything = expected_cost(stages, shares)
    return {
        "plain": stages[-1].trunk_macs_to_leave,
        "trunk_only": round(trunk.macs),
        "everything": round(everything.macs),
        "gain_trunk_only": 1 / trunk.of_backbone,
        "gain_everything": 1 / everything.of_backbone,
    }


def sweep(answers, points=60):
    """Cost, shares and accuracy along one threshold for all exits, rising.

    For figures only: nothing is chosen by them.
    """
    levels = np.quantile(answers.scores, np.linspace(0, 1, points))
    return [answers.at([float(level)] * len(answers.scores)) for level in levels]
