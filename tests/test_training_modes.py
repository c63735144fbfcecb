# SPDX-License-Identifier: Apache-2.0
"""The ways to train: what each moves, by README's lines, and what these lines reach."""

import importlib.util
import json
import types

import keras
import numpy as np
import pytest
from cases import images
from keras import layers
from project import ROOT

from keras_branchy import BranchyModel, ExitBranch

CROSSENTROPY = "sparse_categorical_crossentropy"


def trunk():
    """A backbone in three parts, each with batch statistics."""
    inputs = x = keras.Input((8, 8, 2))
    for part in ("early", "middle", "late"):
        x = layers.Conv2D(3, 3, padding="same", name=part)(x)
        x = layers.BatchNormalization(name=f"{part}_norm")(x)
        x = layers.ReLU(name=f"{part}_out")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="scores")(x))


def with_exits(backbone, **options):
    taps = ("early_out", "middle_out")
    return BranchyModel(backbone, {tap: ExitBranch(4, **options) for tap in taps})


class Watch:
    """Which layers of a model move between two looks: weights, and batch statistics."""

    def __init__(self, model):
        self.model = model
        self.before = self.look()

    def look(self):
        weights = [v for layer in self.model.layers for v in layer.weights]
        return {v.path: v.numpy().copy() for v in weights}

    def moved(self):
        after = self.look()
        paths = [p for p, old in self.before.items() if not np.array_equal(old, after[p])]
        return {path.split("/")[0] for path in paths if "moving" not in path}

    def statistics_moved(self):
        after = self.look()
        return any(
            not np.array_equal(old, after[path])
            for path, old in self.before.items()
            if "moving" in path
        )


@pytest.fixture
def data(rng):
    return images(32, rng), rng.integers(0, 4, 32)


def fit(model, data, **options):
    model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY, **options)
    watch = Watch(model)
    model.fit(*data, epochs=1, batch_size=16, verbose=0)
    return watch


TRUNK = {"early", "early_norm", "middle", "middle_norm", "late", "late_norm", "scores"}
HEADS = {"exit_1", "exit_2"}


def test_joint_gradients_are_the_weighted_sum_of_those_of_each_exit(data):
    """One SGD step of Σ wₙ·lossₙ is the sum of the steps of each loss alone."""
    factors = {"exit_1": 1.0, "exit_2": 0.5, "exit_3": 0.25}
    start = with_exits(trunk()).get_weights()
    steps = []
    for weights in (
        factors,
        *({**dict.fromkeys(factors, 0.0), n: w} for n, w in factors.items()),
    ):
        model = with_exits(trunk())
        model.set_weights(start)
        model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY, loss_weights=weights)
        model.train_on_batch(*data)
        steps.append([v.numpy() for v in model.trainable_variables])
    first = with_exits(trunk())
    first.set_weights(start)
    origin = [v.numpy() for v in first.trainable_variables]
    for at, joint, *alone in zip(origin, *steps, strict=True):
        # float32 rounding of gradients of order 0.1
        np.testing.assert_allclose(joint - at, sum(a - at for a in alone), atol=2e-6)


def test_heads_only_on_a_frozen_trunk(data):
    backbone = trunk()
    backbone.trainable = False
    watch = fit(with_exits(backbone), data)
    assert watch.moved() == HEADS and not watch.statistics_moved()


def test_a_trunk_frozen_after_the_exits_were_added(data):
    backbone = trunk()
    model = with_exits(backbone)
    backbone.trainable = False
    watch = fit(model, data)
    assert watch.moved() == HEADS and not watch.statistics_moved()
    backbone.trainable = True
    assert fit(model, data).moved() == TRUNK | HEADS


# Keras warns of variables that nothing trains: here that is the point.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_detached_heads_beside_a_trunk_that_trains(data):
    model = with_exits(trunk(), stop_gradient=True)
    watch = fit(model, data)
    assert watch.moved() == TRUNK | HEADS
    heads_alone = with_exits(trunk(), stop_gradient=True)
    watch = fit(heads_alone, data, loss_weights=[1.0, 1.0, 0.0])
    assert watch.moved() == HEADS


