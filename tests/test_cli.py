# SPDX-License-Identifier: Apache-2.0
"""The command line runs the whole workflow, and its JSON is what the Python API says."""

import inspect
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from cli_workflow import CLASSES, answer, run, workplace

from keras_branchy import BranchyModel, ExitBranch, StageRunner, __version__, cost
from keras_branchy.scoring import all_logits


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory)


@pytest.fixture(scope="module")
def calibrated(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    out, report = folder / "cal.keras", folder / "report.json"
    options = ("--max-accuracy-drop", "0.02", "--out", out, "--report", report)
    return out, answer("calibrate", place.model, place.data, *options)


def load(path):
    return keras.saving.load_model(path)


def same(given, expected):
    """Thresholds of scores that were computed in batches of another size."""
    return np.allclose(
        np.array(given, float), np.array(expected, float), rtol=1e-5, equal_nan=True
    )


# ---- inspect -------------------------------------------------------------------------
def test_inspect_lists_the_places_of_a_plain_classifier(place):
    found = answer("inspect", place.plain, "--places", "20")
    model = load(place.plain)
    expected = cost.suggest_exits(model, places=20)
    assert found["kind"] == "backbone" and found["classes"] == CLASSES
    assert found["backbone_macs"] == cost.count_macs(model)
    assert [row["tap"] for row in found["places"]] == [x.tap for x in expected]
    for row, want in zip(found["places"], expected, strict=True):
        assert (row["macs"], row["live_tensors"], row["bytes_carried"]) == (
            want.macs,
            want.live_tensors,
            want.bytes_carried,
        )
        head = ExitBranch(CLASSES)
        head.build((None, *want.shape))
        size = np.prod(head.classifier.kernel.shape)  # default heads only pool before it
        assert row["head_macs"] == size
        left = found["backbone_macs"] - want.macs
        assert row["pays"] == (size < left)
        share = row["break_even_share"]
        assert share == (pytest.approx(size / left) if size < left else None)
    assert found["advice"] == expected.advice


def test_inspect_tells_what_the_exits_of_a_model_cost(place, calibrated):
    found = answer("inspect", place.model)
    rows = cost.stage_costs(load(place.model))
    assert found["kind"] == "branchy_model" and not found["calibrated"]
    assert [row["tap"] for row in found["exits"]] == ["early", "late", None]
    assert [row["criterion"] for row in found["exits"]] == ["margin", "entropy", None]
    for shown, row in zip(found["exits"], rows, strict=True):
        assert shown["macs_to_leave"] == row.macs_to_leave
        assert shown["trunk_macs_to_leave"] == row.trunk_macs_to_leave
        assert shown["live"] == list(row.live)
    first = rows[0].head_macs / (rows[-1].trunk_macs_to_leave - rows[0].trunk_macs)
    assert found["exits"][0]["break_even_share"] == pytest.approx(first)
    # Behind `late` less is left to compute than its head costs.
    assert found["exits"][1]["pays"] is False
    assert found["exits"][1]["break_even_share"] is None
    out, _ = calibrated
    again = answer("inspect", out)
    assert again["calibrated"]
    thresholds = [row["threshold"] for row in again["exits"]]
    assert thresholds == [*load(out).thresholds, None]


def test_inspect_says_which_exit_costs_more_than_it_saves(place):
    text, _ = run("inspect", place.model)
    assert "exit_2 costs more than it can save: its head takes" in text
    assert "MACs of every sample" in text
    assert "exit_1 costs more" not in text and "never" in text


def test_inspect_says_that_no_exit_can_pay(tmp_path):
    inputs = keras.Input((2,))
    x = keras.layers.Dense(50, name="wide")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    model.save(tmp_path / "loss.keras")
    text, _ = run("inspect", tmp_path / "loss.keras", width=200)
    assert "No exit with such a head can save anything here" in text
    assert "never" in text and "BranchyModel(" not in text


def test_inspect_takes_sizes_that_a_model_leaves_open(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, name="one")(inputs)
    x = keras.layers.Conv2D(4, 3, name="two")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(x))
    model.save(tmp_path / "open.keras")
    found = answer("inspect", tmp_path / "open.keras", "--input-shape", "16,16,3")
    assert found["backbone_macs"] == 14 * 14 * 27 * 4 + 12 * 12 * 36 * 4 + 20
    problem = answer("inspect", tmp_path / "open.keras", code=1)["error"]["message"]
    assert "input_shape" in problem


