# SPDX-License-Identifier: Apache-2.0
"""benchmarks/reproduce.py: trainings that go on, and figures that are what they say."""

import csv
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from project import ROOT

sys.path += [str(ROOT), str(ROOT / "examples")]

from benchmarks.reproduction import (  # noqa: E402
    data,
    estimate,
    features,
    figures,
    interior,
    losses,
    measurement,
    networks,
    output,
    pages,
    training,
)
from benchmarks.reproduction.published import BRANCHYNET  # noqa: E402
from benchmarks.reproduction.schedules import DEFAULT, Schedule, schedule  # noqa: E402
from benchmarks.reproduction.targets import TARGETS, chainer, placement, target  # noqa: E402
from keras_branchy import cost  # noqa: E402
from keras_branchy import networks as published_networks  # noqa: E402

SCRIPT = ROOT / "benchmarks" / "reproduce.py"
PLAN = Schedule("quick", 1, 4, 32)


def small():
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Flatten()(inputs)
    outputs = keras.layers.Dense(10, activation="softmax", name="last")(x)
    return keras.Model(inputs, outputs, name="small")


def train(trainer, split, **changed):
    given = {"schedule": PLAN, "seed": 0, "epochs": 4, **changed}
    return trainer.trained("small", small, split, given.pop("epochs"), **given)


