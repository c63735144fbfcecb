# SPDX-License-Identifier: Apache-2.0
"""The compiled step against float64, sample by sample; and what happens without it."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from keras_branchy import native_step
from keras_branchy.criteria import CRITERIA, gate_scores
from keras_branchy.native_step import MOST_CLASSES, Answers, NativeStep
from keras_branchy.waiting import Waiting

SWITCH = "KERAS_BRANCHY_CUSTOM_OPS"
LEARNED = [0.3, 2.0, -1.5, 1.0]
STAGE, FIRST = 3, 1000
ISAS = {"baseline": 0, "AVX2": 1, "AVX-512": 2}


@pytest.fixture(scope="module")
def library(native_parts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "auto")
        native_parts(native_step.problem())
        yield native_step.load()


@pytest.fixture(params=ISAS)
def by(request, library):
    """A library whose step is that of one instruction set."""
    forced = ctypes.CDLL(library._name)
    call = forced.keras_branchy_stage_step_by
    call.restype = ctypes.c_int64
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    call.argtypes = [number, pointer, pointer, pointer, number, number]
    isa = ISAS[request.param]
    if call(isa, *[ctypes.byref(native_step._Step(classes=1))] * 3, 0, 0) == -2:
        pytest.skip(f"this processor lacks {request.param}")

    class Forced:
        @staticmethod
        def keras_branchy_stage_step(*given):
            return call(isa, *given)

    return Forced


class Exit:
    """A step with arrays to answer into, for samples FIRST and after."""

    def __init__(
        self,
        library,
        criterion,
        threshold,
        classes,
        count,
        patience=None,
        live=("rows", "bytes"),
    ):
        self.criterion, self.threshold, self.patience = criterion, threshold, patience
        self.coefficients = LEARNED if criterion == "learned" else None
        self.arrays = {
            "labels": np.full(count, -7),
            "probabilities": np.full((count, classes), -7, np.float32),
            "exits": np.full(count, -7),
            "scores": np.full(count, -7, np.float32),
        }
        if patience:
            self.arrays |= {
                "previous": np.full(count, -1),
                "agreed": np.zeros(count, np.int64),
            }
        self.step = NativeStep(
            *(library, STAGE, criterion, self.coefficients, threshold, classes, patience),
            live,
            Answers(
                FIRST, **{name: native_step.address(x) for name, x in self.arrays.items()}
            ),
        )
        self.waiting = Waiting()

    def run(self, logits, who, carried=None):
        waiting = None if self.threshold is None else self.waiting
        return self.step.run(logits, who, carried or self.carried(who), waiting)

    def carried(self, who):
        """Of two shapes and dtypes, and different for every sample."""
        rows = who[:, None] * 10.0 + np.arange(3)
        return {"rows": rows, "bytes": (who % 251).astype(np.uint8)}

    def expected(self, logits):
        score, label = gate_scores(logits, self.criterion, self.coefficients)
        z = logits.astype(np.float64) - logits.max(1, keepdims=True)
        probabilities = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return score, label, probabilities


def logits_of(rng, count, classes, scale=3.0):
    return rng.normal(scale=scale, size=(count, classes)).astype(np.float32)


def nearly(found, expected):
    """To the rounding of float32; the last digits of float64 may round the other way."""
    expected = np.asarray(expected, np.float64)
    spacing = np.spacing(np.abs(expected).astype(np.float32))
    assert (np.abs(found - expected) <= 0.51 * spacing + 1e-15).all()


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 31, 32, 47, 130, 1000, MOST_CLASSES])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_samples_leave_or_wait_as_in_float64(by, rng, criterion, classes):
    count = 77 if classes < 1000 else 9
    logits = logits_of(rng, count, classes)
    scores, _ = gate_scores(logits, criterion, LEARNED if criterion == "learned" else None)
    threshold = float(np.float32(np.quantile(scores, 0.6) + 1e-4))
    here = Exit(by, criterion, threshold, classes, count + 5)
    who = FIRST + rng.permutation(count + 5)[:count]
    assert here.run(logits, who)
    scores, labels, probabilities = here.expected(logits)
    leaves = CRITERIA[criterion].exits(scores.astype(np.float32), threshold)
    to = who[leaves] - FIRST
    nearly(here.arrays["scores"][to], scores[leaves])
    np.testing.assert_array_equal(here.arrays["labels"][to], labels[leaves])
    assert (here.arrays["exits"][to] == STAGE).all()
    np.testing.assert_allclose(
        here.arrays["probabilities"][to], probabilities[leaves], rtol=1e-7, atol=1e-37
    )
    others = np.setdiff1d(np.arange(count + 5), to)
    assert len(others) == 5 + (~leaves).sum()
    assert all((array[others] == -7).all() for array in here.arrays.values())
    stay = who[~leaves]
    waiting, tensors = here.waiting.take(count)
    np.testing.assert_array_equal(waiting, stay)
    for name, value in here.carried(stay).items():
        np.testing.assert_array_equal(tensors[name], value, strict=True)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_everybody_leaves_at_the_last_exit(by, rng, criterion):
    logits = logits_of(rng, 40, 10)
    here = Exit(by, criterion, None, 10, 40)
    assert here.run(logits, FIRST + np.arange(40))
    scores, labels, _ = here.expected(logits)
    nearly(here.arrays["scores"], scores)
    np.testing.assert_array_equal(here.arrays["labels"], labels)
    assert (here.arrays["exits"] == STAGE).all()


def test_those_who_stay_go_behind_those_who_wait(by, rng):
    here, chunks = Exit(by, "distance", 0.0, 2, 300), []
    for start in range(0, 300, 30):
        logits = np.full((30, 2), -1, np.float32)
        stay = rng.random(30) < 0.5
        logits[~stay] = 1
        who = FIRST + np.arange(start, start + 30)
        assert here.run(logits, who)
        chunks.append(who[stay])
        if start % 90 == 60:  # some go on, in order
            went, tensors = here.waiting.take(20)
            expected = np.concatenate(chunks)
            np.testing.assert_array_equal(went, expected[: len(went)])
            np.testing.assert_array_equal(tensors["rows"], here.carried(went)["rows"])
            chunks = [expected[len(went) :]]
    left, tensors = here.waiting.take(1000)
    np.testing.assert_array_equal(left, np.concatenate(chunks))
    np.testing.assert_array_equal(tensors["rows"], here.carried(left)["rows"])


def test_numbers_that_follow_each_other_may_be_a_range(by, rng):
    logits, who = logits_of(rng, 50, 10), range(FIRST + 7, FIRST + 57)
    here, other = (Exit(by, "entropy", 1.2, 10, 60) for _ in range(2))
    assert here.run(logits, who, here.carried(np.array(who)))
    assert other.run(logits, np.array(who))
    for name, array in here.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name])
    (stay, mine), (others, theirs) = here.waiting.take(50), other.waiting.take(50)
    assert 0 < len(stay) < 50
    np.testing.assert_array_equal(stay, others)
    np.testing.assert_array_equal(mine["rows"], theirs["rows"])


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_sample_is_answered_as_among_others(by, rng, criterion, patience):
    logits = logits_of(rng, 50, 10)
    scores, _ = gate_scores(logits, criterion, LEARNED if criterion == "learned" else None)
    threshold = float(np.float32(np.median(scores) + 1e-4))
    here = Exit(by, criterion, threshold, 10, 50, patience)
    alone = Exit(by, criterion, threshold, 10, 50, patience, live=[])
    stay = np.zeros(50, np.int64)
    for _ in range(2):  # with patience, nobody is left at the second
        assert here.run(logits, FIRST + np.arange(50))
        stay[:] = [alone.step.one(logits[i : i + 1], FIRST + i) for i in range(50)]
        np.testing.assert_array_equal(here.waiting.take(50)[0], FIRST + stay.nonzero()[0])
        for name, array in here.arrays.items():
            np.testing.assert_array_equal(array, alone.arrays[name])
    assert stay.any() == (patience is None)
    logits[0, 3] = np.nan
    assert alone.step.one(logits[:1], FIRST) == -1
    with pytest.raises(ValueError, match=r"logits \[1, 10\]. Received: float32 \[2, 10\]"):
        alone.step.one(logits[:2], FIRST)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_score_at_the_threshold(by, rng, criterion):
    logits = logits_of(rng, 1, 10)
    probe = Exit(by, criterion, None, 10, 1)
    assert probe.run(logits, np.array([FIRST]))
    score = probe.arrays["scores"][0]
    for threshold in (score, np.nextafter(score, np.float32(np.inf))):
        here = Exit(by, criterion, float(threshold), 10, 1)
        assert here.run(logits, np.array([FIRST]))
        expected = CRITERIA[criterion].exits(score, threshold)
        assert here.arrays["exits"][0] == (STAGE if expected else -7)
        assert here.waiting.count == 1 - expected


def test_a_disabled_exit_keeps_everybody(by, rng):
    for criterion in CRITERIA:
        here = Exit(by, criterion, CRITERIA[criterion].never, 10, 50)
        assert here.run(logits_of(rng, 50, 10), FIRST + np.arange(50))
        assert here.waiting.count == 50


def test_agreeing_exits_are_counted(by, rng):
    here, who = Exit(by, "distance", 100.0, 3, 60, patience=2), FIRST + np.arange(60)
    counts = {sample: (None, 0) for sample in who.tolist()}
    for _ in range(4):
        labels = rng.integers(0, 3, len(who))
        assert here.run(np.eye(3, dtype=np.float32)[labels], who)
        stay = []
        for sample, label in zip(who.tolist(), labels.tolist(), strict=True):
            previous, agreed = counts[sample]
            counts[sample] = label, agreed + 1 if label == previous else 1
            if counts[sample][1] < 2:
                stay.append(sample)
            else:
                assert here.arrays["exits"][sample - FIRST] == STAGE
        who = here.waiting.take(60)[0].copy()
        assert who.tolist() == stay
    assert 0 < len(who) < 30


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 17, 69])
def test_nothing_is_written_where_a_logit_is_not_finite(by, rng, broken, at):
    logits = logits_of(rng, 7, 10)
    logits.flat[at] = broken
    here = Exit(by, "entropy", 1.0, 10, 7)
    before = {name: array.copy() for name, array in here.arrays.items()}
    assert not here.run(logits, FIRST + np.arange(7))
    assert here.waiting.count == 0
    for name, array in before.items():
        np.testing.assert_array_equal(here.arrays[name], array)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scale", [1e-42, 1e-3, 50.0, 1e30])
def test_hostile_numbers(by, rng, criterion, scale):
    logits = (logits_of(rng, 64, 10, 1.0) * scale).astype(np.float32)
    logits[:8] = logits[:8, :1]  # the first of equals
    here = Exit(by, criterion, None, 10, 64)
    assert here.run(logits, FIRST + np.arange(64))
    scores, labels, _ = here.expected(logits)
    nearly(here.arrays["scores"], scores)
    np.testing.assert_array_equal(here.arrays["labels"], labels)
    np.testing.assert_allclose(here.arrays["probabilities"].sum(1), 1, rtol=1e-6)


def test_a_row_does_not_depend_on_its_chunk(by, rng):
    logits = logits_of(rng, 65, 10)
    whole, alone = (Exit(by, "entropy", None, 10, 65) for _ in range(2))
    assert whole.run(logits, FIRST + np.arange(65))
    for index in range(65):
        assert alone.run(logits[index : index + 1], np.array([FIRST + index]))
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(array, alone.arrays[name])


def test_arrays_may_lie_in_memory_as_they_like(by, rng):
    logits, who = logits_of(rng, 20, 10), FIRST + np.arange(20)
    here, other = (Exit(by, "entropy", 1.5, 10, 20) for _ in range(2))
    carried = here.carried(who)
    odd = {name: np.repeat(value, 2, 0)[::2] for name, value in carried.items()}
    for value in odd.values():
        value.flags.writeable = False
    assert here.run(logits, who, carried)
    assert other.run(np.asfortranarray(logits), who, odd)
    (stay, mine), (others, theirs) = here.waiting.take(20), other.waiting.take(20)
    np.testing.assert_array_equal(stay, others)
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name])


def test_what_does_not_fit_is_refused_before_it_is_read(by, rng):
    here, who = Exit(by, "entropy", 1.5, 10, 20), FIRST + np.arange(20)
    carried = here.carried(who)
    assert here.run(logits_of(rng, 20, 10), who, carried)
    before = here.waiting.count
    for wrong in (logits_of(rng, 20, 9), logits_of(rng, 19, 10), np.zeros((20, 10))):
        with pytest.raises(ValueError, match=r"Expected float32 logits \[20, 10\]. Rec"):
            here.run(wrong, who, carried)
    for wrong in (carried["rows"][:19], carried["rows"].astype(np.float32)):
        with pytest.raises(ValueError, match="Expected 20 rows of 24 bytes of 'rows', as"):
            here.run(logits_of(rng, 20, 10), who, {**carried, "rows": wrong})
    assert here.waiting.count == before


# ---- Without it ----------------------------------------------------------------------
@pytest.fixture
def first_use(monkeypatch, tmp_path):
    """A process that has not looked for the library, and an empty cache for it."""
    native_step._attempt.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(SWITCH, "auto")
    yield tmp_path / "keras_branchy"
    native_step._attempt.cache_clear()


def test_off_never_looks(first_use, monkeypatch):
    monkeypatch.setenv(SWITCH, "off")
    monkeypatch.setattr(native_step, "_load", lambda: pytest.fail("looked for it"))
    assert native_step.load() is None
    assert native_step.problem() == f"{SWITCH}=off"


def test_no_compiler(first_use, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert native_step.load() is None
    assert "There is no C++ compiler; install g++" in native_step.problem()
    monkeypatch.setenv(SWITCH, "on")
    with pytest.raises(RuntimeError, match="=on, but the native step cannot run. There is"):
        native_step.load()


def test_a_damaged_library_is_not_loaded(first_use, library):
    first_use.mkdir()
    name = native_step.builder().step_library_name()
    whole = Path(library._name).read_bytes()
    (first_use / name).write_bytes(whole[: len(whole) // 2])
    assert native_step.load() is None
    assert "is truncated or altered. Delete it." in native_step.problem()


def test_a_struct_of_another_size_is_refused(first_use, library, monkeypatch):
    monkeypatch.setattr(native_step.ctypes, "sizeof", lambda kind: 8)
    assert native_step.load() is None
    assert "is of another version. Delete it." in native_step.problem()
