# SPDX-License-Identifier: Apache-2.0
"""How long trainings take on the machine at hand: a few steps of each are timed."""

import statistics
import time

import keras

from benchmarks.reproduction.output import hours
from benchmarks.reproduction.training import LOSS, in_float32, policy

STEPS = 3
VALIDATED = 5000  # images after each epoch; see data.SPLITS


class Estimator:
    """In place of a `Trainer`: times a few steps of each training, and trains nothing.

    Attributes:
        rows: A dict for each training: its name, epochs, steps an epoch, seconds a step and
            a validation, and hours in all.
    """

    def __init__(self):
        self.rows, self._networks = [], {}

    def trained(
        self, name, build, data, epochs, *, schedule, seed, start=None, **compile_as
    ):
        """The network `build()` after a few steps; the arguments are those of `Trainer`."""
        if name not in self._networks:
            with policy(schedule.dtype):
                model = build()
            if start is not None:
                start(model)
            if epochs:
                self._time(model, name, data, epochs, schedule, compile_as)
            self._networks[name] = in_float32(model, build)
        return self._networks[name]

    def _time(self, model, name, data, epochs, schedule, compile_as):
        few = data.first(schedule.batch_size)
        images, labels = few.train
        model.compile(
            keras.optimizers.Adam(schedule.learning_rate),
            **{"loss": LOSS, "metrics": ["accuracy"], **compile_as},
        )
        step = seconds(lambda: model.train_on_batch(images, labels))
        check = seconds(lambda: model.test_on_batch(*data.valid), 1)
        check *= VALIDATED / len(keras.tree.flatten(data.valid)[0])
        count = min(data.count, schedule.images or data.count)
        steps = -(-count // schedule.batch_size)
        # Of images this is nothing; what a network gives for them, it has to compute.
        ready = seconds(lambda: data.first(schedule.batch_size).train, 1)
        ready *= count / few.count
        hours = (ready + epochs * (steps * step + check)) / 3600
        row = {
            "training": name,
            "epochs": epochs,
            "steps": steps,
            "seconds_a_step": step,
            "seconds_a_validation": check,
            "seconds_to_prepare": ready,
            "hours": hours,
        }
        self.rows.append(row)
        print(describe(row), flush=True)


def seconds(call, times=STEPS):
    """The median of some calls, after one that traces."""
    call()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def describe(row):
    return (
        f"{row['training']}  {row['epochs']} epochs of {row['steps']} steps, "
        f"{row['seconds_a_step']:.2f} s each  {hours(row['hours'])}"
    )