def epochs(folder):
    lines = (folder / "small" / "epochs.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["epoch"] for line in lines]


@pytest.fixture(scope="module")
def split():
    return data.rehearsal("mnist", 96)


# ---- Training ------------------------------------------------------------------------
def test_a_training_goes_on_from_its_last_epoch(tmp_path, split):
    for done in ([1], [1, 2], [1, 2, 3]):
        with pytest.raises(training.OutOfTime):
            train(training.Trainer(tmp_path, until=0), split)
        assert epochs(tmp_path) == done
    model = train(training.Trainer(tmp_path, until=0), split)  # the last epoch is left
    assert epochs(tmp_path) == [1, 2, 3, 4]
    again = train(training.Trainer(tmp_path), split)
    assert epochs(tmp_path) == [1, 2, 3, 4]
    np.testing.assert_array_equal(
        model.get_layer("last").kernel, again.get_layer("last").kernel
    )
    assert not (tmp_path / "small" / "state").exists()


def test_a_training_learns(tmp_path, split):
    plan = Schedule("quick", 1, 30, 32, learning_rate=1e-2, cosine=True)
    model = train(training.Trainer(tmp_path), split, schedule=plan, epochs=30)
    assert measurement.plain_accuracy(model, split.test) > 0.9


def test_other_settings_begin_anew_and_say_so(tmp_path, split, capsys):
    train(training.Trainer(tmp_path), split, epochs=1)
    train(training.Trainer(tmp_path), split, epochs=1, seed=1)
    assert epochs(tmp_path) == [1]
    assert "small: its settings have changed, so it is trained anew." in (
        capsys.readouterr().out
    )


def test_a_loss_of_its_own_does_not_begin_anew(tmp_path, split, capsys):
    for _ in range(2):  # another object, as in another process
        loss = {"last": keras.losses.SparseCategoricalCrossentropy()}
        train(training.Trainer(tmp_path), split, epochs=1, loss=loss)
    assert "trained anew" not in capsys.readouterr().out
    other = {"last": keras.losses.SparseCategoricalCrossentropy(ignore_class=1)}
    train(training.Trainer(tmp_path), split, epochs=1, loss=other)
    assert "trained anew" in capsys.readouterr().out


def test_what_is_trained_in_bfloat16_is_kept_in_float32(tmp_path, split):
    plan = Schedule("quick", 1, 1, 32, dtype="mixed_bfloat16")
    model = train(training.Trainer(tmp_path), split, schedule=plan, epochs=1)
    assert model.get_layer("last").compute_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


def test_an_estimate_counts_steps_and_keeps_the_network(split):
    one = estimate.Estimator()
    plan = Schedule("full", 1, 4, 40)
    model = train(one, split, schedule=plan)
    assert train(one, split, schedule=plan) is model, "and times it once"
    (row,) = one.rows
    assert (row["training"], row["epochs"], row["steps"]) == ("small", 4, 3)  # of 96 / 40
    epoch = 3 * row["seconds_a_step"] + row["seconds_a_validation"]
    assert row["seconds_a_step"] > 0 < row["seconds_a_validation"]
    seconds = row["seconds_to_prepare"] + 4 * epoch
    assert row["hours"] == pytest.approx(seconds / 3600, rel=1e-12)
    some = Schedule("full", 1, 4, 40, images=50)
    other = estimate.Estimator()
    train(other, split, schedule=some)
    assert other.rows[0]["steps"] == 2


@pytest.mark.parametrize(
    ("count", "text"), [(0.25, "15 min"), (1.26, "1.3 h"), (60, "2.5 days")]
)
def test_hours_are_told_in_fitting_units(count, text):
    assert output.hours(count) == text


def test_weights_are_copied_by_name_or_refused():
    source, target = small(), small()
    training.copy_weights(source)(target)
    np.testing.assert_array_equal(
        source.get_layer("last").kernel, target.get_layer("last").kernel
    )
    inputs = keras.Input((3,))
    other = keras.Model(inputs, keras.layers.Dense(2, name="other")(inputs), name="other")
    with pytest.raises(ValueError, match="small and other have no layer with weights"):
        training.copy_weights(source)(other)


@pytest.mark.parametrize("kind", ["hinge", "crossentropy"])
def test_gates_alone_on_features_are_the_gates_of_the_whole(kind, rng, capsys):
    build = {"blocks": (1, 1, 1, 1), "width": 4, "gates": kind}
    whole = published_networks.d_gate_resnet(**build)
    images = rng.random((12, 32, 32, 3), np.float32)
    parts = {name: (images, np.arange(12) % 10) for name in ("train", "valid", "test")}
    split = data.Data("cifar10", "made up", **parts)
    read = features.Features(features.readings(whole), split, "untrained")
    assert read.describe() == (
        f"{split.describe()}, through features_d_gate_resnet14, untrained"
    )
    assert (read.count, read.first(5).count) == (12, 5)
    assert not capsys.readouterr().out, "nothing is computed yet"
    alone = features.classifiers(whole)
    for layer in alone.layers:
        for weights in layer.weights:
            weights.assign(rng.normal(size=weights.shape))
    training.copy_weights(alone)(whole)
    inputs, labels = read.first(5).train
    assert labels.keys() == {"exit_1", "exit_2"} and list(labels["exit_2"]) == [*range(5)]
    found, expected = alone.predict(inputs, verbose=0), whole.predict(images[:5], verbose=0)
    for name in labels:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert read.first(None) is read


def test_every_kind_has_every_schedule():
    for name in ("default", "full", "quick"):
        assert {schedule(kind, name).name for kind in DEFAULT} == {name}
    assert networks.B_RESNET.for_schedule("full").options == {"depth": 110}
    assert networks.B_RESNET.for_schedule("default").stands_in_for == "b_resnet110"


# ---- Measuring -----------------------------------------------------------------------
@pytest.fixture
def answers(rng):
    made = object.__new__(measurement.Answers)
    made.scores = rng.integers(0, 6, (2, 40)) / 5  # many are equal
    made.correct = rng.random((3, 40)) < np.array([[0.5], [0.7], [0.9]])
    made.stages = [
        cost.StageCost(f"exit_{k + 1}", 0, 0, 0, 0, (), 0, to_leave, trunk)
        for k, (to_leave, trunk) in enumerate(((17, 10), (46, 30), (116, 100)))
    ]
    return made


def test_answers_are_those_of_staged_inference(rng):
    model = published_networks.b_lenet()
    images, labels = rng.random((60, 28, 28, 1), np.float32), rng.integers(0, 10, 60)
    answers = measurement.Answers(model, (images, labels))
    limit = float(np.median(answers.scores))
    model.thresholds = [limit]
    early = model.predict_early(images, verbose=0)
    found = answers.at([limit])
    assert found["accuracy"] == (early.labels == labels).mean()
    assert found["shares"] == [(early.exits == k).mean() for k in range(2)]
    assert found["thresholds"] == [limit] and 0 < found["shares"][0] < 1
    for rule in ({"max_accuracy_drop": 0.02}, {"exit_shares": [0.3]}):
        report = model.calibrate(images, labels, **rule, verbose=0)
        assert answers.thresholds_for(**rule) == report.thresholds
    every = list(model.predict(images, verbose=0).values())
    assert answers.accuracies() == [(p.argmax(-1) == labels).mean() for p in every]


def test_the_boldest_threshold_is_the_largest_that_loses_nothing(rng):
    for _ in range(200):
        scores = rng.integers(0, 8, 12) / 7
        here, last = rng.random(12) < 0.6, rng.random(12) < 0.8
        best = 0.0
        for level in [*np.unique(scores), np.inf]:
            leaves = scores < level
            if np.where(leaves, here, last).sum() >= last.sum():
                best = level
        leaves = scores < placement.boldest(scores, here, last)
        np.testing.assert_array_equal(leaves, scores < best)


def test_a_share_of_the_surest_images_leaves_at_branch_1(answers):
    for point in chainer.by_share(answers):
        count = round(point["share"] * 40)
        first = sorted(range(40), key=lambda n: (answers.scores[0, n], n))[:count]
        right = [answers.correct[0 if n in first else 2, n] for n in range(40)]
        assert point["accuracy"] == np.mean(right)
        largest = max((answers.scores[0, n] for n in first), default=None)
        assert point["largest_entropy"] == largest
        share = point["share"]
        for counting, here, last in (("everything", 17, 116), ("trunk_only", 10, 100)):
            gain = 100 / (share * here + (1 - share) * last)
            assert point["macs"][f"gain_{counting}"] == pytest.approx(gain)


def test_a_flat_curve_seldom_has_a_maximum_inside_and_a_bent_one_mostly(rng):
    places = np.linspace(0, 1, 21)
    called = {}
    for height in (0.0, 0.02):
        curve = 0.9 + height * 4 * places * (1 - places)
        found = [
            interior.interior(places, *rng.normal(curve, 0.004, (2, 3, 21)))[
                "exceeds_noise"
            ]
            for _ in range(1000)
        ]
        called[height] = np.mean(found)
    # By chance one of twenty; four standard errors more are allowed.
    assert 0.02 < called[0.0] < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 1000)
    assert called[0.02] > 0.9


