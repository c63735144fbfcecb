# SPDX-License-Identifier: Apache-2.0
"""benchmarks/inference.py: figures that are what they say, and answers that are right."""

import json
import os
import subprocess
import sys
import time
from itertools import product
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from project import ROOT

sys.path += [str(ROOT), str(ROOT / "examples")]

from benchmarks.speed import (  # noqa: E402
    cell,
    check,
    contestants,
    document,
    graph_spec,
    networks,
    pages,
    rows,
    run,
    settings,
    stage_contestants,
    starts,
    streaming,
    team,
)
from keras_branchy import BranchyModel, ExitBranch  # noqa: E402
from keras_branchy import networks as published  # noqa: E402

SCRIPT = ROOT / "benchmarks" / "inference.py"
BATCH = 4


def small():
    inputs = keras.Input((6, 6, 1), name="image")
    x = keras.layers.Conv2D(3, 3, activation="relu", name="tap")(inputs)
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(5, activation="softmax")(x)
    return BranchyModel(keras.Model(inputs, outputs), {"tap": ExitBranch(5)})


def entropy(logits):
    """In float64, apart from the library's."""
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -(p * np.log(p)).sum(-1)


@pytest.fixture
def answers(rng):
    logits = rng.normal(0, 3, (3, 40, 5)).astype(np.float32)
    plain = np.exp(logits[-1]) / np.exp(logits[-1]).sum(-1, keepdims=True)
    return settings.Answers(logits, plain, ["entropy", "entropy"], np.arange(40) % 5)


# ---- Who leaves ----------------------------------------------------------------------
@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.95, 1])
def test_swept_thresholds_let_exactly_the_share_leave_at_exit_1(answers, share):
    thresholds = answers.swept(share, 40)
    first, second = (entropy(answers.logits[k]) < thresholds[k] for k in (0, 1))
    assert first.sum() == round(40 * share)
    assert not second.any() and np.isfinite(thresholds).all()
    expected = np.where(first, 0, 2)
    np.testing.assert_array_equal(answers.exits(thresholds, 40), expected)


def test_criteria_that_exit_above_are_swept_from_the_other_side(rng):
    logits = rng.normal(0, 3, (2, 20, 5)).astype(np.float32)
    given = settings.Answers(logits, None, ["max_probability"])
    (limit,) = given.swept(0.25, 20)
    z = np.exp(logits[0].astype(np.float64))
    assert ((z.max(-1) / z.sum(-1)) >= limit).sum() == 5


def test_answers_are_checked_where_they_are_clear(answers):
    thresholds = answers.swept(0.5, 40)
    exits = answers.exits(thresholds, 40)
    labels = answers.logits[exits, np.arange(40)].argmax(-1)
    answers.check("it", labels, exits, thresholds)
    top = np.sort(answers.logits[exits, np.arange(40)], -1)
    clear = int((top[:, -1] - top[:, -2]).argmax())
    wrong = labels.copy()
    wrong[clear] += 1
    with pytest.raises(RuntimeError, match=r"it gives other labels than Keras for 1 of 40"):
        answers.check("it", wrong, exits, thresholds)
    moved = exits.copy()
    moved[np.abs(answers.scores[0] - thresholds[0]).argmax()] ^= 2
    with pytest.raises(RuntimeError, match="gives other exits than Keras"):
        answers.check("it", labels, moved, thresholds)


def test_a_score_beside_its_threshold_may_fall_on_either_side(answers):
    limit = float(answers.scores[0][7]) + 1e-6
    thresholds = (limit, answers.hardly(1))
    exits = answers.exits(thresholds, 40)
    assert exits[7] == 0
    exits[7] = 2
    labels = answers.logits[exits, np.arange(40)].argmax(-1)
    answers.check("it", labels, exits, thresholds)


def test_counts_are_of_who_reaches_a_stage():
    exits = np.array([0, 2, 1, 0, 0, 0])
    np.testing.assert_array_equal(settings.counts(exits, 3, 3), [[3, 2, 1], [3, 0, 0]])


