# SPDX-License-Identifier: Apache-2.0
"""`make gpu-check` without a GPU: planning, resuming, limits, arithmetic, reports."""

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import types

import numpy as np
import pytest
from project import ROOT

FOLDER = ROOT / "benchmarks" / "gpu"


def load(name):
    """A file of the check; they import one another from their folder."""
    if name in sys.modules:
        return sys.modules[name]
    sys.path.append(str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


gpu_rows, gpu_plan, gpu_report = map(load, ("gpu_rows", "gpu_plan", "gpu_report"))
kernel_grid, kernel_counters = load("kernel_grid"), load("kernel_counters")
counting, staged_sweep = load("staged_counting"), load("staged_sweep")
staged_profile, staged_energy = load("staged_profile"), load("staged_energy")
staged_layers = load("staged_layers")
spec = importlib.util.spec_from_file_location("gpu_check", FOLDER / "check.py")
sys.path.append(str(FOLDER))
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)
parity, kernel_time = load("parity_tensorflow"), load("kernel_time")
kernel_native = load("kernel_native")
sys.path.remove(str(FOLDER))

spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


# ---- The plan ------------------------------------------------------------------------
def test_every_part_has_a_program_that_exists_and_a_limit():
    parts = gpu_plan.parts()
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        assert (FOLDER / part.command[0]).exists()
        assert 0 < part.seconds <= 480
        for pattern in part.depends:
            assert list(ROOT.glob(pattern)), pattern
        compile((FOLDER / part.command[0]).read_text("utf-8"), part.command[0], "exec")


def test_the_plan_covers_what_was_asked():
    names = {part.name for part in gpu_plan.parts()}
    assert {"grid", "memcheck", "racecheck", "initcheck", "synccheck"} <= names
    assert {"kernel_float32", "kernel_float16", "kernel_bfloat16", "tensorflow"} <= names
    staged = {f"staged_{x}" for x in ("b_lenet", "b_alexnet", "b_resnet_110", "resnet50")}
    assert staged | {"torch_b_lenet", "torch_b_alexnet", "parity_b_resnet_110"} <= names
    rows = [f"{batch}x{classes}" for batch, classes in kernel_time.SHAPES]
    asked = "1x10 1024x10 65536x10 65536x100 65536x1000 8192x32000 512x256000"
    assert rows == asked.split()
    assert {part.name for part in gpu_plan.parts() if part.carries} == {
        name for name in names if name.startswith(("staged_", "parity_", "torch_"))
    }


def test_every_row_of_a_part_is_in_one_file_of_results():
    starts = [start for starts in gpu_report.FILES.values() for start in starts]
    for part in gpu_plan.parts():
        assert sum(part.name.startswith(start) for start in starts) == 1, part.name