def test_an_inside_maximum_is_told_in_points_over_the_better_end():
    accuracies = {0: (0.90, 0.90, 0.91), 1: (0.92, 0.93, 0.95), 4: (0.91, 0.91, 0.92)}
    rows = [
        {"seed": seed, "convs": convs, "accuracy": value, "valid_accuracy": value}
        for convs, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    found = interior.of_rows(rows, "convs")
    gains = np.array([1.0, 2.0, 3.0])
    assert found["gain"] == pytest.approx(gains.mean())
    assert found["standard_error"] == pytest.approx(gains.std(ddof=1) / 3**0.5)
    assert (found["inside"], found["end"], found["exceeds_noise"]) == (1, 4, True)
    said = interior.sentence(found, "Here", str)
    assert "2.00 points above" in said and "(standard error 0.58)" in said
    below = interior.sentence({**found, "gain": -2.0}, "Here", str)
    assert "2.00 points below" in below and below.endswith(": no maximum inside.")
    alone = interior.of_rows([row for row in rows if row["seed"] == 0], "convs")
    assert "cannot say" in interior.sentence(alone, "Here", str)


@pytest.mark.parametrize(
    ("name", "build", "millions"),
    [
        ("lenet", published_networks.b_lenet, "1.14"),
        ("alexnet", published_networks.b_alexnet, "28.25"),
        ("resnet", lambda: published_networks.b_resnet(depth=110), "232.4"),
    ],
)
def test_both_countings_are_those_of_the_published_table(name, build, millions):
    figures = BRANCHYNET[name]
    last = 1 - sum(figures.shares[:-1])
    found = measurement.macs(cost.stage_costs(build()), [*figures.shares[:-1], last])
    gains = found["gain_trunk_only"], found["gain_everything"]
    assert tuple(round(gain, 2) for gain in gains) == figures.macs
    assert f"{found['plain'] / 1e6:.4g}" == millions


def test_trunk_time_is_weighted_by_who_needs_each_segment(monkeypatch):
    from benchmarks.reproduction import timing

    clock = iter(np.cumsum([0.0, 1.0, 0.0, 2.0, 0.0, 4.0, 0.0, 6.0] * 5))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(timing, "trunk_segments", lambda model, image: [lambda: None] * 3)
    monkeypatch.setattr(timing, "in_one_call", lambda plain, image: lambda: None)
    found = timing.trunk_only(None, None, np.zeros((1, 2)), [0.5, 0.25, 0.25], rounds=5)
    assert found["segments_ms"] == [1000, 2000, 4000]
    assert found["plain_ms"] == 6000  # in one call, less than its segments apart
    assert found["branchy_ms"] == 1000 + 0.5 * 2000 + 0.25 * 4000
    assert found["gain"] == 6000 / 3000


# ---- Data and files -------------------------------------------------------------------
def test_whitened_images_span_0_to_1_and_lose_their_correlations(rng):
    images = rng.random((300, 4, 4, 1)).repeat(2, 2).reshape(300, 32)[:, :16]
    images = images.reshape(300, 4, 4, 1).astype("float32")
    labels = np.zeros(300, "int64")
    parts = {name: (images, labels) for name in ("train", "valid", "test")}
    white, _ = data.whitened(data.Data("cifar10", "made up", **parts)).test
    np.testing.assert_allclose(white.min((1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(white.max((1, 2, 3)), 1, atol=1e-6)
    # By an independent route: the whitening of the centred images by their SVD.
    flat = images.reshape(300, 16).astype(np.float64)
    centred = (flat - flat.mean(0)) / flat.std()
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    scaled = centred @ axes.T / np.sqrt(sizes**2 / 300 + data.WHITENING_FLOOR) @ axes
    scaled -= scaled.min(1, keepdims=True)
    scaled /= scaled.max(1, keepdims=True)
    # float32 eigenvectors against float64 singular vectors.
    np.testing.assert_allclose(white.reshape(300, 16), scaled, atol=2e-4)


def test_the_csv_has_the_published_columns_first(tmp_path):
    row = {
        "network": "b_resnet20",
        "stands_in_for": "b_resnet110",
        "seed": 3,
        "schedule": "default: …",
        "data": "cifar10: …",
        "chosen": "no loss on validation images",
        "plain_accuracy": 0.75,
        "accuracy": 0.5,
        "thresholds": [0.25, None],
        "shares": [0.5, 0.0, 0.5],
        "macs": {"gain_trunk_only": 1.5, "gain_everything": 1.25},
        "times": None,
    }
    output.write(tmp_path / "a.json", {"rows": [row]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"rows": [row]}
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        head, plain, branchy = csv.reader(file)
    assert head[:6] == [
        "Network",
        "Acc. (%)",
        "Time (ms)",
        "Gain",
        "Thrshld. T",
        "Exit (%)",
    ]
    assert plain[:2] == ["b_resnet20 (stands in for b_resnet110), plain", "75.0"]
    assert branchy[1] == "50.0" and branchy[4:6] == ["0.25; never", "50; 0; 50"]
    assert len(head) == len(plain) == len(branchy)
    assert not list(tmp_path.glob("*.part"))


def test_every_target_is_there_and_has_a_page():
    assert all(callable(target(name)) for name in TARGETS)
    assert set(pages.RENDERED) == set(TARGETS)
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert all(f"<!-- results: {region} -->" in text for region in pages.regions())


def test_the_best_place_is_told_with_its_noise():
    def rows(**gains):
        return [
            {"place": place, "seed": seed, "gain_everything": gain}
            for place, found in gains.items()
            for seed, gain in enumerate(found)
        ]

    told = pages.best_place(rows(a=[1.2, 1.3, 1.25], b=[2.0, 2.1, 2.05], c=[1.0] * 3))
    assert "most at `b`, 2.05 ± 0.05 times" in told and "next most at `a`" in told
    assert told.endswith("the difference, 0.80, exceeds the noise over seeds.")
    told = pages.best_place(rows(a=[1.0, 2.0, 1.0], b=[1.5, 1.0, 1.4]))
    assert "most at `a`" in told and "0.03, does not exceed the noise" in told
    assert "one training cannot say" in pages.best_place(rows(a=[1.5], b=[1.4]))


def gates_at(kind, seed, costs, accuracies):
    return [
        {
            "gates": kind,
            "seed": seed,
            "accuracy": accuracy,
            "macs": {"everything": 200 * cost, "plain": 200},
        }
        for cost, accuracy in zip(costs, accuracies, strict=True)
    ]


def test_losses_are_compared_at_equal_cost():
    curves = gates_at("hinge", 0, [0.2, 0.6, 1.0], [0.2, 0.6, 1.0])
    curves += gates_at("crossentropy", 0, [1.2, 0.4], [1.0, 0.5])  # in any order
    found = losses.compared(curves)
    np.testing.assert_allclose(found["costs"][[0, -1]], [0.4, 1.0])
    line = 0.5 + (found["costs"] - 0.4) * 0.5 / 0.8
    np.testing.assert_allclose(found["points"][0], 100 * (found["costs"] - line))
    told = losses.sentence(curves)
    assert "from 40 to 100 %" in told and "-10.0 to +12.5 points beside" in told
    assert "That is not seen here. One or two trunks (1) are little evidence." in told
    better = gates_at("hinge", 0, [0.4, 1.0], [0.9, 0.98])
    told = losses.sentence(better + curves[3:])
    assert "are 10.5 to 40.0 points above" in told and "larger the fewer" in told
    assert "That is seen here." in told
    worse = gates_at("hinge", 0, [0.4, 1.0], [0.51, 0.98])  # above, the less the fewer
    assert "That is not seen here." in losses.sentence(worse + curves[3:])


def test_what_gates_save_within_two_points():
    def point(kind, seed, accuracy, gain):
        return {"gates": kind, "seed": seed, "accuracy": accuracy} | {
            "macs": {"gain_everything": gain}
        }

    rows = [
        {**point(kind, seed, 0.9, 1.0), "exit_accuracies": [0.5, 0.9]}
        for kind in ("hinge", "crossentropy")
        for seed in (0, 1)
    ]
    curves = [point("hinge", 0, 0.885, 2.0), point("hinge", 0, 0.87, 4.0)]
    curves += [point("hinge", 1, 0.89, 1.25), point("crossentropy", 0, 0.7, 8.0)]
    found = losses.saved({"rows": rows, "curves": curves})
    assert found == pytest.approx({"hinge": (0.5 + 0.2) / 2, "crossentropy": 0.0})


def test_accuracy_is_drawn_against_time_where_it_was_taken():
    row = {"network": "b_lenet", "accuracy": 0.98, "plain_accuracy": 0.97}
    gains = {"batch_1": {"gain": 0.5}, "batch_1_trunk_only": {"gain": 4.0}}
    document = {
        "target": "lenet",
        "published": [{"accuracy": 0.9925, "plain": 0.992, "gain": 5.0}],
        "rows": [{**row, "times": gains}, {**row, "times": None}],
    }
    (ax,) = figures.against_time(document).values()
    drawn = [line.get_xydata().tolist() for line in ax.lines]
    points = [tuple(round(v, 6) for v in point) for line in drawn[:4] for point in line]
    assert points == [(25.0, 1.0), (200.0, 1.0), (20.0, 0.05)]
    document["rows"] = document["rows"][1:]
    assert figures.against_time(document) == {}


def test_each_row_of_the_chainer_table_has_a_panel():
    gains = {"batch_1": {"gain": 0.5}}
    row = {"accuracy": 0.98, "plain_accuracy": 0.97, "times": gains}
    rows = [
        {**row, "network": "b_lenet", "table_row": "lenet"},
        {**row, "network": "chainer_b_alexnet", "table_row": "alexnet", "accuracy": 0.6},
    ]
    published = {
        "lenet": {"accuracy": 0.99, "plain": 0.98, "gain": 8.0},
        "alexnet": {"accuracy": 0.76, "plain": 0.76, "gain": 4.0},
    }
    (ax,) = figures.chainer_table({"published": published, "rows": rows}).values()
    found = {
        panel.get_title(loc="left") or panel.get_title(): [
            tuple(np.round(line.get_xydata(), 6).ravel())
            for line in panel.lines
            if len(line.get_xydata()) == 1
        ]
        for panel in ax.figure.axes
    }
    assert found == {
        "b_lenet": [(200.0, 1.0), (12.5, 1.0)],
        "chainer_b_alexnet": [(200.0, -37.0), (25.0, 0.0)],
    }
    rows = [{**row, "times": None} for row in rows]
    assert figures.chainer_table({"published": published, "rows": rows}) == {}


def test_published_figures_agree_with_each_other():
    for row in BRANCHYNET.values():
        assert abs(sum(row.shares) - 1) < 0.002
        assert abs(row.plain_ms / row.ms - row.gain) < 0.06
        assert len(row.thresholds) == len(row.shares) - 1


# ---- The command ---------------------------------------------------------------------
def reproduce(*args):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "the following arguments are required: TARGET"),
        (["lennet"], "invalid choice: 'lennet' (choose from 'lenet', 'alexnet'"),
        (["lenet", "--quick"], "a rehearsal needs --json"),
        (["lenet", "--json", "x.csv"], "--json names a file that ends in .json, not x.csv"),
        (["lenet", "--quick", "--full"], "not allowed with argument"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_imported(args, said):
    done = reproduce(*args)
    assert done.returncode == 2 and said in done.stderr


def test_a_target_is_rehearsed_from_the_shell_and_goes_on(tmp_path):
    call = ["lenet", "--quick", "--made-up", "--seeds", 0, "--store", tmp_path / "store"]
    out = tmp_path / "results" / "lenet.json"
    done = reproduce(*call, "--json", out)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text("utf-8"))
    assert document["schedule"] == "quick" and len(document["rows"]) == 3
    for row in document["rows"]:
        assert "made-up images, a rehearsal" in row["data"]
        assert row["times"]["batch_1"]["gain"] > 0
        assert 0 <= row["accuracy"] <= 1 and abs(sum(row["shares"]) - 1) < 1e-9
    assert out.with_suffix(".csv").exists()
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"lenet"}))
def test_every_target_is_rehearsed(name, tmp_path):
    out = tmp_path / f"{name}.json"
    done = reproduce(
        *(name, "--quick", "--made-up", "--seeds", 0, "--no-times"),
        *("--store", tmp_path / "store", "--json", out),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text("utf-8"))
    assert document["target"] == name and document["rows"]
    for row in document["rows"]:
        assert row["seed"] == 0 and "quick" in row["schedule"]
    assert out.with_suffix(".csv").read_text("utf-8").count("\n") > len(document["rows"])