# ---- From seconds to rows ------------------------------------------------------------
def measured():
    """A cell of two batches of four, three rounds, whose figures are known by hand."""
    setting = settings.Setting("0.5", (1.0,), 2)
    found = cell.Cell(BATCH, 1, [setting], rounds=3)
    found.taken["tensorflow", None] = [[8e-3, 8e-3], [8e-3, 8e-3], [8e-1, 8e-3]]
    found.taken["litert", None] = [[4e-3, 4e-3]] * 3
    found.taken["predict_early", "0.5"] = [[2e-3, 4e-3], [2e-3, 4e-3], [2e-3, 4e-1]]
    found.taken["stage_runner, stream", "0.5"] = [[6e-3]] * 3
    exits = np.array([0, 0, 0, 0, 1, 1, 1, 0])
    for kind in ("predict_early", "stage_runner, stream"):
        found.exits[kind, "0.5"] = exits
        found.labels[kind, "0.5"] = exits
        found.peaks[kind, "0.5"] = 1.0
    found.peaks["tensorflow", None] = found.peaks["litert", None] = 2.0
    # Stage 1 takes 1.5 ms for four; stage 2 for one 0.4 ms, for four 2 ms.
    found.stages = {
        (0, 4, "stages in litert", "whole"): [1.5e-3] * 3,
        (0, 4, "stages in tensorflow", "whole"): [3e-3] * 3,
        (1, 1, "stages in litert", "whole"): [4e-4] * 3,
        (1, 4, "stages in litert", "whole"): [2e-3] * 3,
    }
    return found


INFO = {
    "exit_names": ["exit_1", "exit_2"],
    "criteria": ["entropy"],
    "macs_to_leave": [20, 120],
    "plain_macs": 100,
    "thresholds": None,
}


def made(found=None):
    given = found or measured()
    everything = rows.Rows("small", INFO, given, SimpleNamespace(), {"tensorflow": 12.3})
    return {row["runtime"]: row for row in everything.all()}


def test_rows_hold_what_the_issue_names():
    wanted = {
        *("network", "runtime", "ours", "plain", "batch", "threads", "shares", "accuracy"),
        *("us_per_image", "spread", "gain_same_runtime", "gain_fastest_plain"),
        *("efficiency", "peak_mib", "time_to_first_answer_ms", "mac_limit"),
    }
    assert wanted <= set(made()["predict_early"])


def test_times_are_medians_over_rounds_and_then_means_over_batches():
    found = made()
    assert found["tensorflow"]["us_per_image"] == pytest.approx(2000)
    assert found["predict_early"]["us_per_image"] == pytest.approx((2 + 4) / 2 / 4 * 1e3)
    # A stream's one figure is of both batches.
    assert found["stage_runner, stream"]["us_per_image"] == pytest.approx(750)


def test_gains_are_over_the_same_runtime_and_over_the_fastest():
    row = made()["predict_early"]
    assert row["gain_same_runtime"] == pytest.approx(8 / 3, rel=1e-4)
    assert row["gain_fastest_plain"] == pytest.approx(4 / 3, rel=1e-4)
    assert row["fastest_plain"] == "litert"
    assert row["ours"] and not row["plain"] and made()["litert"]["plain"]


def test_efficiency_is_of_the_stages_alone_at_what_reached_them():
    row = made()["predict_early"]
    # Batch 1: 1.5 of 2 ms. Batch 2: three reach stage 2, for which one at a time is the
    # faster way, 1.2 ms: 2.7 of 4 ms.
    four = min(2.0, 4 * 0.4)
    three = 0.4 + (four - 0.4) * 2 / 3
    expected = np.median([1.5 / 2, (1.5 + three) / 4])
    assert row["efficiency"] == pytest.approx(expected, rel=1e-4)
    low, high = row["efficiency_interval"]
    assert low <= row["efficiency"] <= high


def test_the_limit_of_multiplications_counts_heads():
    assert made()["predict_early"]["shares"] == [0.625, 0.375]
    expected = 100 / (0.625 * 20 + 0.375 * 120)
    assert made()["predict_early"]["mac_limit"] == pytest.approx(expected, rel=1e-4)