# ---- The runner, on small programs ---------------------------------------------------
PROGRAM = """
import os, signal, subprocess, sys, time
sys.path.insert(0, {folder!r})
import gpu_rows

def main(args, rows):
{body}

gpu_rows.run(main)
"""


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """`runner({name: body}, *options)` runs such parts; returns the records and status."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def run(bodies, *options):
        for name, body in bodies.items():
            lines = textwrap.indent(textwrap.dedent(body), "    ")
            text = PROGRAM.format(folder=str(FOLDER), body=lines)
            (programs / f"{name}.py").write_text(text, "utf-8")
        plan = [gpu_plan.Part(name, "a test", (f"{name}.py",)) for name in bodies]
        monkeypatch.setattr(gpu_plan, "parts", lambda: plan)
        monkeypatch.setattr(check, "HERE", programs)
        monkeypatch.setattr(
            check,
            "digest_of",
            lambda depends: gpu_rows.digest_of(["*.py"], programs),
        )
        args = check.parse_args(["--out", str(tmp_path / "out"), *options])
        records = check.check(args.parts, args)
        return records, gpu_report.summary(records)

    run.out = tmp_path / "out"
    return run


def states(records):
    return {name: record and record["state"] for name, record in records.items()}


def test_a_part_that_fails_does_not_stop_the_others(runner, tmp_path):
    records, (text, status) = runner(
        {
            "good": "rows.add(value=1)",
            "wrong": "return ['3 rows are wrong']",
            "lacking": "raise gpu_rows.CouldNotRunError('there is no ncu')",
            "broken": "raise ValueError('of this and that')",
            "killed": "os.kill(os.getpid(), signal.SIGSEGV)",
            "last": "rows.add(value=2); print('seen')",
        }
    )
    assert states(records) == {
        "good": "done",
        "wrong": "failed",
        "lacking": "could not run",
        "broken": "failed",
        "killed": "failed",
        "last": "done",
    }
    assert records["wrong"]["reason"] == "3 rows are wrong"
    assert records["lacking"]["reason"] == "there is no ncu"
    assert records["broken"]["reason"] == "ValueError: of this and that"
    assert records["killed"]["reason"].startswith("signal 11")
    assert status == 1 and "2 done, 1 could not run, 3 failed" in text
    assert "seen" in (tmp_path / "out" / "last.log").read_text("utf-8")
    assert records["last"]["rows"] == [{"value": 2}]
    assert records["last"]["made_with"]["python"]


def test_the_exit_status_says_how_it_stands(runner):
    fine = "rows.add(value=1)"
    lacking = "raise gpu_rows.CouldNotRunError('x')"
    assert runner({"a": fine})[1][1] == 0
    assert runner({"a": fine, "b": lacking})[1][1] == 2
    assert runner({"a": fine, "b": lacking, "c": "return ['wrong']"})[1][1] == 1


def test_a_complete_part_is_not_run_again(runner, tmp_path):
    ran = tmp_path / "ran"
    body = f"open({str(ran)!r}, 'a').write('x'); rows.add(value=1)"
    for options, times in (((), 1), ((), 1), (("--again",), 2), (("--part", "a"), 2)):
        records, _ = runner({"a": body}, *options)
        assert states(records) == {"a": "done"} and len(ran.read_text()) == times
        assert records["a"]["rows"] == [{"value": 1}]
    # Another program gives other results: rows of the old one do not stay.
    records, _ = runner({"a": f"{body}\nrows.add(value=3)"})
    assert records["a"]["rows"] == [{"value": 1}, {"value": 3}]


def test_sources_edited_while_a_part_runs_leave_it_incomplete(runner):
    body = """
    rows.add(value=1)
    with open(__file__, 'a') as file:
        file.write('# edited')
    """
    records, _ = runner({"a": body})
    assert records["a"]["state"] == "done" and len(records["a"]["rows"]) == 1
    args = check.parse_args(["--out", str(runner.out)])
    assert check.standing(args.parts[0], args) is None


def test_what_was_killed_goes_on_where_it_was(runner, tmp_path):
    ran = tmp_path / "ran"
    body = f"""
    for value in range(4):
        if not rows.has(value=value):
            open({str(ran)!r}, 'a').write(str(value))
            if value == 2 and os.path.getsize({str(ran)!r}) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            rows.add(value=value)
    """
    records, _ = runner({"a": body})
    assert records["a"]["state"] == "failed" and len(records["a"]["rows"]) == 2
    records, _ = runner({"a": body})
    assert records["a"]["state"] == "done"
    assert [row["value"] for row in records["a"]["rows"]] == [0, 1, 2, 3]
    assert ran.read_text() == "01223"


def test_a_part_is_ended_at_its_limit_with_all_it_has_started(runner, tmp_path):
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(alive)!r}, 'w')"
    body = f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    begin = time.monotonic()
    records, (text, status) = runner({"a": body, "b": "rows.add(v=1)"}, "--limit", "1.5")
    assert time.monotonic() - begin < 20
    assert states(records) == {"a": "timed out", "b": "done"} and status == 1
    assert records["a"]["reason"] == "ended after its 2 seconds"
    time.sleep(3)
    assert not alive.exists()


def test_a_part_that_gets_somewhere_is_given_more_goes(runner):
    body = """
    for value in range(3):
        if not rows.has(value=value):
            rows.add(value=value)
            time.sleep(1 if value == 2 else 60)
    """
    records, _ = runner({"a": body}, "--limit", "2")
    assert records["a"]["state"] == "done" and len(records["a"]["rows"]) == 3


def test_nothing_begins_when_time_is_up(runner):
    records, (text, status) = runner({"a": "rows.add(value=1)"}, "--stop-after", "0")
    assert records == {"a": None} and status == 1 and "time was up" in text


def test_a_rehearsal_says_so_in_every_row_and_is_no_result(runner, tmp_path):
    records, (text, _) = runner({"kernel_a": "rows.add(value=1)"}, "--rehearse")
    assert records["kernel_a"]["rows"] == [{"value": 1, "rehearsal": True}]
    assert "no figure here says anything of a GPU" in text
    out = tmp_path / "out"
    assert json.loads((out / "kernel.json").read_text("utf-8"))["rehearsal"] is True
    assert "is of a rehearsal" in gpu_report.publish(out, tmp_path / "results")
    assert not (tmp_path / "results").exists()
    # Rows of a rehearsal do not become rows of a check.
    records, _ = runner({"kernel_a": "rows.add(value=2)"})
    assert records["kernel_a"]["rows"] == [{"value": 2}]
    assert gpu_report.publish(out, tmp_path / "results") is None
    copied = json.loads((tmp_path / "results" / "kernel.json").read_text("utf-8"))
    assert copied["rows"] == [{"part": "kernel_a", "value": 2}]
    assert gpu_report.publish(tmp_path / "none", out).startswith("There are no results")


@pytest.mark.parametrize(
    "options, text",
    [
        (["--rehearse", "--out", str(check.PUBLISHED)], "a rehearsal is no result"),
        (["--rehearse", "--publish"], "a rehearsal is no result"),
        (["--limit", "500"], "--limit must be at most 480 seconds"),
        (["--part", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, text, capsys):
    with pytest.raises(SystemExit):
        check.parse_args(options)
    assert text in capsys.readouterr().err


def test_tensorflow_parts_run_in_the_environment_that_is_named(monkeypatch, tmp_path):
    part = gpu_plan.Part("a", "", ("a.py",), tensorflow=True)
    args = check.parse_args(["--out", str(tmp_path)])
    assert check.command_of(part, args, tmp_path / "rows", "s")[0] == sys.executable
    setup = tmp_path / "env.sh"
    setup.write_text("export NAMED=here\n", "utf-8")
    monkeypatch.setenv("TENSORFLOW_ENV", str(setup))
    command = check.command_of(part, args, tmp_path / "rows", "s")
    command[5:] = ["-c", "import os; print(os.environ['NAMED'])"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "here\n"


def test_the_list_shows_all_parts_and_runs_none(tmp_path):
    command = [sys.executable, str(FOLDER / "check.py"), "--list", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(gpu_plan.parts())
    assert all(" not run " in line for line in done.stdout.splitlines())


# ---- What is missing -----------------------------------------------------------------
def test_a_missing_driver_and_a_missing_gpu_are_named(monkeypatch):
    def none(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", none)
    with pytest.raises(gpu_rows.CouldNotRunError, match="libcuda.so.1 cannot be loaded"):
        gpu_rows.need_gpu()
    library = types.SimpleNamespace(cuInit=lambda _: 100, cuDeviceGetCount=lambda _: 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    with pytest.raises(gpu_rows.CouldNotRunError, match=r"no GPU \(CUresult 100\)"):
        gpu_rows.need_gpu()


def test_missing_modules_and_programs_are_named(monkeypatch, tmp_path):
    with pytest.raises(gpu_rows.CouldNotRunError, match="no_such_module cannot be"):
        gpu_rows.need("no_such_module")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(gpu_rows.CouldNotRunError, match="no nvcc on the PATH; it comes"):
        kernel_grid.need_program("nvcc", "it comes with the CUDA toolkit")
    with pytest.raises(gpu_rows.CouldNotRunError, match="no nvcc on the PATH to build"):
        kernel_native.build()
    with pytest.raises(gpu_rows.CouldNotRunError, match="there is no ncu on the PATH"):
        kernel_counters.main(types.SimpleNamespace(only=None, rehearse=True), None)


def test_reasons_hold_no_path_of_this_machine():
    assert gpu_rows.short(OSError(f"{ROOT}/x is\n missing")) == "OSError: …/x is missing"


def test_a_half_written_file_is_as_none(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"rows": [', "utf-8")
    assert gpu_rows.read_json(path) is None
    assert gpu_rows.Rows(path, "stamp", False).rows == []


# ---- Reading what tools print --------------------------------------------------------
def test_a_check_counts_only_with_its_tally():
    text = (
        "X, 132 multiprocessors\n120 rows, 0 wrong, largest error 0.50 of the tolerance\n"
    )
    counted = kernel_grid.counted(text, 0, False)
    assert (counted["checked"], counted["wrong"]) == (120, 0)
    assert kernel_grid.wrong(counted) == []
    bad = kernel_grid.counted(text.replace("0 wrong", "3 wrong"), 1, False)
    assert kernel_grid.wrong(bad) == ["3 rows are wrong"]
    with pytest.raises(RuntimeError, match="status 0, without its tally"):
        kernel_grid.counted("There is no CUDA device here: built.", 0, False)
    with pytest.raises(RuntimeError, match="status 2, without its tally"):
        kernel_grid.counted(text, 2, False)


def test_a_sanitizers_summary_is_read():
    tally = "9 rows, 0 wrong, largest error 0.10 of the tolerance\n"
    for summary, errors in (
        ("========= ERROR SUMMARY: 0 errors", 0),
        ("========= ERROR SUMMARY: 2 errors", 2),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)", 3),
    ):
        assert kernel_grid.counted(tally + summary, 0, True)["reported"] == errors
    with pytest.raises(RuntimeError, match="printed no summary"):
        kernel_grid.counted(tally, 0, True)


def test_counters_are_read_from_the_table_of_nsight_compute():
    text = (
        '==PROF== Profiling\n"ID","Kernel Name","Metric Name","Metric Value"\n'
        '"0","RowPerWarp<float>(ExitGate)","gpu__time_duration.sum","91,200"\n'
        '"0","RowPerWarp<float>(ExitGate)","launch__registers_per_thread","40"\n'
    )
    assert kernel_counters.parsed(text) == [
        {"kernel": "RowPerWarp<float>", "kernel_ns": 91200.0, "registers": 40.0}
    ]


# ---- Arithmetic ----------------------------------------------------------------------
def test_both_countings_by_hand():
    """Ten images, six leave at exit 1, one at exit 2; times in µs."""
    exits = [0, 0, 0, 0, 0, 0, 1, 2, 2, 2]
    counts = [counting.counts_of(exits, 3)]
    assert counts == [[10, 4, 3]]
    assert counting.shares_of(counts) == [0.6, 0.1, pytest.approx(0.3)]
    stage = {(0, 10): 30.0, (1, 4): 20.0, (2, 3): 10.0}
    trunk = {(0, 10): 12.0, (1, 4): 8.0, (2, 3): 10.0, (1, 10): 16.0, (2, 10): 32.0}
    found = counting.figures(
        plain=66.0,
        staged=80.0,
        counts=counts,
        stage_time=lambda k, n: stage[k, n],
        trunk_time=lambda k, n: trunk[k, n],
    )
    assert found == {
        "gain": 66 / 80,
        "gain_published_counting": (12 + 16 + 32) / (12 + 8 + 10),
        "gain_of_stage_times": 66 / 60,
        "efficiency": 60 / 80,
    }


def test_a_stage_that_nobody_reaches_takes_no_time():
    times = {(0, 1): 5.0, (1, 1): 9.0}
    # Of four batches of one, one image goes on.
    counts = [[1, 0], [1, 1], [1, 0], [1, 0]]
    assert counting.allowed(counts, lambda k, n: times[k, n]) == 5 + 9 / 4
    assert counting.shares_of(counts) == [0.75, 0.25]


def test_the_limits_of_macs_are_those_of_the_published_shares():
    """At the published shares B-LeNet's MACs allow 6.66, and 4.09 with heads."""
    from keras_branchy import cost, networks

    costs = cost.stage_costs(networks.b_lenet())
    limits = counting.mac_limits(costs, [0.943, 0.057])
    assert limits["mac_limit"] == pytest.approx(4.09, abs=0.05)
    assert limits["mac_limit_published_counting"] == pytest.approx(6.66, abs=0.1)