# ---- calibrate -----------------------------------------------------------------------
def test_calibrate_writes_what_the_model_would_choose(place, calibrated):
    out, found = calibrated
    model = load(place.model)
    report = model.calibrate(place.x, place.y, max_accuracy_drop=0.02, verbose=0)
    saved = load(out)
    assert same(saved.thresholds, report.thresholds)
    told = found["calibration"]
    expected = json.loads(json.dumps(report.to_json()))
    assert set(told) == set(expected) and told["samples"] == 600
    assert told["point"]["accuracy"] == report.accuracy
    assert told["point"]["shares"] == report.shares
    assert told["exit_accuracy"] == report.exit_accuracy
    assert json.loads(out.with_name("report.json").read_text("utf-8")) == told
    for mine, theirs in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert saved.optimizer.iterations == model.optimizer.iterations


def test_calibrate_takes_shares_and_a_part_of_the_data(place, tmp_path):
    out = tmp_path / "shares.keras"
    found = answer(
        *("calibrate", place.model, place.data, "--exit-shares", "0.4,0.1"),
        *("--limit", "500", "--out", out),
    )
    assert found["data"] == {"source": "data.npz", "samples": 500, "pixels": "raw"}
    assert found["calibration"]["point"]["shares"] == pytest.approx([0.4, 0.1, 0.5])
    assert found["report"] is None
    model = load(out)
    model_alone = load(place.model)
    model_alone.calibrate(place.x[:500], place.y[:500], exit_shares=[0.4, 0.1], verbose=0)
    assert same(model.thresholds, model_alone.thresholds)


@pytest.mark.parametrize(
    "options, expected",
    [
        (("--min-accuracy", "0.5"), {"min_accuracy": 0.5}),
        (("--max-disagreement", "0.1"), {"max_disagreement": 0.1}),
        (("--max-lost-answers", "0.1"), {"max_lost_answers": 0.1}),
        (("--max-cost", "6e3"), {"max_cost": 6000.0}),
        (
            ("--max-cost", "900us", "--profile", "PROFILE", "--profile-batch-size", "4"),
            {"max_cost": pytest.approx(0.9), "costs": [0.25, 0.5, 1.0]},
        ),
        (
            ("--max-accuracy-drop", "0.1", "--profile", "PROFILE"),
            {"max_accuracy_drop": 0.1, "costs": [2.0, 3.0, 7.0]},
        ),
        (
            ("--max-accuracy-drop", "0.1", "--confidence", "0.9"),
            {"max_accuracy_drop": 0.1, "confidence": 0.9},
        ),
        (
            ("--max-accuracy-drop", "0.1", "--confidence", "mean"),
            {"max_accuracy_drop": 0.1, "confidence": "mean"},
        ),
    ],
)
def test_every_target_reaches_the_model(place, tmp_path, monkeypatch, options, expected):
    given = {}
    calibrate = BranchyModel.calibrate
    assert set(expected) <= set(inspect.signature(calibrate).parameters)

    def noted(self, data, **keywords):
        given.update(keywords)
        return calibrate(self, data, **keywords)

    monkeypatch.setattr(BranchyModel, "calibrate", noted)
    profile = write_profile(tmp_path / "bench.json")
    options = [profile if option == "PROFILE" else option for option in options]
    found = answer("calibrate", place.model, place.data, *options)
    assert given == {**expected, "verbose": 0}
    assert found["calibration"]["samples"] == 600
    assert (found["costs"] or {}).get("per_exit") == expected.get("costs")


def test_the_command_knows_every_target_of_the_model():
    text, _ = run("calibrate", "--help", width=120)
    for name in inspect.signature(BranchyModel.calibrate).parameters:
        if name not in ("self", "data", "y", "costs", "verbose"):  # costs: --profile
            assert f"--{name.replace('_', '-')}" in text


