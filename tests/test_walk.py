# SPDX-License-Identifier: Apache-2.0
"""Walks against a rule that decides sample by sample, with engines that only look up."""

from contextlib import nullcontext

import numpy as np
import pytest

from keras_branchy.batch_gate import batch_gate
from keras_branchy.streaming import MOST_HELD, check_max_wait, in_order
from keras_branchy.walk import Rules, Walk

pytestmark = pytest.mark.usefixtures("step")
CLASSES, STAGES = 3, 4
THRESHOLDS = np.array([0.4, 0.5, 0.6], np.float32)


class Table:
    """Gives every sample its own logits, and notes the batches that it runs."""

    def __init__(self, logits, chunk):
        self.logits, self.ran = logits, []
        self.chunks = [chunk, 2 * chunk, chunk, 1]

    def run(self, stage, tensors, count):
        who = np.asarray(tensors["number"])
        assert len(who) == count <= self.chunks[stage]
        # What an earlier stage made arrives with the sample that it was made for.
        if stage:
            np.testing.assert_array_equal(tensors["made"], who * 10)
        self.ran.append((stage, count))
        return self.logits[stage, who], lambda: {"made": who * 10}


def rules(patience=None):
    live = [("number", "made")] * (STAGES - 1) + [()]
    return Rules(["entropy"] * STAGES, [None] * STAGES, live, CLASSES, patience)


def logits_of(rng, count):
    return rng.normal(scale=2.0, size=(STAGES, count, CLASSES)).astype(np.float32)


def walk_of(given, capacity=4):
    return Walk(given, given.gates(), THRESHOLDS, capacity)


def by_hand(logits, patience=None):
    """Exit, label and score of every sample."""
    scores, labels, _ = zip(*map(batch_gate("entropy"), logits), strict=True)
    for sample in range(logits.shape[1]):
        agreed, previous = 0, -1
        for stage in range(STAGES):
            label = labels[stage][sample]
            agreed, previous = (agreed + 1 if label == previous else 1), label
            sure = stage == STAGES - 1 or scores[stage][sample] < THRESHOLDS[stage]
            if sure or (patience and agreed >= patience):
                yield stage, label, scores[stage][sample]
                break


def check(answers, logits, patience=None):
    exits, labels, scores = zip(*by_hand(logits, patience), strict=True)
    told_labels, probabilities, told_exits, told_scores = answers
    assert told_exits.tolist() == list(exits)
    assert told_labels.tolist() == [int(label) for label in labels]
    np.testing.assert_array_equal(told_scores, np.array(scores))
    z = logits[list(exits), np.arange(len(exits))].astype(np.float64)
    softmax = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, softmax, rtol=1e-5)


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_everybody_leaves_where_the_rule_says(rng, chunk, patience):
    logits = logits_of(rng, 101)
    table = Table(logits, chunk)
    walk = walk_of(rules(patience))
    for start in range(0, 101, 37):
        rows = np.arange(start, min(start + 37, 101))
        walk.enter(table, {"number": rows}, len(rows))
    walk.flush(table)
    check(walk.answers(101), logits, patience)


def test_later_stages_wait_for_full_chunks(rng):
    logits, chunk = logits_of(rng, 400), 16
    table = Table(logits, chunk)
    walk = walk_of(rules())
    for start in range(0, 400, chunk):
        rows = np.arange(start, start + chunk)
        walk.enter(table, {"number": rows}, chunk)
    assert all(count == table.chunks[stage] for stage, count in table.ran)
    before = len(table.ran)
    walk.flush(table)
    stages = [stage for stage, _ in table.ran[before:]]
    assert stages == sorted(stages) and set(stages) <= {1, 2, 3}


def test_no_sample_runs_no_stage(rng):
    table = Table(logits_of(rng, 1), 4)
    walk = walk_of(rules())
    walk.enter(table, {"number": np.arange(0)}, 0)
    walk.flush(table)
    assert table.ran == []
    assert [rows.shape for rows in walk.answers(0)] == [(0,), (0, CLASSES), (0,), (0,)]


def stream_of(logits, size, max_wait=None, chunk=8):
    """Answers, and how many batches had gone in when each came out."""
    count, table, entered = logits.shape[1], Table(logits, chunk), []

    def batches():
        for start in range(0, count, size):
            entered.append(start)
            rows = np.arange(start, min(start + size, count))
            yield {"number": rows}, len(rows)

    def lend():
        return nullcontext(table)

    for answers, seconds in in_order(walk_of(rules(2)), lend, batches(), max_wait):
        assert seconds >= 0
        yield answers, len(entered)


@pytest.mark.parametrize("max_wait", [None, 0, 0.001, 1e9])
def test_a_stream_keeps_its_order(rng, max_wait):
    logits = logits_of(rng, 1001)
    given = [answers for answers, _ in stream_of(logits, 8, max_wait)]
    assert [len(labels) for labels, *_ in given] == [8] * 125 + [1]
    joined = [np.concatenate(parts) for parts in zip(*given, strict=True)]
    check(joined, logits, patience=2)


def test_without_waiting_each_batch_is_answered_at_once(rng):
    came = [entered for _, entered in stream_of(logits_of(rng, 80), 8, max_wait=0)]
    assert came == list(range(1, 11))


def test_a_lone_sample_does_not_hold_the_stream_forever():
    count = 3 * MOST_HELD
    logits = np.zeros((STAGES, count, CLASSES), np.float32)
    logits[:, :, 0] = 9.0
    logits[:3, 0, 0] = 0.0  # goes to the last exit
    came = [entered for _, entered in stream_of(logits, 1, chunk=2)]
    assert came[0] == MOST_HELD and came[-1] == count
    assert came[MOST_HELD:] == list(range(MOST_HELD + 1, count + 1))


def test_memory_is_that_of_what_is_held(rng):
    logits = logits_of(rng, 4000)
    walk = walk_of(rules())
    table = Table(logits, 8)
    for start in range(0, 4000, 8):
        walk.enter(table, {"number": np.arange(start, start + 8)}, 8)
        walk.flush(table)
        check(walk.answers(8), logits[:, start : start + 8])
        walk.release(8)
    assert len(walk.rows) <= 64


def test_answers_given_away_stay_as_they_are(rng):
    logits = logits_of(rng, 400)
    given = [(exits, exits.copy()) for (*_, exits, _), _ in stream_of(logits, 4, 0)]
    for exits, copy in given:
        np.testing.assert_array_equal(exits, copy)


@pytest.mark.parametrize("wrong", [-1, "soon", True, float("nan")])
def test_a_waiting_time_that_is_none_is_refused(wrong):
    with pytest.raises(
        ValueError, match=r"`max_wait` must be a number of seconds, at least"
    ):
        check_max_wait(wrong)
    for right in (None, 0, 0.5):
        check_max_wait(right)
