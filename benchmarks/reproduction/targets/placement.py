# SPDX-License-Identifier: Apache-2.0
"""Where the first exit belongs: one exit at each place in turn, on MNIST and CIFAR-10.

Every place has a default head on the same trained trunk, which stays as it is, so that what
differs between places is the place alone.
"""

import numpy as np

from benchmarks.reproduction import measurement
from benchmarks.reproduction.networks import B_LENET, CHAINER_ALEXNET
from benchmarks.reproduction.schedules import schedule
from benchmarks.reproduction.training import copy_weights, freeze_all_but
from keras_branchy import BranchyModel, ExitBranch, cost

PLACES = {
    "b_lenet": ["relu1", "relu2", "relu3"],
    "b_alexnet": ["norm1", "norm2", "relu3", "relu4", "relu5"],
}


def exit_placement(run):
    rows = []
    for recipe in (B_LENET, CHAINER_ALEXNET):
        places = PLACES[recipe.build]
        for seed in run.seeds:
            model = with_heads(run, recipe, places, seed)
            split = run.data(recipe.data)
            valid, test = (
                measurement.Answers(model, part) for part in (split.valid, split.test)
            )
            for index, place in enumerate(places):
                rows.append(
                    {
                        **run.common(recipe, seed),
                        "heads": schedule("heads", run.which).describe(),
                        "place": place,
                        **alone(model, index, valid, test),
                    }
                )
    return {"rows": rows}


def with_heads(run, recipe, places, seed):
    """A linear or pooled head at each place of the plain network, trained alone."""
    trained = run.plain(recipe, seed)

    def build():
        exits = {place: ExitBranch(10) for place in places}
        return BranchyModel(recipe.make(backbone_only=True), exits)

    def start(model):
        copy_weights(trained)(model)
        freeze_all_but(model, model.exit_names[:-1])

    plan = schedule("heads", run.which)
    return run.trainer.trained(
        f"{recipe.name}-{run.which}-{seed}/placement",
        build,
        run.data(recipe.data),
        plan.joint,
        schedule=plan,
        seed=seed,
        start=start,
    )


def alone(model, index, valid, test):
    """The network with this exit only: the boldest threshold that loses nothing, judged."""
    nats = boldest(valid.scores[index], valid.correct[index], valid.correct[-1])
    taken = test.scores[index] < nats
    right = np.where(taken, test.correct[index], test.correct[-1])
    stages = cost.stage_costs(model)
    whole, head = stages[-1].trunk_macs_to_leave, stages[index].head_macs
    here = stages[index].trunk_macs_to_leave
    share = float(taken.mean())
    macs = share * (here + head) + (1 - share) * (whole + head)
    return {
        "exit_accuracy": float(test.correct[index].mean()),
        "last_accuracy": float(test.correct[-1].mean()),
        "threshold": float(nats),
        "share": share,
        "accuracy": float(right.mean()),
        "trunk_share_of_macs": here / whole,
        "head_share_of_macs": head / whole,
        "gain_everything": whole / macs,
        "gain_trunk_only": whole / (share * here + (1 - share) * whole),
    }


def boldest(scores, right_here, right_last):
    """The largest threshold at which early exit is as often right as the last exit."""
    order = np.argsort(scores, kind="stable")
    gained = np.cumsum(right_here[order].astype(int) - right_last[order].astype(int))
    ahead = scores[order][1:] != scores[order][:-1]  # no threshold parts equal scores
    fits = np.flatnonzero((gained >= 0) & np.append(ahead, True))
    if not len(fits):
        return 0.0
    last = fits[-1]
    if last + 1 == len(order):
        return np.nextafter(scores[order][-1], np.inf)
    return (scores[order][last] + scores[order][last + 1]) / 2