def test_calibrate_can_replace_the_model_itself_and_leaves_nothing_else(place, tmp_path):
    own = tmp_path / "own.keras"
    own.write_bytes(place.model.read_bytes())
    run("calibrate", own, place.data, "--max-accuracy-drop", 0.01, "--out", own)
    assert load(own).thresholds is not None
    assert [path.name for path in tmp_path.iterdir()] == ["own.keras"]


def test_a_model_that_cannot_be_written_leaves_the_old_one(place, tmp_path, monkeypatch):
    own = tmp_path / "own.keras"
    own.write_bytes(place.model.read_bytes())

    def full_disk(self, path, *args, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "save", full_disk)
    _, told = run(
        *("calibrate", own, place.data, "--max-accuracy-drop", 0.01, "--out", own), code=1
    )
    assert "No space left on device" in told
    assert own.read_bytes() == place.model.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["own.keras"]


def test_calibrate_without_out_changes_nothing_and_says_so(place):
    before = place.model.read_bytes()
    text, _ = run("calibrate", place.model, place.data, "--max-accuracy-drop", 0.01)
    assert "no model (--out FILE.keras writes it)" in text
    assert place.model.read_bytes() == before


def test_costs_in_time_are_measured_where_there_is_no_profile(place, monkeypatch):
    sizes = []

    def profile(model, batch_size, repeats):
        sizes.append(batch_size)
        times = zip(model.exit_names, (1.0, 2.0, 5.0), strict=True)
        return [cost.StageTime(name, batch_size, ms, ms, ms) for name, ms in times]

    monkeypatch.setattr(cost, "profile", profile)
    options = ("--max-cost", "0.5ms", "--profile-batch-size", "8")
    found = answer("calibrate", place.model, place.data, *options)
    assert sizes == [8]
    assert found["costs"] == {
        "unit": "ms",
        "per_exit": [0.125, 0.375, 1.0],
        "batch_size": 8,
        "source": "measured here",
    }
    model = load(place.model)
    alone = model.calibrate(
        place.x, place.y, max_cost=0.5, costs=[0.125, 0.375, 1.0], verbose=0
    )
    assert found["calibration"]["point"]["cost"] == pytest.approx(alone.cost)
    assert alone.cost <= 0.5
    text, _ = run("calibrate", place.model, place.data, "--max-cost", "2 ms")
    assert "Costs are ms a sample in batches of 1, measured here: 1, 3, 8 by exit." in text
    _, told = run("calibrate", place.model, place.data, "--max-cost", "900us", code=1)
    assert "Leaving at the first exit takes 1000 us. Received: --max-cost 900us." in told


def test_temperatures_and_gates_are_fitted_on_every_fifth_sample(place, tmp_path):
    exits = {"early": ExitBranch(CLASSES, criterion="learned"), "late": ExitBranch(CLASSES)}
    model = BranchyModel(load(place.plain), exits)
    model.set_weights(load(place.model).get_weights())
    model.save(tmp_path / "gate.keras")
    out = tmp_path / "fitted.keras"
    found = answer(
        *("calibrate", tmp_path / "gate.keras", place.data, "--max-accuracy-drop", "0.1"),
        *("--fit-temperatures", "--fit-gates", "--out", out, "--batch-size", "64"),
    )
    fifth = np.arange(600) % 5 == 0
    temperatures = model.fit_temperatures(place.x[fifth], place.y[fifth], verbose=0)
    gates = model.fit_gates(place.x[fifth], place.y[fifth], verbose=0)
    report = model.calibrate(
        place.x[~fifth], place.y[~fifth], max_accuracy_drop=0.1, verbose=0
    )
    assert found["data"]["samples"] == report.samples == 480
    told = found["fitted"]
    assert told["temperatures"]["samples"] == told["gates"]["samples"] == 120
    np.testing.assert_allclose(
        told["temperatures"]["temperatures"], temperatures.temperatures, rtol=1e-3
    )
    np.testing.assert_allclose(
        told["gates"]["coefficients"], gates.coefficients, rtol=1e-2, atol=1e-3
    )
    saved = load(out)
    assert saved.temperatures == told["temperatures"]["temperatures"]
    assert saved.gates == [*told["gates"]["coefficients"], None]
    assert saved.thresholds == found["calibration"]["point"]["thresholds"]