def test_break_even_lies_between_two_rows():
    def rows(*points):
        return [{"shares": [share], "gain": gain} for share, gain in points]

    assert counting.break_even(rows((0.5, 1.2), (0.0, 0.8))) == pytest.approx(0.25)
    assert counting.break_even(rows((0.0, 1.0), (0.5, 2.0))) == 0.0
    assert counting.break_even(rows((0.0, 0.5), (1.0, 0.9))) is None


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_swept_thresholds_give_their_share_of_those_who_arrive(share, rng):
    scores, criteria = rng.random((2, 4000)), ["entropy", "margin"]
    first, second = staged_sweep.swept(scores, criteria, share)
    leave = scores[0] < first
    assert leave.mean() == pytest.approx(share, abs=1e-3)
    if share < 1:
        also = scores[1][~leave] >= second
        assert also.mean() == pytest.approx(share, abs=1e-3)


def test_a_share_of_the_copy_counts_logits_and_answers():
    # 1000 rows of 1000 float32 in 10 µs beside a copy of 500 kB a µs
    share = kernel_time.copy_share((1000, 1000), 4_000_000, 10.0, 500_000)
    assert share == pytest.approx((4_000_000 + 13_000) / 10 / 500_000)


def test_rows_of_the_kernel_have_what_the_tables_read(tmp_path):
    class Lab:
        copy_rate = 1000.0

        def pool(self, shape, dtype):
            return [np.zeros(shape, np.float32)]

        def truth(self, z):
            return None

        def copy_time(self, pool):
            return 1.5

        def bytes_of(self, z):
            return z.nbytes

        def best(self, make, pool, truth, name):
            return {"median_us": make(), "spread_us": 0.1}

    def missing():
        raise gpu_rows.CouldNotRunError("cupy cannot be imported")

    def breaks():
        raise RuntimeError("2 of 4 rows are wrong")

    rows = gpu_rows.Rows(tmp_path / "rows.json", "s", False)
    makers = {"native": lambda: 2.0, "cupy": missing, "jax": breaks}
    failures = kernel_time.measure_shape(Lab(), rows, "float32", (4, 10), makers, makers)
    assert failures == []  # those of others are no failure of ours
    native, cupy, jax = rows.rows
    assert {"batch", "classes", "dtype", "implementation"} <= set(native)
    assert native["median_us"] == 2.0 and native["copy_share"] == round(212 / 2 / 1000, 4)
    assert cupy["reason"] == "cupy cannot be imported" and cupy["median_us"] is None
    assert jax["reason"] == "RuntimeError: 2 of 4 rows are wrong"
    failures = kernel_time.measure_shape(
        Lab(), rows, "float32", (4, 10), ["native"], {"native": breaks}
    )
    assert failures == ["native at (4, 10): RuntimeError: 2 of 4 rows are wrong"]


