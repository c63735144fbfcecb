# SPDX-License-Identifier: Apache-2.0
"""StageRunner against `predict_early`, and its gate against the definition in NumPy."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import coefficients
from exports import exported, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from project import fresh_python

from keras_branchy import StageRunner
from keras_branchy.criteria import CRITERIA, gate_scores
from keras_branchy.row_gate import row_gate
from keras_branchy.runner import engines, stage_engine
from keras_branchy.runner.drivers import CascadeDriver, SampleDriver
from keras_branchy.runner.stage_engine import StageEngine

pytestmark = pytest.mark.usefixtures("step")

FLOATS = st.floats(-60, 60, width=32)
ODD = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1.5])


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(max_examples=150, deadline=None)
@given(
    logits=arrays(np.float32, st.tuples(st.just(1), st.integers(1, 120)), elements=FLOATS)
)
def test_the_gate_of_one_row_is_that_of_numpy(criterion, logits):
    own = coefficients(criterion)
    score, label, probabilities = row_gate(criterion, own)(logits)
    expected, wanted = gate_scores(logits, criterion, own)
    # Sums are taken in another order.
    np.testing.assert_allclose(score, np.float32(expected[0]), rtol=1e-6, atol=1e-12)
    assert label == wanted[0]
    z = logits[0].astype(np.float64)
    softmax = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    np.testing.assert_allclose(probabilities, softmax, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(max_examples=100, deadline=None)
@given(logits=arrays(np.float32, st.tuples(st.just(1), st.integers(1, 4)), elements=ODD))
def test_the_gate_of_one_row_knows_broken_rows(criterion, logits):
    own = coefficients(criterion)
    score, label, probabilities = row_gate(criterion, own)(logits)
    expected, wanted = gate_scores(logits, criterion, own)
    np.testing.assert_allclose(score, np.float32(expected[0]), rtol=1e-6)
    assert label == wanted[0]
    assert np.isnan(probabilities).all() == np.isnan(score)


def test_small_entropies_keep_their_digits():
    logits = np.array([[30.0, 0.0, 1.0]], np.float32)
    e = np.exp(np.array([-30.0, -29.0]))
    expected = np.log1p(e.sum()) - (e * [-30.0, -29.0]).sum() / (1 + e.sum())
    np.testing.assert_allclose(row_gate("entropy")(logits)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("classes", [3, 120])
def test_the_gate_of_one_row_does_not_overflow(classes):
    logits = np.arange(classes, dtype=np.float32)[None]
    for bias, score in ((-1e6, 0.0), (1e6, 1.0)):
        assert row_gate("learned", [bias, 1.0, 1.0, 1.0])(logits)[0] == score


def check(runner, export, x=None, which=slice(None)):
    answer = runner.predict(export.x if x is None else x)
    expected = export.answer
    np.testing.assert_array_equal(answer.exits, expected.exits[which])
    np.testing.assert_array_equal(answer.labels, expected.labels[which])
    # Sums within a stage are taken in another order.
    np.testing.assert_allclose(
        answer.probabilities, expected.probabilities[which], atol=1e-5
    )
    np.testing.assert_allclose(answer.scores, expected.scores[which], atol=1e-5)
    assert answer.labels.dtype == answer.exits.dtype == np.int64
    assert answer.probabilities.dtype == answer.scores.dtype == np.float32
    return answer


def test_answers_are_those_of_predict_early():
    export = exported("residual")
    runner = StageRunner(export.folder)
    answer = check(runner, export)
    left = np.bincount(export.answer.exits, minlength=3)
    assert (left > 5).all(), "every exit is taken"
    assert answer.statistics.left == left.tolist()
    assert answer.statistics.reached == [60, 60 - left[0], left[2]]
    assert answer.statistics.samples == len(answer) == 60
    assert 0 < answer.statistics.seconds < 60
    assert runner.exit_names == export.model.exit_names
    assert runner.thresholds == export.model.thresholds


def test_threads_change_nothing():
    export = exported("residual")
    runner = StageRunner(export.folder, threads=3)
    check(runner, export)
    check(runner, export, rows(export.x, slice(0, 1)), slice(0, 1))
    check(runner, export, rows(export.x, slice(0, 2)), slice(0, 2))


@pytest.mark.parametrize("batch_size", [1, None])
def test_a_runner_needs_its_files_no_more(tmp_path, batch_size):
    export = exported("residual", batch_size=batch_size)
    folder = tmp_path / "copy"
    shutil.copytree(export.folder, folder)
    runner = StageRunner(folder, threads=2)
    shutil.rmtree(folder)
    for _ in range(6):  # beyond which a file is opened with one thread too
        check(runner, export)
        check(runner, export, rows(export.x, slice(0, 3)), slice(0, 3))


def test_any_number_of_samples_is_answered():
    export = exported("residual", batch_size=None)
    runner = StageRunner(export.folder)
    for count in [*range(1, 12), 3, 1, 60, 2]:
        check(runner, export, rows(export.x, slice(0, count)), slice(0, count))


def test_a_call_that_failed_leaves_nobody_behind(monkeypatch):
    export = exported("residual", batch_size=None)
    runner = StageRunner(export.folder)
    check(runner, export)
    run = runner._driver.run

    def break_down(stage, *given):
        if stage == 1:
            raise RuntimeError("broke down")
        return run(stage, *given)

    monkeypatch.setattr(runner._driver, "run", break_down)
    with pytest.raises(RuntimeError, match="broke down"):
        runner.predict(export.x)
    monkeypatch.undo()
    check(runner, export)


def test_answers_stay_as_they_are_when_more_are_asked_for():
    export = exported("residual", batch_size=None)
    runner = StageRunner(export.folder)
    first = runner.predict(export.x)
    copies = [array.copy() for array in (first.labels, first.exits, first.probabilities)]
    runner.predict(rows(export.x, slice(30, 60)))
    for array, copy in zip(
        (first.labels, first.exits, first.probabilities), copies, strict=True
    ):
        np.testing.assert_array_equal(array, copy)


def test_one_runner_serves_several_threads():
    export = exported("residual")
    runner = StageRunner(export.folder, threads=2)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(check, runner, export) for _ in range(12)]:
            done.result()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("batch_size", "max_wait"), [(1, None), (None, None), (None, 0)])
def test_a_stream_is_answered_in_order(batch_size, max_wait, threads):
    export = exported("residual", batch_size=batch_size)
    runner = StageRunner(export.folder, threads=threads)
    parts = (rows(export.x, slice(at, at + 7)) for at in range(0, 60, 7))
    given = list(runner.stream(parts, max_wait=max_wait))
    assert [len(part) for part in given] == [7] * 8 + [4]
    for field in ("exits", "labels"):
        joined = np.concatenate([getattr(part, field) for part in given])
        np.testing.assert_array_equal(joined, getattr(export.answer, field))
    assert all(part.statistics.samples == len(part) > 0 < part.seconds for part in given)


def test_a_runner_can_be_asked_while_it_streams():
    export = exported("residual", batch_size=None)
    runner = StageRunner(export.folder)
    for _ in runner.stream([export.x, export.x], max_wait=0):
        check(runner, export)


def test_a_stream_of_a_runner_is_refused_before_it_begins():
    runner = StageRunner(exported("residual", batch_size=None).folder)
    with pytest.raises(ValueError, match="`max_wait` must be a number of seconds"):
        runner.stream([], max_wait="soon")
    runner.thresholds = None
    with pytest.raises(ValueError, match="has no thresholds, so it cannot tell"):
        runner.stream([])


def test_no_sample_gives_empty_answers():
    export = exported("residual")
    for runner in (StageRunner(export.folder), StageRunner(export.folder, threads=2)):
        answer = runner.predict(export.x[:0])
        assert answer.probabilities.shape == (0, 4) and len(answer.exits) == 0
        assert runner.every_exit(export.x[:0])[2].shape == (3, 0, 4)


def test_thresholds_are_overridden_for_a_call_or_for_good():
    export = exported("residual")
    runner = StageRunner(export.folder)
    assert (runner.predict(export.x, thresholds=[None, None]).exits == 2).all()
    assert (runner.predict(export.x, thresholds=[100.0, None]).exits == 0).all()
    check(runner, export)
    runner.thresholds = [None, 100.0]
    assert (runner.predict(export.x).exits == 1).all()
    runner = StageRunner(export.folder, thresholds=[None, None])
    assert (runner.predict(export.x).exits == 2).all()


@pytest.mark.parametrize("layout", ["stages", "cascade"])
def test_every_exit_says_what_keras_does(layout):
    export = exported("residual", layout=layout)
    scores, labels, probabilities = StageRunner(export.folder).every_exit(export.x)
    outputs = export.model.predict(export.x, verbose=0)
    for index, name in enumerate(export.model.exit_names):
        p = outputs[name].astype(np.float64)
        np.testing.assert_allclose(probabilities[index], p, atol=1e-5)
        np.testing.assert_array_equal(labels[index], p.argmax(-1))
        np.testing.assert_allclose(scores[index], -(p * np.log(p)).sum(-1), atol=1e-5)


def test_masks_cross_between_files():
    export = exported("attention")
    check(StageRunner(export.folder), export)


def test_several_inputs_are_given_by_name_or_in_order():
    export = exported("two_inputs")
    runner = StageRunner(export.folder)
    check(runner, export)
    check(runner, export, [export.x["image"], export.x["vector"]])


def test_patience_is_counted():
    export = exported("patience", layout="cascade")
    check(StageRunner(export.folder), export)
    export = exported("patience", batch_size=None)
    runner = StageRunner(export.folder)
    check(runner, export)
    # The same files read with a batch of one at a time.
    manifest = runner.manifest
    manifest.data["batch_size"] = 1
    driver = SampleDriver(manifest)
    limits = np.array(export.model.thresholds, np.float32)
    rows = {manifest.inputs[0].name: export.x}
    _, _, exits, _ = driver.predict(rows, 60, limits)
    np.testing.assert_array_equal(exits, export.answer.exits)


@pytest.mark.parametrize("size", [4, None])
def test_files_with_a_batch_take_survivors_together(size):
    export = exported("patience" if size is None else "residual", batch_size=size)
    runner = StageRunner(export.folder)
    assert isinstance(runner._driver, StageEngine)
    runner = StageRunner(export.folder, threads=2)
    check(runner, export)
    check(runner, export, export.x[:5], slice(0, 5))
    assert len(runner.predict(export.x[:0])) == 0
    if size == 4:  # nobody survives: what crashes within one file
        assert (runner.predict(export.x, thresholds=[100.0, None]).exits == 0).all()


def test_a_broken_sample_goes_to_the_last_exit():
    export = exported("residual")
    x = export.x.copy()
    x[3] = np.nan
    expected = export.model.predict_early(x, verbose=0)
    answer = StageRunner(export.folder).predict(x)
    np.testing.assert_array_equal(answer.exits, expected.exits)
    assert answer.exits[3] == 2
    assert np.isnan(answer.probabilities[3]).all() and np.isnan(answer.scores[3])


class Broken:
    """A file that gives NaN for logits."""

    def __init__(self, program):
        self.program, self.rest = program, program.rest

    def run(self, tensors):
        return np.full_like(self.program.run(tensors), np.nan)


def test_a_sample_that_breaks_on_its_way_goes_to_the_last_exit():
    export = exported("residual")
    expected = StageRunner(export.folder).predict(export.x)
    _, labels, _ = StageRunner(export.folder).every_exit(export.x)
    runner = StageRunner(export.folder)
    runner._driver.programs[1] = Broken(runner._driver.programs[1])
    answer = runner.predict(export.x)
    first = expected.exits == 0
    assert 0 < first.sum() < len(first) and (expected.exits == 1).any()
    np.testing.assert_array_equal(answer.exits, np.where(first, 0, 2))
    np.testing.assert_array_equal(answer.labels, np.where(first, labels[0], labels[2]))


def test_the_cascade_file_is_one_program():
    export = exported("residual", layout="cascade")
    runner = StageRunner(export.folder)
    assert isinstance(runner._driver, CascadeDriver)
    check(StageRunner(export.folder), export)


def test_a_runner_loads_neither_tensorflow_nor_keras():
    folder = exported("residual").folder
    loaded = fresh_python(
        "import sys, numpy as np\n"
        "from keras_branchy import StageRunner\n"
        f"runner = StageRunner({str(folder)!r})\n"
        "assert len(runner.predict(np.zeros((3, 8, 8, 2), np.float32))) == 3\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'torch', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert loaded.splitlines()[-1] == "[]"


def test_without_litert_it_says_what_to_install():
    folder = exported("residual").folder
    said = fresh_python(
        "import sys\n"
        "sys.modules['ai_edge_litert.interpreter'] = None\n"
        "from keras_branchy import StageRunner\n"
        "try:\n"
        f"    StageRunner({str(folder)!r})\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    assert re.search(r"needs the package ai-edge-litert.*keras-branchy\[runtime\]", said)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.astype(">f4"),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: x.tolist(),
    ],
    ids=["bytes swapped", "columns first", "strided", "lists"],
)
def test_arrays_may_lie_in_memory_as_they_like(other):
    export = exported("residual")
    check(StageRunner(export.folder), export, other(export.x))


BAD = [
    (lambda x: x[0], r"\[samples, 8, 8, 2\]. Received: shape \(8, 8, 2\). Add a first"),
    (lambda x: x[:, :4], r"Received: shape \(60, 4, 8, 2\). Pass a NumPy array with a row"),
    (lambda x: object(), r"Received: object. Pass a NumPy array with a row"),
    (lambda x: x.astype(complex), "must hold float32. Received: complex128. Convert it"),
    (lambda x: {"images": x}, r"reads the inputs .* a dict of \['images'\]. Add"),
]


@pytest.mark.parametrize("spoil, said", BAD)
def test_what_does_not_fit_is_refused(spoil, said):
    export = exported("residual")
    with pytest.raises(ValueError, match=said):
        StageRunner(export.folder).predict(spoil(export.x))


def test_a_missing_last_dimension_is_named():
    from keras_branchy.runner.manifest import Tensor
    from keras_branchy.runner.samples import SampleReader

    read = SampleReader([Tensor("image", (None, 28, 28, 1), "float32")])
    with pytest.raises(ValueError, match=r"shape \(4, 28, 28\). Add the last dimension"):
        read(np.zeros((4, 28, 28), np.float32))
    with pytest.raises(ValueError, match=r"shape \(28, 28, 1\). Add a first dimension"):
        read(np.zeros((28, 28, 1), np.float32))


def test_several_inputs_must_fit_together():
    export = exported("two_inputs")
    runner = StageRunner(export.folder)
    with pytest.raises(ValueError, match="Received: 1 arrays. Pass a dict by name"):
        runner.predict([export.x["image"]])
    with pytest.raises(ValueError, match="Received: ndarray. Pass a dict by name"):
        runner.predict(export.x["image"])
    with pytest.raises(ValueError, match="same number of samples.*'vector': 3.*one row"):
        runner.predict({"image": export.x["image"], "vector": export.x["vector"][:3]})


def test_wrong_options_are_refused():
    folder = exported("residual").folder
    with pytest.raises(ValueError, match="`threads` must be.*Received: 0. Pass"):
        StageRunner(folder, threads=0)
    with pytest.raises(ValueError, match="Received: 1 entries. Expected 2"):
        StageRunner(folder, thresholds=[0.5])
    with pytest.raises(ValueError, match="Received: 3 entries. Expected 2"):
        StageRunner(folder).predict(exported("residual").x, thresholds=[1, 2, 3])


def test_without_thresholds_it_asks_for_them():
    runner = StageRunner(exported("residual").folder)
    runner.thresholds = None
    assert runner.thresholds is None
    said = "no thresholds.*Received: thresholds=None. Calibrate.*thresholds= with 2 floats"
    with pytest.raises(ValueError, match=said):
        runner.predict(exported("residual").x)


def test_a_file_is_opened_once_for_every_number_of_samples(monkeypatch):
    export = exported("residual", batch_size=None)
    expected = StageRunner(export.folder).predict(export.x)
    opened = []
    made = engines._interpreter
    monkeypatch.setattr(
        engines, "_interpreter", lambda *given: opened.append(given[1]) or made(*given)
    )
    runner = StageRunner(export.folder)
    for size in (60, 7, 1, 33):
        answer = runner.predict(export.x[:size])
        np.testing.assert_array_equal(answer.labels, expected.labels[:size])
        np.testing.assert_array_equal(answer.exits, expected.exits[:size])
    assert sorted(opened) == ["stage_1.tflite", "stage_2.tflite", "stage_3.tflite"]


@pytest.mark.parametrize(
    ("row", "samples"),
    [(0, 256), (3200, 256), (11560, 64), (18000, 64), (28000, 32), (43000, 32)]
    + [(82944, 16), (131072, 8), (884736, 2), (9e7, 1)],
)
def test_chunks_are_a_power_of_two_that_fits_the_cache(row, samples):
    fitting = stage_engine.CACHE / max(row, 1)
    powers = np.array([1 << bit for bit in range(9)])
    if fitting < stage_engine.FEW:  # the nearest
        expected = min(powers, key=lambda power: abs(np.log2(power) - np.log2(fitting)))
    else:
        expected = powers[powers <= fitting].max()
    assert stage_engine._chunk(row, 1) == samples == expected
    assert stage_engine._chunk(row, 3) == 3 * samples