# ---- evaluate ------------------------------------------------------------------------
def test_evaluate_says_what_staged_inference_does(place, calibrated):
    out, _ = calibrated
    found = answer("evaluate", out, place.data)
    model = load(out)
    early = model.predict_early(place.x, verbose=0)
    right = early.labels == place.y
    assert found["accuracy"] == pytest.approx(right.mean())
    logits, _ = all_logits(model, place.x, verbose=0)
    costs = cost.stage_costs(model)
    shares = [float(np.mean(early.exits == k)) for k in range(3)]
    for index, row in enumerate(found["exits"]):
        there = early.exits == index
        alone = (logits[index].argmax(-1) == place.y).mean()
        taken = float(right[there].mean()) if there.any() else None
        assert row["name"] == model.exit_names[index]
        assert row["share"] == pytest.approx(shares[index])
        assert row["accuracy"] == pytest.approx(alone)
        assert row["accuracy_where_taken"] == (taken and pytest.approx(taken))
    assert found["last_accuracy"] == found["exits"][-1]["accuracy"]
    whole = cost.count_macs(load(place.plain))
    assert found["cost"]["backbone_macs"] == whole
    for name, heads in (("heads_counted", True), ("trunk_only", False)):
        macs = cost.expected_macs(costs, shares, heads=heads)
        assert found["cost"][name]["macs"] == pytest.approx(macs)
        assert found["cost"][name]["of_backbone"] == pytest.approx(macs / whole)
        assert found["cost"][name]["times_less"] == pytest.approx(whole / macs)


def test_evaluate_tries_other_thresholds(place):
    found = answer("evaluate", place.model, place.data, "--thresholds", "never,never")
    assert [row["share"] for row in found["exits"]] == [0, 0, 1]
    assert found["exits"][0]["accuracy_where_taken"] is None
    assert found["accuracy"] == found["last_accuracy"]
    all_leave = answer("evaluate", place.model, place.data, "--thresholds", "0,never")
    assert all_leave["exits"][0]["share"] == 1
    text, _ = run("evaluate", place.model, place.data, "--thresholds", "never,0.5")
    assert "never" in text and "entropy < 0.5 nats" in text and "times less" in text


def test_evaluate_tells_who_leaves_because_exits_agree(place, tmp_path):
    model = load(place.model)
    model.patience, model.thresholds = 2, [None, None]
    model.save(tmp_path / "patient.keras")
    left = float((model.predict_early(place.x, verbose=0).exits == 1).mean())
    found = answer("evaluate", tmp_path / "patient.keras", place.data)
    told = [row["by_agreement"] for row in found["exits"]]
    assert told == [0, pytest.approx(left), 0] and left > 0
    text, _ = run("evaluate", tmp_path / "patient.keras", place.data)
    assert f"exits agree ({100 * left:.2f} %)" in text and "never or" not in text


def test_evaluate_says_where_labels_are_of_another_order(place, tmp_path):
    x = np.concatenate([place.x, place.x])
    last = load(place.model).predict(x, verbose=0)["exit_3"].argmax(-1)
    np.savez(tmp_path / "shifted.npz", x=x, y=(last + 1) % 3)
    _, said = run(
        "evaluate", place.model, tmp_path / "shifted.npz", "--thresholds", "never,0.5"
    )
    assert "no better than guessing" in " ".join(said.split())


def test_evaluate_draws_figures(place, calibrated, tmp_path):
    folder = tmp_path / "new" / "figures"
    found = answer("evaluate", calibrated[0], place.data, "--figures", folder)
    names = ("exit_shares", "exit_histograms", "reliability", "confusion", "cost_stack")
    assert found["figures"] == [str(folder / f"{name}.png") for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{name}.png" for name in names
    )
    for path in folder.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


