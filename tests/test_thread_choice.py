# SPDX-License-Identifier: Apache-2.0
"""One thread or all: what the first calls of a file come to."""

import numpy as np
import pytest
from exports import exported

from keras_branchy import StageRunner
from keras_branchy.runner import thread_choice
from keras_branchy.runner.thread_choice import with_threads

SAMPLES = 8


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Made:
    """A program that takes as long as it is told, and says how it was opened."""

    def __init__(self, clock, threads, seconds, first=0.0):
        self.clock, self.threads, self.seconds, self.first = clock, threads, seconds, first
        self.calls = 0

    def run(self, tensors):
        self.clock.now += self.seconds + (self.first if self.calls == 0 else 0.0)
        self.calls += 1
        return np.full((len(tensors["x"]), 3), self.threads)

    def rest(self):
        return {"rest": self.threads}

    def views(self):
        return {"views": self.threads}


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(thread_choice, "time", clock)
    return clock


def tried(clock, seconds, threads=4, calls=40, first=None):
    """What is settled on, the programs that were opened, and who answered each call."""
    first = first or {}
    opened, settled, answered = {}, [], []

    def with_number(number):
        if number not in opened:
            opened[number] = Made(clock, number, seconds[number], first.get(number, 0.0))
        return opened[number]

    calling = [with_threads(with_number, threads, settled.append)]
    for _ in range(calls):
        computation = settled[0] if settled else calling[0]
        answered.append(int(computation.run({"x": np.zeros(SAMPLES)})[0, 0]))
        assert computation.rest()["rest"] == computation.views()["views"] == answered[-1]
    return settled, opened, answered


@pytest.mark.parametrize(("one", "many", "best"), [(90e-6, 100e-6, 1), (40e-6, 30e-6, 4)])
def test_the_faster_is_settled_on(clock, one, many, best):
    settled, _, answered = tried(clock, {1: one, 4: many})
    assert [program.threads for program in settled] == [best]
    assert answered[:16] == [4, 4, 4, 4, 1, 1, 1, 1] * 2
    assert set(answered[16:]) == {best}


def test_the_first_call_of_each_tells_nothing(clock):
    settled, _, _ = tried(clock, {1: 50e-6, 4: 60e-6}, first={1: 1.0, 4: 2.0})
    assert [program.threads for program in settled] == [1]


def test_a_long_call_has_all_threads_and_no_second_copy_of_its_file(clock):
    settled, opened, answered = tried(clock, {4: 1.5e-3})
    assert [program.threads for program in settled] == [4]
    assert list(opened) == [4] and set(answered) == {4}


def test_nothing_is_tried_where_there_is_one_thread(clock):
    settled, opened, answered = tried(clock, {1: 1e-4}, threads=1)
    assert not settled and list(opened) == [1] and set(answered) == {1}


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_answers_of_a_runner_are_the_same_before_and_after(batch_size, monkeypatch):
    export = exported("residual", batch_size=batch_size)
    expected = StageRunner(export.folder).predict(export.x)
    settled = []
    choose = thread_choice._Trial.__init__

    def noted(self, opened, threads, settle):
        choose(self, opened, threads, lambda program: (settled.append(1), settle(program)))

    monkeypatch.setattr(thread_choice._Trial, "__init__", noted)
    runner = StageRunner(export.folder, threads=3)
    for _ in range(20):
        answer = runner.predict(export.x)
        for name in ("labels", "probabilities", "exits", "scores"):
            np.testing.assert_array_equal(getattr(answer, name), getattr(expected, name))
    assert len(settled) >= 3, "every stage has come to a choice"