def test_detached_heads_leave_the_trunk_as_it_trains_alone(data):
    backbone = trunk()
    start = backbone.get_weights()
    backbone.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    backbone.fit(*data, batch_size=16, shuffle=False, verbose=0)
    other = trunk()
    other.set_weights(start)
    model = with_exits(other, stop_gradient=True)
    model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    model.fit(*data, batch_size=16, shuffle=False, verbose=0)
    for alone, beside in zip(backbone.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(alone, beside, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_self_distillation_teaches_the_early_exits_only(data):
    model = with_exits(trunk(), stop_gradient=True)
    watch = fit(model, data, loss_weights=[0.0, 0.0, 0.0], distillation_weight=1.0)
    assert watch.moved() == HEADS


def test_self_distillation_reaches_the_trunk_through_the_early_exits(data):
    watch = fit(
        with_exits(trunk()), data, loss_weights=[0.0, 0.0, 0.0], distillation_weight=1.0
    )
    # the last exit's own layers are the teacher, and are left alone
    assert watch.moved() == {"early", "early_norm", "middle", "middle_norm"} | HEADS


def test_a_recorded_training_flag_does_not_hold_statistics_still(data):
    """`fit` of a functional model does not heed it, in Keras too; freezing does."""
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(3, 3, name="early")(inputs)
    x = layers.BatchNormalization(name="early_norm")(x)
    base = keras.Model(inputs, layers.ReLU(name="early_out")(x), name="base")
    outer = keras.Input((8, 8, 2))
    x = layers.GlobalAveragePooling2D()(base(outer, training=False))
    backbone = keras.Model(outer, layers.Dense(4, activation="softmax")(x))
    model = BranchyModel(backbone, {"base/early": ExitBranch(4)})
    assert fit(model, data).statistics_moved()
    base.trainable = False
    assert not fit(model, data).statistics_moved()


# ---- README's lines --------------------------------------------------------------------
def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark, tables = load("training_modes"), load("tables")

JOINT = "Jointly"
DISTILLED = "Jointly, with self-distillation"
TRUNK_FIRST = "The trunk first, then jointly"
DETACHED = "Detached exits beside a trunk that trains"
EXITS_ONLY = "Exits only, on a frozen trunk"
ONE_BY_ONE = "Exits one after another, on a frozen trunk"

# By way, for each `fit` of its lines: the layers that move, and whether statistics do.
MOVES = {
    JOINT: [(TRUNK | HEADS, True)],
    DISTILLED: [(TRUNK | HEADS, True)],
    TRUNK_FIRST: [(TRUNK, True), (TRUNK | HEADS, True)],
    DETACHED: [(TRUNK | HEADS, True)],
    EXITS_ONLY: [(HEADS, False)],
    ONE_BY_ONE: [({"exit_1"}, False), ({"exit_2"}, False)],
}


def test_readme_and_docs_show_every_way():
    assert list(benchmark.ways()) == [benchmark.PLAIN, *MOVES]
    assert "train_step" not in str(benchmark.ways())
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    table = text.split("| --- | --- | --- | --- | --- |\n| ")[1].split("\n\n")[0]
    assert [row.split(" | ")[0] for row in table.split("\n| ")] == list(MOVES)


@pytest.mark.parametrize("name", MOVES)
def test_the_lines_of_readme_move_what_they_should(name, data, monkeypatch):
    backbone, seen, keras_fit = trunk(), [], keras.Model.fit

    def exits(**options):
        return {tap: ExitBranch(4, **options) for tap in ("early_out", "middle_out")}

    def fit_and_look(self, train, epochs):
        watch = Watch(scope["model"])
        keras_fit(self, *train, epochs=1, verbose=0)
        seen.append((watch.moved(), watch.statistics_moved()))

    scope = {"BranchyModel": BranchyModel, "backbone": backbone, "exits": exits}
    scope |= {"model": BranchyModel(backbone, exits()), "train": data, "loss": CROSSENTROPY}
    monkeypatch.setattr(keras.Model, "fit", fit_and_look)
    exec(benchmark.ways()[name], scope)
    assert seen == MOVES[name]
    # No head is left frozen for what may follow.
    left = {variable.path.split("/")[0] for variable in scope["model"].trainable_variables}
    assert left == (TRUNK | HEADS if MOVES[name][-1][1] else HEADS)


# ---- What they reach: the benchmark on B-LeNet -----------------------------------------
@pytest.fixture(scope="module")
def rows():
    return json.loads(benchmark.RESULTS.read_text("utf-8"))["rows"]


def accuracies(rows, way, exit_name):
    """Of each seed, in points."""
    runs = sorted((row for row in rows if row["way"] == way), key=lambda row: row["seed"])
    return np.array([100 * row["exits"][exit_name] for row in runs])


def test_the_results_are_of_the_lines_in_readme(rows):
    """A change of README's lines asks for `python benchmarks/training_modes.py`."""
    (data,) = {row["settings"]["data"] for row in rows}
    wanted = benchmark.settings(data)
    assert all(row["settings"] == wanted[row["way"]] for row in rows)
    ran = sorted((row["way"], row["seed"]) for row in rows)
    assert ran == sorted((way, seed) for way in wanted for seed in (0, 1, 2))


def test_the_results_say_where_they_come_from(rows):
    for row in rows:
        assert row["settings"]["data"].startswith("MNIST: 50,000 train, 10,000 valid")
        made_with = row["made_with"]
        assert made_with["date"] and made_with["processor"] and made_with["cores"] >= 1
        assert {"keras", "tensorflow"} <= set(made_with["versions"])


# Three runs of the plain network spread by about 0.15 points about their mean, so that the
# difference of two such means has a standard error of 0.15 * sqrt(2 / 3) = 0.12.
NOISE = 0.3  # points


@pytest.mark.parametrize("way", [JOINT, DISTILLED, TRUNK_FIRST])
def test_a_trunk_that_trains_with_exits_answers_no_worse(rows, way):
    plain = accuracies(rows, benchmark.PLAIN, "exit_2").mean()
    assert accuracies(rows, way, "exit_2").mean() > plain - NOISE


def test_a_trunk_beside_detached_exits_answers_as_without_them(rows):
    plain = accuracies(rows, benchmark.PLAIN, "exit_2")
    # The same batches from the same start; rounding may turn a few of 10,000 images.
    np.testing.assert_allclose(accuracies(rows, DETACHED, "exit_2"), plain, atol=0.1)


@pytest.mark.parametrize("way", [EXITS_ONLY, ONE_BY_ONE])
def test_a_frozen_trunk_answers_as_before(rows, way):
    plain = accuracies(rows, benchmark.PLAIN, "exit_2")
    np.testing.assert_array_equal(accuracies(rows, way, "exit_2"), plain)


@pytest.mark.parametrize("way", MOVES)
def test_the_early_exit_learns(rows, way):
    first, last = (accuracies(rows, way, name) for name in ("exit_1", "exit_2"))
    # The best that a linear classifier of the pixels reaches is 92 to 93 %.
    assert (first > 95).all() and (first < last).all()
    frozen = accuracies(rows, EXITS_ONLY, "exit_1").mean()
    assert first.mean() > frozen - NOISE  # the least that an exit is trained for


def test_distilled_exits_are_no_worse(rows):
    joint = accuracies(rows, JOINT, "exit_1").mean()
    assert accuracies(rows, DISTILLED, "exit_1").mean() > joint - NOISE


@pytest.mark.parametrize("way", MOVES)
def test_leaving_early_costs_less_and_hardly_any_accuracy(rows, way):
    runs = [row for row in rows if row["way"] == way]
    last = accuracies(rows, way, "exit_2").mean()
    assert max(row["cost"] for row in runs) < 0.6
    # Thresholds that lose nothing on held-out images may lose a little on others.
    assert 100 * np.mean([row["early_exit"] for row in runs]) > last - NOISE


# ---- The benchmark itself --------------------------------------------------------------
def images_of_two_classes(rng):
    labels = rng.integers(0, 2, 512)
    pixels = rng.random((512, 28, 28, 1)) * 0.5
    pixels[:, :14] += 0.5 * labels[:, None, None, None]
    return pixels.astype(np.float32), labels


def test_a_run_trains_by_the_lines_and_measures_on_the_test_images(rng):
    shown = images_of_two_classes(rng)
    wrong = shown[0], 1 - shown[1]
    data = types.SimpleNamespace(train=shown, valid=shown, test=wrong)
    found, trunk = benchmark.run(benchmark.PLAIN_LINES, 0, data)
    frozen, after = benchmark.run(benchmark.ways()[EXITS_ONLY], 0, data, trunk)
    assert list(found["exits"]) == ["exit_2"] and list(frozen["exits"]) != ["exit_2"]
    assert frozen["exits"]["exit_2"] == found["exits"]["exit_2"] < 0.1
    assert frozen["early_exit"] < 0.1 and sum(frozen["shares"]) == pytest.approx(1)
    for old, new in zip(trunk, after, strict=True):
        np.testing.assert_array_equal(old, new)


class Recorder:
    """In place of `run`: what was to run, and an interruption."""

    def __init__(self):
        self.ran, self.fails_at = [], None

    def __call__(self, lines, seed, data, trunk=None):
        self.ran.append((seed, lines, trunk))
        if len(self.ran) == self.fails_at:
            raise KeyboardInterrupt
        exits = {"exit_1": 0.5, "exit_2": 0.75}
        if lines == benchmark.PLAIN_LINES:
            return {"exits": {"exit_2": 0.75}, "core_seconds": 1.0}, f"trunk {seed}"
        return {"exits": exits, "core_seconds": 2.0}, None


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(benchmark, "run", recorder := Recorder())
    return recorder


MADE_WITH = {"versions": {"keras": "1"}, "cores": 2, "processor": "P", "date": "2020-02-02"}


def run_missing(path, data="some data", seeds=(0, 1), **options):
    data = types.SimpleNamespace(describe=lambda described=data: described)
    return benchmark.run_missing(path, data, seeds, MADE_WITH, **options)


def test_an_interrupted_benchmark_goes_on_where_it_stopped(recorder, tmp_path):
    path, ways = tmp_path / "results.json", benchmark.ways()
    recorder.fails_at = 6
    with pytest.raises(KeyboardInterrupt):
        run_missing(path)
    assert run_missing(path) and run_missing(path)
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [(row["way"], row["seed"]) for row in rows] == [
        (way, seed) for way in ways for seed in (0, 1)
    ]
    assert len(recorder.ran) == len(rows) + 1  # the run that was interrupted
    # Ways that freeze a trunk have that of the plain network of their seed.
    for seed, lines, trunk in recorder.ran:
        assert trunk == (f"trunk {seed}" if benchmark.starts_trained(lines) else None)


def test_the_benchmark_begins_nothing_after_its_time(recorder, tmp_path):
    path = tmp_path / "results.json"
    assert not run_missing(path, stop_after=-1) and not path.exists() and not recorder.ran
    assert run_missing(path, stop_after=60)


@pytest.mark.parametrize("what", ["data", "BATCH_SIZE", "LOSS", "lines"])
def test_rows_of_other_settings_are_not_kept(recorder, tmp_path, monkeypatch, what):
    path = tmp_path / "results.json"
    run_missing(path)
    before, changed = len(recorder.ran), {}
    if what == "data":
        changed = {"data": "other data"}
    elif what == "lines":
        others = {**benchmark.ways(), JOINT: "model.fit(train)"}
        monkeypatch.setattr(benchmark, "ways", lambda: others)
    else:
        monkeypatch.setattr(benchmark, what, "another")
    run_missing(path, seeds=[0], **changed)
    rows = json.loads(path.read_text("utf-8"))["rows"]
    again = [lines for _, lines, _ in recorder.ran[before:]]
    if what == "lines":
        assert again == ["model.fit(train)"]
        assert len(rows) == 2 * len(benchmark.ways()) - 1
    else:
        assert sorted(again) == sorted(benchmark.ways().values())
        assert {row["seed"] for row in rows} == {0}


def test_a_frozen_way_runs_again_with_the_trunk_that_it_freezes(recorder, tmp_path):
    path = tmp_path / "results.json"
    run_missing(path)
    rows = json.loads(path.read_text("utf-8"))["rows"]
    rows = [row for row in rows if (row["way"], row["seed"]) != (EXITS_ONLY, 1)]
    path.write_text(json.dumps({"rows": rows}), "utf-8")
    before = len(recorder.ran)
    run_missing(path)
    ways = benchmark.ways()
    assert recorder.ran[before:] == [
        (1, ways[benchmark.PLAIN], None),
        (1, ways[EXITS_ONLY], "trunk 1"),
        (1, ways[ONE_BY_ONE], "trunk 1"),
    ]
    assert len(json.loads(path.read_text("utf-8"))["rows"]) == 2 * len(ways)


def test_other_data_need_a_file_of_their_own(monkeypatch, capsys):
    for options in (["--data", "digits"], ["--images", "100"]):
        monkeypatch.setattr("sys.argv", ["training_modes.py", *options])
        with pytest.raises(SystemExit):
            benchmark.parse_args()
        assert "need an --out" in capsys.readouterr().err
        monkeypatch.setattr("sys.argv", ["x", *options, "--out", "other.json"])
        assert benchmark.parse_args().out.name == "other.json"


def test_the_table_shows_mean_and_range_of_the_rows(recorder, tmp_path, monkeypatch):
    path = tmp_path / "training_modes.json"
    run_missing(path)
    rows = json.loads(path.read_text("utf-8"))["rows"]
    for row, share in zip(
        [row for row in rows if row["way"] == JOINT], (0.96, 0.98), strict=True
    ):
        row["exits"]["exit_1"] = share
    rows[-1]["made_with"] = {**MADE_WITH, "date": "2021-01-01T00:00"}
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    path.write_text(json.dumps({"rows": rows}), "utf-8")
    table = tables.training_modes()
    assert "| Jointly | 97.00 % (96.00 – 98.00) | 75.00 % (75.00 – 75.00) |" in table
    assert "some data. Mean and range over the seeds 0, 1; batches of 128" in table
    assert "2 cores of P, 2020-02-02 and 2021-01-01; keras 1" in table
    rows[0]["settings"]["data"] = "other data"
    path.write_text(json.dumps({"rows": rows}), "utf-8")
    with pytest.raises(ValueError, match="too many values"):
        tables.training_modes()