# ---- export --------------------------------------------------------------------------
def test_export_writes_a_folder_that_the_runner_takes(place, calibrated, tmp_path):
    out, _ = calibrated
    names = tmp_path / "names.txt"
    names.write_text("top\nmiddle\nbottom\n", "utf-8")
    folder = tmp_path / "stages"
    found = answer(
        *("export", out, folder, "--class-names", names),
        *("--data", place.data, "--limit", "100"),
    )
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert found["manifest"]["exits"] == manifest["exits"]
    assert manifest["class_names"] == ["top", "middle", "bottom"]
    assert manifest["self_check"]["data"] == "representative_data"
    given = StageRunner(folder).predict(place.x[:200])
    expected = load(out).predict_early(place.x[:200], verbose=0)
    np.testing.assert_array_equal(given.exits, expected.exits)
    np.testing.assert_array_equal(given.labels, expected.labels)


def test_export_passes_its_options_on(calibrated, tmp_path):
    out, _ = calibrated
    text, _ = run(
        *("export", out, tmp_path / "a", "--format", "saved_model"),
        *("--batch-size", "free"),
    )
    assert "saved_model signatures" in text and "samples of noise" in text


# ---- bench ---------------------------------------------------------------------------
def write_profile(path):
    """What `bench --json` prints, as far as `calibrate` reads it."""
    times = {1: (2.0, 1.0, 4.0), 4: (1.0, 1.0, 2.0)}
    rows = [
        {
            "batch_size": size,
            "stages": [
                {"exit_name": f"exit_{k}", "whole_batch_ms": ms}
                for k, ms in enumerate(row, 1)
            ],
        }
        for size, row in times.items()
    ]
    path.write_text(json.dumps({"batch_sizes": rows}), "utf-8")
    return path


def test_bench_times_both_ways_on_the_same_batches(place, calibrated):
    out, _ = calibrated
    found = answer(
        *("bench", out, place.data, "--seconds", "0.2", "--limit", "210"),
        *("--batch-size", "1", "--batch-size", "50"),
    )
    model = load(out)
    exits = model.predict_early(place.x[:210], verbose=0).exits
    assert [row["batch_size"] for row in found["batch_sizes"]] == [1, 50]
    costs = cost.stage_costs(model)
    whole = cost.count_macs(load(place.plain))
    for row, seen in zip(found["batch_sizes"], (exits, exits[:200]), strict=True):
        size, used = row["batch_size"], len(seen)
        shares = [np.mean(seen == k) for k in range(3)]
        assert row["shares"] == pytest.approx(shares)
        for name in ("plain", "early_exit"):
            times = row[name]
            assert 0 < times["lower"] <= times["median"] <= times["upper"]
        plain, early = (row[x]["us_per_image"] for x in ("plain", "early_exit"))
        assert row["gain"] == pytest.approx(plain / early)
        allowed = whole / cost.expected_macs(costs, shares)
        assert row["gain_macs_allow"] == pytest.approx(allowed)
        reach = [np.sum(seen >= k) / (used / size) for k in range(3)]
        assert [x["samples"] for x in row["stages"]] == pytest.approx(reach)
        parts = sum(x["us_per_image"] for x in row["stages"])
        assert row["between_stages_us_per_image"] == pytest.approx(early - parts)
        assert 0 < row["efficiency"]
        assert row["measurements"] >= 8 and 0 <= row["disturbed"] < row["measurements"]
        assert all(x["whole_batch_ms"] > 0 for x in row["stages"])
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))


def fixed_race(monkeypatch, stage_ms, early_ms):
    """`race` on clocks that are set: plain 10 ms, and what is given."""
    from keras_branchy.cli import race

    def turns(functions, batches, seconds, start):
        taken = np.array([early_ms[(start + r) % len(early_ms)] for r in range(2)])
        return {"plain": np.full(2, 10.0), "early_exit": taken}

    monkeypatch.setattr(race, "take_turns", turns)
    monkeypatch.setattr(race.StageTimes, "__init__", lambda self, *given: None)
    monkeypatch.setattr(race.StageTimes, "measure", lambda self, seconds: None)
    monkeypatch.setattr(race.StageTimes, "of", lambda self, needed: needed * stage_ms)
    monkeypatch.setattr(race.StageTimes, "whole", lambda self: [1.0] * 3)
    return race.race