def test_answers_are_compared_away_from_thresholds_only():
    cpu = {
        "thresholds": np.array([0.5, -np.inf]),
        "trained": True,
        "scores": np.array([[0.1, 0.9, 0.50001, 0.4], [0.1, 0.1, 0.1, 0.1]]),
        "exits": np.array([0, 2, 2, 0]),
        "labels": np.array([3, 1, 4, 5]),
    }
    gpu = {**cpu, "exits": np.array([0, 2, 0, 0]), "labels": np.array([3, 1, 4, 6])}
    found = parity.compared(np, cpu, gpu)
    assert (found["differ"], found["differ_near"], found["near"]) == (1, 1, 1)
    assert parity.verdict(found) == [
        "1 images differ away from the threshold",
        "25.00% of the images are near a threshold",
    ]
    same = parity.compared(np, cpu, cpu)
    assert same["differ"] == 0 and same["largest_score_difference"] == 0.0


def test_energy_is_the_difference_of_the_counter_per_call():
    reading = iter([1000, 1300])
    calls = []
    spent = staged_energy.loop(lambda: calls.append(1), 0.01, lambda: next(reading))
    assert spent == 300 / (len(calls) - 1)  # the first call warms up


def test_a_profile_is_divided_by_class_and_waiting():
    def event(name, begin, length, op=""):
        return ("/device:GPU:0", "Stream #7", name, op or name, begin, length)

    found = staged_profile.shares(
        [
            event("conv", 0, 40, "stage/Conv2D:Conv2D"),
            event("gate", 40, 10, "x:KerasBranchy>ExitGate"),
            event("where", 50, 10, "boolean_mask/Where:Where"),
            event("MemcpyD2H", 60, 10),
            event("conv", 90, 10, "stage/Conv2D:Conv2D"),
        ]
    )
    assert found["waiting_share"] == 0.2 and found["measured_on"] == "GPU streams"
    shares = {k: found[f"{k}_share"] for k in ("stages", "gate", "masking", "copies")}
    assert shares == {"stages": 0.5, "gate": 0.1, "masking": 0.1, "copies": 0.1}
    assert found["host_reads_per_call"] == 1 / staged_profile.CALLS
    assert staged_profile.shares([]) == {"reason": "the profile holds no operation"}