def test_an_interval_covers_what_rounds_differ_by():
    values = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02, 0.98])
    low, high = rows.interval(lambda picked: float(np.median(values[picked])), len(values))
    assert 0.9 <= low < 1.0 < high <= 1.1
    assert rows.interval(lambda picked: 2.0, 1) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("batch", "cost", "batches"),
    [
        (32, 2.5e-3, 12),  # 30 ms, though the time is short
        (8, 2e-4, 40),  # all of a share's 320 images
        (256, 5e-2, 1),  # long enough alone
        (32, 1e-4, 20),  # time enough for all 640
    ],
)
def test_a_runtime_has_its_turn_for_long_enough_to_be_warm(
    monkeypatch, batch, cost, batches
):
    one = cell.Measurement.__new__(cell.Measurement)
    logits = np.zeros((2, 4096, 10))
    one.answers = SimpleNamespace(logits=logits, swept=lambda *given: [1.0])
    one.batch, one.seconds, one.info, one.cell = batch, 0.7, INFO, SimpleNamespace()
    one.plain, one.staged = ["tensorflow", "litert"], ["predict_early", "stage_runner"]
    monkeypatch.setattr(one, "cost", lambda kind, thresholds: cost, raising=False)
    chosen = []
    monkeypatch.setattr(settings, "settings", lambda *given: chosen.append(given[-2:]))
    one.choose()
    assert chosen == [(batches, batches)]


def test_slow_ways_are_dropped_after_a_round():
    one = cell.Measurement.__new__(cell.Measurement)
    one.cell = measured()
    one.stage_runs = [(kind, k, n, way) for k, n, kind, way in one.cell.stages]
    one.drop_slow_ways()
    kept = {(kind, k, n) for kind, k, n, _ in one.stage_runs}
    assert ("stages in tensorflow", 0, 4) not in kept and len(kept) == 3


def test_a_grid_holds_the_first_and_the_last_number():
    assert cell.grid(np.array([1, 5, 9])) == [1, 5, 9]
    many = cell.grid(np.arange(3, 200))
    assert many[0] == 3 and many[-1] == 199 and len(many) == cell.GRID


def test_ways_of_a_stage_depend_on_the_threads():
    ways = stage_contestants.ways
    assert ways("stages in tensorflow", 64, 2) == ["whole"]
    assert ways("stages in litert", 64, 1) == ["whole"]
    assert ways("stages in litert", 1, 2) == ["whole", "serial"]
    assert ways("stages in litert", 4, 2) == ["whole", "serial", "split"]
    assert ways("stages in litert", 64, 2) == ["whole", "split"]


def test_the_first_stage_alone_reads_other_images_at_each_call():
    stages = stage_contestants._Stages()
    stages.images, stages.inputs = np.arange(10.0), ["image"]
    stages.tensors = {"relu": np.arange(4.0), "image": stages.images[:4]}

    def starts(count, calls):
        given = stages.reads(0, count)
        rows = [next(given)["image"] for _ in range(calls)]
        assert {len(x) for x in rows} == {count}
        return [x[0] for x in rows]

    assert starts(4, 3) == [0, 4, 0]
    assert starts(10, 2) == [0, 0]
    stages.images = np.arange(100.0)
    assert starts(2, 17) == [*range(0, 32, 2), 0]
    parts = stage_contestants.between(stages.reads(0, 4), 1, 3)
    assert [next(parts)["image"].tolist() for _ in range(2)] == [[1, 2], [5, 6]]
    later = stages.reads(1, 3)
    assert all(next(later)["relu"].tolist() == [0, 1, 2] for _ in range(3))


# ---- Networks ------------------------------------------------------------------------
def test_an_untrained_network_is_refused_with_the_command(tmp_path):
    with pytest.raises(networks.NotTrainedError, match="reproduce.py lenet --seeds 0"):
        networks.files(networks.NETWORKS["b_lenet"], tmp_path)


def test_recipes_are_named_as_their_trainings():
    from benchmarks.reproduction import networks as recipes

    for network in networks.NETWORKS.values():
        if network.trained:
            recipe = getattr(recipes, network.recipe)
            assert networks.base_name(network) == recipe.name
            assert networks.data_name(network) == recipe.data


def test_heavy_networks_run_large_batches_on_all_threads_only():
    heavy, light = networks.NETWORKS["b_resnet110"], networks.NETWORKS["b_lenet"]
    assert not run.takes_part(heavy, 1024, 1, 2) and run.takes_part(heavy, 1024, 2, 2)
    assert run.takes_part(heavy, 32, 1, 2) and run.takes_part(light, 1024, 1, 2)


def test_pytorch_that_is_absent_is_said_in_a_row(tmp_path):
    torch = team.Torch(tmp_path)
    assert "there is no PyTorch" in torch.absent
    (row,) = run.absent(networks.NETWORKS["b_lenet"], torch, 8, 1)
    assert row["runtime"] == "torch" and row["absent"] == torch.absent
    kinds = run.kinds_of(networks.NETWORKS["b_lenet"], torch)
    assert not [kind for kind in kinds if kind.startswith("torch")]
    assert "torch is not among them" in run.summary([row])