def test_the_efficiency_is_what_the_stages_take_alone(place, calibrated, monkeypatch):
    """Two samples a batch; t_k(n) = n times 1, 2 and 4 ms."""
    race = fixed_race(monkeypatch, np.array([1.0, 2.0, 4.0]), [5.0, 10.0, 20.0, 500.0])
    model = load(calibrated[0])
    exits = np.array([0, 0, 0, 1, 0, 2, 1, 2])  # alone: 2, 4, 8 and 10 ms
    monkeypatch.setattr("keras_branchy.cli.race.exits_by_rule", lambda *given: exits)
    batches = [place.x[at : at + 2] for at in range(0, 8, 2)]
    row = race(model, {"plain": None, "early_exit": None}, batches, None, 1.0)
    # The last batch of 500 ms was disturbed: 2 of 8 rounds.
    assert (row["measurements"], row["disturbed"]) == (8, 2)
    assert row["efficiency"] == pytest.approx(0.4)  # the median of 2/5, 4/10 and 8/20
    early = (5 + 10 + 20) / 3
    assert row["early_exit"]["us_per_image"] == pytest.approx(early * 500)
    assert row["gain"] == pytest.approx(10 / early)
    parts = [part["us_per_image"] for part in row["stages"]]
    assert parts == pytest.approx([1000, 1000 * 2 * 2 / 3 / 2, 1000 * 4 / 3 / 2])
    rest = early * 500 - sum(parts)
    assert row["between_stages_us_per_image"] == pytest.approx(rest)
    assert row["shares"] == pytest.approx([0.5, 0.25, 0.25])


def test_stages_are_timed_at_the_numbers_of_samples_that_reach_them(place, calibrated):
    from keras_branchy.cli.stage_times import StageTimes, reaching

    exits = np.array([0, 0, 1, 2, 0, 1, 1, 2, 2, 0])
    needed = reaching(exits, 4, 3)
    np.testing.assert_array_equal(needed, [[4, 2, 1], [4, 3, 1]])
    times = StageTimes(load(calibrated[0]), place.x[:4], needed)
    assert times.sizes == [[4], [2, 3, 4], [1, 4]]
    times.measure(0.0)
    taken = np.median(times._taken, axis=0)
    assert taken.shape == (6,) and (taken > 0).all()
    found = times.of(np.array([[4, 2, 0], [4, 4, 1], [2, 1, 4]]))
    expected = [
        [taken[0], taken[1], 0],
        [taken[0], taken[3], taken[4]],
        [taken[0] / 2, taken[1] / 2, taken[5]],
    ]
    np.testing.assert_allclose(found, expected)
    assert times.whole() == pytest.approx([taken[0], taken[3], taken[5]])


@pytest.fixture(scope="module")
def raced(place, calibrated):
    """What `bench` would time, found to answer rightly."""
    from keras_branchy.cli import timing

    model, batches = load(calibrated[0]), timing.batches(place.x[:100], 50)
    made = timing.contestants(model, batches[0])
    logits = np.stack(all_logits(model, place.x[:100], verbose=0)[0])
    timing.check(model, made, batches, logits)
    return model, batches, made, logits


@pytest.mark.parametrize(
    "who, spoil, what",
    [
        (
            "early_exit",
            lambda a: a | {"probabilities": a["probabilities"][:, ::-1]},
            "probabilities",
        ),
        ("early_exit", lambda a: a | {"labels": (a["labels"] + 1) % CLASSES}, "labels"),
        (
            "early_exit",
            lambda a: a | {"exits": a["exits"] * 0 + 2},
            "probabilities, labels, exits",
        ),
        (
            "plain",
            lambda a: a | {"probabilities": np.roll(a["probabilities"], 1, -1)},
            "plain backbone",
        ),
    ],
)
def test_nothing_is_timed_that_answers_wrongly(raced, who, spoil, what):
    from keras_branchy.cli import timing

    model, batches, made, logits = raced
    spoilt = {**made, who: lambda x: spoil(made[who](x))}
    with pytest.raises(RuntimeError, match=f"disagree in {what}, so nothing was timed"):
        timing.check(model, spoilt, batches, logits)