# ---- The kernel through its C interface, emulated -------------------------------------
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_the_c_interface_gives_the_answers_of_float64(rng):
    import gate_oracle as oracle

    library = kernel_native.build(rehearse=True).library
    for dtype in ("float32", "float16"):
        for criterion, number in kernel_native.CRITERIA.items():
            for shape in ((7, 10), (3, 9000)):
                logits = oracle.stored(oracle.hostile(rng, *shape), dtype)
                answers = [
                    np.empty(shape[0], kind) for kind in (bool, np.int64, np.float32)
                ]
                storage = kernel_native.STORAGES[dtype]
                workspace = np.empty(library.gate_workspace(storage, *shape) + 1, np.uint8)
                error = library.gate_run(
                    *[logits.ctypes.data, storage, *shape, 0.5, number],
                    *[x.ctypes.data for x in (*answers, workspace)],
                    None,
                )
                assert error is None
                oracle.assert_answers(answers, logits, 0.5, criterion, dtype)


@pytest.mark.parametrize("network", staged_layers.NETWORKS)
def test_the_layers_in_pytorch_take_the_weights_of_keras(network):
    import keras

    from keras_branchy import networks

    model = getattr(networks, network)()
    arrays = {
        variable.path: keras.ops.convert_to_numpy(variable) for variable in model.variables
    }
    found = staged_layers.arrays_by_layer(network, arrays)
    count = sum(kernel.size + bias.size for kernel, bias in found.values())
    assert count == model.count_params()
    first = next(path for path in arrays if path.startswith("exit_1/"))
    arrays = {path: x for path, x in arrays.items() if path != first}
    with pytest.raises(ValueError, match="has no kernel of shape .* for exit_1/0"):
        staged_layers.arrays_by_layer(network, arrays)