def run_of(tmp_path, **given):
    empty = {"names": [], "batches": [8, 1024], "threads": [1, 2], "seconds": 1.0}
    given = {**empty, "store": tmp_path, "work": tmp_path, **given}
    return run.Run(torch=team.Torch(tmp_path), **given)


def test_a_cell_that_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch):
    folder = tmp_path / "b_lenet"
    folder.mkdir()
    info = {"criteria": ["entropy"], "source": "", "exit_names": []}
    (folder / "info.json").write_text(json.dumps(info), "utf-8")

    class Nobody:
        first = {}

        def __init__(self, *given):
            pass

        __enter__ = __exit__ = lambda self, *_: self if not _ else None

    def measure(self):
        if self.batch == 8:
            raise team.WorkerError("litert: its process ended with code 9")
        return cell.Cell(self.batch, 1)

    monkeypatch.setattr(run, "Team", Nobody)
    monkeypatch.setattr(run, "answers_of", lambda *_: None)
    monkeypatch.setattr(cell.Measurement, "run", measure)
    monkeypatch.setattr(
        cell.Measurement, "__init__", lambda self, *given: setattr(self, "batch", given[3])
    )
    one = run_of(tmp_path, names=["b_lenet"])
    one.measure_network(networks.NETWORKS["b_lenet"], folder, [8, 1024], 1)
    missing = {(m["batch"], m["threads"]): m["why"] for m in one.assembled()["missing"]}
    assert missing[8, 1] == "litert: its process ended with code 9"
    assert (1024, 1) not in missing
    assert missing[8, 2] == "not measured with this engine"


# ---- Graphs for PyTorch --------------------------------------------------------------
def test_a_graph_is_written_out_step_by_step():
    spec = graph_spec.spec_of(small().stages()[0].model)
    steps = ["conv", "activation", "max_pool", "flatten", "dense"]
    assert [step["op"] for step in spec["steps"]] == steps
    assert set(spec["outputs"]) == {"logits", "tap"} and set(spec["inputs"]) == {"image"}
    shapes = [np.shape(step["kernel"]) for step in spec["steps"] if "kernel" in step]
    assert shapes == [(3, 3, 1, 3), (48, 5)]


@pytest.mark.parametrize("build", [published.b_lenet, published.b_alexnet, networks.lenet])
def test_the_published_networks_can_be_written_out(build):
    model = build()
    assert graph_spec.spec_of(networks.plain_of(model))["steps"]
    for stage in model.stages():
        spec = graph_spec.spec_of(stage.model)
        assert set(spec["outputs"]) == {"logits", *stage.output_names}


def test_an_operation_without_a_counterpart_is_named():
    inputs = keras.Input((4, 4, 2))
    outputs = keras.layers.UpSampling2D(name="larger")(inputs)
    with pytest.raises(graph_spec.UnknownOperationError, match="'larger', a UpSampling2D"):
        graph_spec.spec_of(keras.Model(inputs, outputs))
    outputs = keras.layers.Dense(2, activation="gelu", name="curved")(inputs)
    with pytest.raises(graph_spec.UnknownOperationError, match="'gelu' of 'curved'"):
        graph_spec.spec_of(keras.Model(inputs, outputs))
    outputs = keras.layers.ReLU(max_value=1.0, name="capped")(inputs)
    with pytest.raises(graph_spec.UnknownOperationError, match="'capped'"):
        graph_spec.spec_of(keras.Model(inputs, outputs))


# ---- The check -----------------------------------------------------------------------
def row_with(gain, runtime="predict_early", setting="0.5", **more):
    edges = [0.98 * gain, 1.02 * gain]
    row = {"network": "b_lenet", "runtime": runtime, "ours": True, "batch": 32}
    row |= {"threads": 1, "setting": setting, "gain_interval": edges}
    return {**row, "gain_same_runtime": gain, "efficiency_interval": [0.9, 0.95], **more}


def test_a_ratio_is_worse_only_beyond_both_intervals():
    committed = [row_with(2.0)]
    assert check.conclusion(check.compare(committed, [row_with(1.97)])) == (
        "2 ratios, none worse, 0 better.",
        True,
    )
    told, fine = check.conclusion(check.compare(committed, [row_with(1.5)]))
    assert not fine and told == "1 of 2 ratios are worse than the committed ones."
    told, fine = check.conclusion(check.compare(committed, [row_with(3.0)]))
    assert fine and "1 better" in told