def test_bench_checks_answers_first(place, calibrated, monkeypatch):
    from keras_branchy.cli import timing

    def wrong(*given):
        raise RuntimeError("disagree")

    monkeypatch.setattr(timing, "check", wrong)
    monkeypatch.setattr(timing, "take_turns", None)
    run("bench", calibrated[0], place.data, "--batch-size", "50", code=1)


@pytest.mark.parametrize("setting", ["temperatures", "ensemble"])
def test_the_plain_backbone_knows_no_temperature_and_no_ensemble(place, setting):
    from keras_branchy.cli import timing

    model = load(place.model)
    setattr(model, setting, {"temperatures": [1.0, 2.0, 3.0], "ensemble": True}[setting])
    model.thresholds = [0.5, 0.5]
    batches = timing.batches(place.x[:50], 50)
    logits = np.stack(all_logits(model, place.x[:50], verbose=0)[0])
    timing.check(model, timing.contestants(model, batches[0]), batches, logits)


# ---- doctor, and the whole -----------------------------------------------------------
def test_doctor_says_what_is_here(monkeypatch):
    import tensorflow as tf

    monkeypatch.setenv("TFDS_DATA_DIR", "somewhere")
    found = answer("doctor")
    assert found["versions"]["tensorflow"] == tf.__version__
    assert found["versions"]["keras"] == keras.__version__
    assert found["versions"]["keras-branchy"] == __version__
    assert found["keras_backend"] == "tensorflow" and found["staged_inference"]
    assert found["exit_gate"]["mode"] == "off"  # in tests, if not said otherwise
    assert found["step"] == {"native": False, "cause": "KERAS_BRANCHY_CUSTOM_OPS=off"}
    assert found["tfds_data_dir"] == "somewhere"
    text, _ = run("doctor")
    assert "reference, in plain TensorFlow" in text or "native op" in text
    assert "KERAS_BRANCHY_CUSTOM_OPS" in text and "Runtimes for exported stages" in text
    assert "NumPy: KERAS_BRANCHY_CUSTOM_OPS=off" in text


def test_extras_that_lack_something_are_told(monkeypatch):
    from keras_branchy.cli import machine

    wanted = ['typer>=0.29; extra == "cli"', 'no-such-package; extra == "cli"']
    wanted += ['numpy>=2; extra == "plots"', "keras>=3", 'pytest; extra == "test"']
    monkeypatch.setattr(machine, "requires", lambda name: wanted)
    found = answer("doctor")["extras"]
    assert set(found) == {"cli", "plots"}
    assert not found["cli"]["installed"] and found["plots"]["installed"]
    assert found["cli"]["packages"]["no-such-package"] is None
    assert "lacks no-such-package" in run("doctor")[0]


def test_a_switch_that_is_wrong_is_a_mistake(monkeypatch):
    monkeypatch.setenv("KERAS_BRANCHY_CUSTOM_OPS", "yes")
    told = answer("doctor", code=1)["error"]
    assert told["type"] == "ValueError"
    assert "must be 'auto', 'on' or 'off'" in told["message"]


def test_the_process_prints_json_only_on_stdout(place, calibrated):
    done = subprocess.run(
        [sys.executable, "-m", "keras_branchy.cli", "evaluate", str(calibrated[0])]
        + [str(place.data), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["data"]["samples"] == 600
    # TensorFlow's start-up is not the user's business.
    assert "oneDNN" not in done.stderr and "cuInit" not in done.stderr


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "command", ["inspect", "calibrate", "evaluate", "export", "bench", "doctor"]
)
def test_help_fits_the_terminal(command, width):
    text, _ = run(command, "--help", width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "--json" in text and "…" not in text


def test_tables_fit_80_columns(place, calibrated):
    out, _ = calibrated
    for arguments in (
        ("inspect", place.plain),
        ("inspect", out),
        ("evaluate", out, place.data),
        ("calibrate", place.model, place.data, "--max-accuracy-drop", "0.01"),
        ("bench", out, place.data, "--seconds", "0.1", "--limit", "50"),
    ):
        text, _ = run(*arguments, width=80)
        lines = [line for line in text.splitlines() if "BranchyModel(" not in line]
        assert max(map(len, lines)) <= 80
        assert text.count("exit_1") <= 3 and "exit_1\n" not in text  # no folded row