# ---- Tables --------------------------------------------------------------------------
def put(folder, name, rows, rehearsal=False):
    made = {"gpus": ["H, 580"], "date": "2030-01-02", "versions": {"torch": "9"}}
    document = {"rehearsal": rehearsal, "parts": [{"made_with": made}], "rows": rows}
    (folder / "gpu").mkdir(exist_ok=True)
    (folder / "gpu" / name).write_text(json.dumps(document), "utf-8")


def test_tables_say_that_nothing_was_measured_until_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for table in (tables.gpu_kernel, tables.gpu_staged, tables.gpu_parity):
        assert table().startswith("Not measured yet")
    shape = {"batch": 65536, "classes": 1000, "dtype": "float32"}
    rows = [
        {**shape, "implementation": "native", "median_us": 100.0, "copy_share": 0.91},
        {**shape, "implementation": "torch", "median_us": 250.0, "copy_share": 0.36},
        {**shape, "implementation": "cupy", "median_us": None, "reason": "none"},
    ]
    put(tmp_path, "kernel.json", rows)
    table = tables.gpu_kernel()
    assert "| 65536×1000 | float32 | 100.00 | 91 % | 2.5 |  |  |  |  |" in table
    assert table.endswith("\nH, 580; 2030-01-02; torch 9.\n")
    staged = {"kind": "staged", "network": "b_lenet", "framework": "tensorflow"}
    staged |= {"batch": 1024, "shares": [0.9, 0.1], "gain": 1.5, "efficiency": 0.93}
    staged |= {"gain_published_counting": 4.5, "gain_over_xla": 1.1, "mac_limit": 3.6}
    put(tmp_path, "staged.json", [staged, {"kind": "plain"}])
    line = (
        "| `b_lenet`, tensorflow | 1024 | 90 %, 10 % | 1.50 | 1.10 | 4.50 | 3.60 | 0.93 |"
    )
    assert line in tables.gpu_staged()
    row = {"network": "b_lenet", "images": 10000, "differ": 0, "near": 4}
    put(tmp_path, "parity.json", [{**row, "near_share": 0.0004}, {"what": "op"}])
    assert "| `b_lenet` | 10,000 | 0 | 4 (0.04 %) |" in tables.gpu_parity()
    put(tmp_path, "parity.json", [], rehearsal=True)
    with pytest.raises(ValueError, match="of a rehearsal on the CPU, and no result"):
        tables.gpu_parity()


# ---- The programs themselves ----------------------------------------------------------
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_rehearsal_runs_the_programs_of_tensorflow(tmp_path):
    command = [sys.executable, str(FOLDER / "check.py"), "--rehearse"]
    command += ["--out", str(tmp_path), "--part", "tensorflow", "--part", "grid"]
    done = subprocess.run(
        [*command, "--part", "staged_b_lenet"],
        env={**os.environ, "KERAS_BRANCHY_CUSTOM_OPS": "auto"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    rows = json.loads((tmp_path / "staged.json").read_text("utf-8"))["rows"]
    staged = [row for row in rows if row["kind"] == "staged"]
    asked = {"network", "batch", "shares", "gain", "gain_published_counting", "efficiency"}
    assert len(staged) == 2 and all(asked <= set(row) for row in staged)
    assert all(row["rehearsal"] for row in rows)
    (profile,) = [row for row in rows if row["kind"] == "profile"]
    assert profile["where_per_call"] == 2 and profile["stages_share"] > 0