def test_what_seems_worse_is_named():
    committed = [row_with(2.0), row_with(2.0, batch=256)]
    found = check.compare(committed, [row_with(1.5), row_with(2.0, batch=256)])
    assert check.seem_worse(found) == [(32, 1)] and len(found) == 4


class Script:
    """benchmarks/inference.py, with given gains of a batch size start by start."""

    def __init__(self, monkeypatch, tmp_path, gains):
        monkeypatch.setattr(sys, "path", [*sys.path])  # which the script changes
        from benchmarks import inference

        self.gains, self.measured = gains, []
        monkeypatch.setattr(run.Run, "measure", lambda one: self.measure(one))
        monkeypatch.setattr(check, "network", lambda store: "b_lenet")
        self.path = tmp_path / "committed.json"
        args = ["inference.py", "--check", str(self.path), "--work", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", args)
        self.act = lambda: inference.act(inference.parse_args())
        folder = tmp_path / "check" / "b_lenet"
        folder.mkdir(parents=True)
        (folder / "info.json").write_text('{"source": ""}', "utf-8")

    def commit(self, *rows):
        document.write(self.path, {"made_with": {"processor": ""}, "rows": list(rows)})

    def measure(self, one):
        folder = one.work / "b_lenet"
        for start in range(one.starts):
            for batch, threads in product(one.batches, one.threads):
                path = one.path(folder, batch, threads, start)
                if not path.exists():
                    self.measured.append((batch, threads, start))
                    gain = self.gains[batch][start]
                    more = {"batch": batch, "threads": threads, "us_per_image": 1 / gain}
                    row = row_with(gain, **more, spread=0.0, peak_mib=1.0, rounds=1)
                    document.write(path, {"rows": [row], "stages": []})


@pytest.mark.parametrize(
    ("gains", "again", "code"),
    [
        ([2.0, 2.0], [], 0),
        ([1.5, 2.0], [], 0),  # what differs from start to start is noise
        ([1.5, 1.6, 1.99], [2], 0),
        ([1.5, 1.6, 1.4, 2.01], [2, 3], 0),
        ([1.5, 1.6, 1.4, 1.5], [2, 3], 1),
    ],
)
def test_what_seems_worse_is_measured_up_to_twice_more(
    tmp_path, monkeypatch, capsys, gains, again, code
):
    script = Script(monkeypatch, tmp_path, {32: gains, 256: [2.0] * 4})
    places = list(product((32, 256), (1, 2)))
    script.commit(*(row_with(2.0, batch=b, threads=t) for b, t in places))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert script.act() == code
    extra = [place for place in script.measured if place[2] > 1]
    assert extra == [(32, threads, start) for start in again for threads in (1, 2)]
    assert len(script.measured) - len(extra) == 8
    told = capsys.readouterr().out
    assert ("none worse" in told) == (code == 0)


# ---- Several starts ------------------------------------------------------------------
def test_figures_of_several_starts_are_their_medians():
    parts = [
        {
            "rows": [
                row_with(gain, us_per_image=us, spread=us / 10, peak_mib=peak, rounds=5),
                {"network": "b_lenet", "runtime": "torch", "absent": "not here"},
            ],
            "stages": [
                {"network": "b_lenet", "batch": 32, "threads": 1, "stage": 1}
                | {"samples": 32, "us": us, "way": way}
            ],
        }
        for gain, us, peak, way in (
            (2.0, 30.0, 7.0, "split"),
            (1.0, 50.0, 6.0, "serial"),
            (3.0, 40.0, 5.0, "whole"),
        )
    ]
    found = starts.merged(parts)
    row, absent = found["rows"]
    assert absent == parts[0]["rows"][1]
    assert (row["us_per_image"], row["gain_same_runtime"]) == (40.0, 2.0)
    assert row["gain_interval"] == pytest.approx([0.98, 3.06])
    assert row["us_of_starts"] == [30.0, 50.0] and row["starts"] == 3
    assert row["peak_mib"] == 5.0 and row["rounds"] == 15 and row["spread"] == 4.0
    (stage,) = found["stages"]
    assert stage["us"] == 40.0 and stage["way"] == "whole"


def test_cells_of_several_calls_are_put_together(tmp_path, monkeypatch):
    script = Script(monkeypatch, tmp_path, {8: [1.0, 3.0], 1024: [5.0, 5.0]})
    given = {"names": ["b_lenet"], "threads": [1], "work": tmp_path / "check"}
    for count in (1, 2):
        run_of(tmp_path, **given | {"batches": [8], "starts": count}).measure()
    assert script.measured == [(8, 1, 0), (8, 1, 1)]
    run_of(tmp_path, **given | {"batches": [1024]}).measure()
    whole = run_of(tmp_path, **given | {"batches": [8, 32, 1024], "starts": 2}).assembled()
    gains = {row["batch"]: row["gain_same_runtime"] for row in whole["rows"]}
    assert gains == {8: 2.0, 1024: 5.0}
    assert [row["batch"] for row in whole["missing"]] == [32]


def test_only_our_swept_rows_are_compared():
    others = [
        row_with(2.0, setting="calibrated"),
        row_with(2.0, ours=False),
        row_with(2.0, network="b_alexnet"),
    ]
    found = check.compare(others, others)
    assert found == [] and not check.conclusion(found)[1]
    untrained = row_with(2.0, network="b_lenet_untrained")
    assert len(check.compare([row_with(2.0)], [untrained])) == 2


def test_the_table_of_the_check_is_readable():
    lines = check.table(check.compare([row_with(2.0)], [row_with(1.5)])).splitlines()
    assert lines[0].split()[:3] == ["runtime", "batch", "threads"]
    assert lines[1].endswith("WORSE") and "gain_same_runtime" in lines[1]


def test_a_check_without_a_file_says_how_to_make_one(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check", str(tmp_path / "no.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "nothing to compare with" in done.stderr


# ---- Pages ---------------------------------------------------------------------------
def points(*pairs):
    return [{"shares": [share, 1 - share], "gain": gain} for share, gain in pairs]


def test_the_break_even_share_is_where_time_crosses():
    assert pages.crossing(points((0, 1.1), (1, 2)), "gain") == "any"
    assert pages.crossing(points((0, 0.5), (1, 0.9)), "gain") == "none"
    # Times 1.25 at none, 0.75 at all: 1 in the middle.
    assert pages.crossing(points((0, 0.8), (1, 1 / 0.75)), "gain") == "50 %"
    assert pages.crossing([], "gain") == ""


def test_pages_say_when_there_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "PATH", tmp_path / "inference.json")
    assert pages.regions()["inference_real"]().startswith("Not run yet")


def test_pages_and_figures_come_from_the_file(tmp_path, monkeypatch):
    from benchmarks.speed import figures

    found = list(made().values())
    whole = {
        "made_with": {
            **{"command": "c", "date": "2026-01-01", "cores": 2, "processor": "p"},
            **{"python": "3", "versions": {"keras": "3"}},
        },
        "networks": {"small": {}},
        "rows": found,
        "stages": [],
        "missing": [{"network": "small", "batch": 8, "threads": 1, "why": "late"}],
    }
    path = tmp_path / "inference.json"
    document.write(path, whole)
    assert json.loads(path.read_text("utf-8")) == whole
    monkeypatch.setattr(pages, "PATH", path)
    written = {name: write() for name, write in pages.regions().items()}
    assert "(late): small at batch 8" in written["inference_setting"]
    assert "| `tensorflow` | 2,000 |" in written["inference_runtimes"]
    efficiency = found[2]["efficiency"]
    assert f"| {efficiency:.2f} | 0.5 (predict_early) |" in written["inference_efficiency"]
    assert "Not run yet" in written["inference_streaming"]
    # The figures have panels for some batch sizes only.
    rows_of = {size: [{**row, "batch": size} for row in found] for size in (32, 256)}
    drawn = figures.draw({**whole, "rows": rows_of[32] + rows_of[256]}, tmp_path)
    assert [path.name for path in drawn] == ["gain_small.png", "time_small.png"]
    # A line along the batch sizes needs two.
    drawn = figures.draw({**whole, "rows": rows_of[32]}, tmp_path)
    assert [path.name for path in drawn] == ["gain_small.png"]


# ---- Streams -------------------------------------------------------------------------
class Known:
    """A stand-in for a model: answers by what is written in the first pixel."""

    def __init__(self, swap=False):
        self.swap = swap

    def stream_early(self, data):
        for x in data:
            values = np.asarray(x)[:, 0, 0, 0].astype(np.int64)
            labels = values[::-1] if self.swap else values
            yield SimpleNamespace(labels=labels, exits=labels % 2)

    def predict_early(self, x, batch_size, verbose):
        time.sleep(len(x) * 1e-4)


@pytest.mark.parametrize("swap", [False, True])
def test_a_stream_out_of_order_is_noticed(swap):
    pool = np.zeros((30, 2, 2, 1), np.float32)
    pool[:, 0, 0, 0] = values = np.arange(30) % 10
    known = values.astype(np.int64), values.astype(np.int64) % 2
    model = Known(swap)
    found = streaming.stream(model, pool, known, 100, 8, streaming.Singles(model, pool))
    assert found["images"] == 104
    assert (found["checksum"] == found["expected_checksum"]) is not swap
    assert (found["labels_that_differ"] == 0) is not swap


def test_single_batches_are_as_fast_as_they_are():
    singles = streaming.Singles(Known(), np.zeros((300, 2, 2, 1), np.float32))
    for turn in range(3):
        singles.take(turn)
    assert set(singles.rates()) == {32, 256} and len(singles.taken[32]) == 3
    # By the clock of `sleep`, which is never early.
    assert all(0 < rate < 1e4 for rate in singles.rates().values())


def test_memory_is_judged_after_the_start():
    found = streaming.flatness([1.0, *[50.0] * 19])
    assert (found["rss_mib_early"], found["rss_mib_late"]) == (50.0, 50.0)


# ---- Processes -----------------------------------------------------------------------
def test_a_runtime_that_fails_says_why(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((2, 6, 6, 1), np.float32))
    with pytest.raises(team.WorkerError, match=r"litert: [\s\S]*plain_1.tflite"):
        team.Team(tmp_path, ["litert"], 1, 1, team.Torch(), tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network's folder, without the files that take long to export."""
    from benchmarks.speed import prepare

    keras.utils.set_random_seed(0)
    place, model = tmp_path_factory.mktemp("small"), small()
    images = np.random.default_rng(0).random((40, 6, 6, 1), np.float32)
    plain = networks.plain_of(model)
    plain.save(place / "plain.keras")
    model.save(place / "branchy.keras")
    np.save(place / "images.npy", images)
    prepare.answers(plain, model, images, place)
    info = {"thresholds": None, **prepare.described(model)}
    (place / "info.json").write_text(json.dumps(info), "utf-8")
    return place


def test_contestants_answer_as_keras_does(folder):
    info = json.loads((folder / "info.json").read_text("utf-8"))
    answers = run.answers_of(folder, info)
    images = np.load(folder / "images.npy")
    thresholds = answers.swept(0.5, 40)
    for kind in ("tensorflow", "predict_early", "early_exit"):
        one = loaded_here(kind, folder)
        one.open(40)
        one.set_thresholds(thresholds)
        labels, exits = one.run(images)
        answers.check(kind, labels, exits, thresholds)
        assert (exits is None) == (kind == "tensorflow")


def loaded_here(kind, folder):
    """A contestant in this process, where threads cannot be set any more."""
    import tensorflow as tf

    one = contestants.kinds()[kind].__new__(contestants.kinds()[kind])
    one.folder, one.threads, one.tf = folder, 1, tf
    one.model = keras.models.load_model(folder / one.name, compile=False)
    one.shape = one.model.inputs[0].shape[1:]
    return one


@pytest.mark.long
def test_a_cell_from_end_to_end(tmp_path):
    """Every runtime but PyTorch in its process, on B-LeNet as it starts."""
    report = tmp_path / "inference.json"
    common = [sys.executable, str(SCRIPT), "--work", str(tmp_path / "work")]
    command = [*common, "--quick", "--batches", "32", "--threads", "1"]
    command += ["--networks", networks.UNTRAINED.name]
    subprocess.run([*command, "--json", str(report)], check=True)
    found = json.loads(report.read_text("utf-8"))
    ours = [row for row in found["rows"] if row.get("ours")]
    assert {row["setting"] for row in ours} == {"0", "0.25", "0.5", "0.75", "0.95", "1"}
    for row in ours:
        assert row["shares"][0] == pytest.approx(float(row["setting"]), abs=0.02)
        assert row["us_per_image"] > 0 and row["efficiency"] > 0
