# SPDX-License-Identifier: Apache-2.0
"""A failure, a full disk or a kill leaves what was there before, and nothing else."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from exports import exported, prepared, root
from project import ROOT

from keras_branchy import StageRunner
from keras_branchy.export import child as child_module
from keras_branchy.export import folder, self_check
from keras_branchy.export.child import child_process
from keras_branchy.export.conversion import _check_operations
from keras_branchy.export.folder import new_folder
from keras_branchy.runner.manifest import MANIFEST


def write(path, text):
    (path / MANIFEST).write_text(text)
    (path / "inner").mkdir()
    (path / "inner" / "file").write_text(text)


def test_a_folder_appears_whole(tmp_path):
    place = tmp_path / "deep" / "out"
    with new_folder(place) as partial:
        write(partial, "one")
        assert not place.exists() and partial.parent == place.parent
    assert (place / "inner" / "file").read_text() == "one"
    assert sorted(path.name for path in place.iterdir()) == ["inner", MANIFEST]
    assert list(place.parent.iterdir()) == [place]
    mask = os.umask(0)
    os.umask(mask)
    assert place.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("exchange", [True, False])
def test_an_earlier_export_is_replaced(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(folder, "_exchange", lambda one, other: False)
    for text in ("one", "two"):
        with new_folder(tmp_path / "out") as partial:
            write(partial, text)
    assert (tmp_path / "out" / MANIFEST).read_text() == "two"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_earlier_export_survives_a_failure(tmp_path):
    with new_folder(tmp_path / "out") as partial:
        write(partial, "one")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as partial:
        write(partial, "two")
        raise ZeroDivisionError
    assert (tmp_path / "out" / MANIFEST).read_text() == "one"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_full_disk_at_the_last_moment_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), new_folder(tmp_path / "out") as at:
        write(at, "one")
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_puts_the_earlier_export_back(tmp_path, monkeypatch):
    with new_folder(tmp_path / "out") as partial:
        write(partial, "one")
    monkeypatch.setattr(folder, "_exchange", lambda one, other: False)
    rename = folder.Path.rename

    def failing(self, target):
        if self.name.endswith(".partial") and str(target).endswith("out"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(folder.Path, "rename", failing)
    with pytest.raises(OSError, match="no"), new_folder(tmp_path / "out") as partial:
        write(partial, "two")
    assert (tmp_path / "out" / MANIFEST).read_text() == "one"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_what_is_no_export_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as partial:
        write(partial, "an empty folder is free")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    said = "something else at the place.*mine. Expected a new folder.*Choose another"
    with pytest.raises(FileExistsError, match=said), new_folder(tmp_path / "mine"):
        pass
    with pytest.raises(FileExistsError), new_folder(tmp_path / "mine" / "thesis.txt"):
        pass
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    dead = tmp_path / ".out.abc.partial"
    dead.mkdir()
    (dead / ".lock").write_text("")
    alive = tmp_path / ".out.def.partial"
    alive.mkdir()
    with open(alive / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with new_folder(tmp_path / "out") as partial:
            write(partial, "one")
    assert not dead.exists() and alive.exists()


WITH_A_CHILD = """
import pathlib, sys, time
from keras_branchy.export.child import child_process
from keras_branchy.export.folder import new_folder
with new_folder(pathlib.Path(sys.argv[1])) as partial, child_process(partial, 60, False):
    (partial / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_the_child_cleans_up_behind_a_killed_parent(tmp_path):
    command = [sys.executable, "-c", WITH_A_CHILD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.kill()
    wait_until(lambda: not any(tmp_path.iterdir()))


def test_a_child_that_crashes_is_an_exception(tmp_path):
    with child_process(tmp_path, 60, False) as child:
        child._process.send_signal(signal.SIGSEGV)
        said = "crashed during 'measure'. Received: signal SIGSEGV.*use quantization="
        with pytest.raises(RuntimeError, match=said):
            child.ask("measure")
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_exits_says_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr(child_module.sys, "executable", "/bin/false")
    with child_process(tmp_path, 60, False) as child:
        with pytest.raises(RuntimeError, match="Received: exit code 1"):
            child.ask("measure")
        (tmp_path / ".child.log").write_text("first\n\nlast\n")
        assert child._last_lines(1) == "Its last words:\nlast"


def test_a_child_that_hangs_is_stopped(tmp_path):
    start = time.monotonic()
    said = "'measure'.* took too long. Received: timeout=0.2 seconds. Pass a longer"
    with child_process(tmp_path, 0.2, False) as child:
        pid = child._process.pid
        with pytest.raises(TimeoutError, match=said):
            child.ask("measure")
    assert time.monotonic() - start < 10
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_job_that_fails_says_why(tmp_path):
    with child_process(tmp_path, 60, False) as child:
        with pytest.raises(RuntimeError, match="'measure' failed: FileNotFoundError.*no s"):
            child.ask("measure", folder="nowhere", samples="x", output="y", thresholds=None)


def spoiled(*arguments):
    found = self_check_answers(*arguments)
    return {name: value * 1.5 for name, value in found.items()}


self_check_answers = self_check.answers_of


def test_files_that_answer_otherwise_than_keras_are_not_kept(tmp_path, monkeypatch):
    # What a converter that writes wrong weights without an error would give.
    earlier = exported("residual").folder
    before = (earlier / MANIFEST).read_bytes()
    monkeypatch.setattr(self_check, "answers_of", spoiled)
    said = "do not give what Keras gives. Received: logits of exit 1.*Expected: at most"
    with pytest.raises(RuntimeError, match=said):
        prepared("residual")[0].export_stages(earlier, verbose=0)
    assert (earlier / MANIFEST).read_bytes() == before
    assert not list(root().glob(".*"))
    assert len(StageRunner(earlier).predict(exported("residual").x)) == 60


class Request:
    quantization = None


def test_a_cascade_that_answers_otherwise_is_refused():
    same = np.array([True, True, True])
    with pytest.raises(RuntimeError, match="exported cascade.*off by 0.5, and 0 of 3"):
        self_check._check_cascade(np.array([0.0, 0.5]), same, Request)
    with pytest.raises(RuntimeError, match="2 of 3 samples at another exit.*Export with"):
        self_check._check_cascade(np.array([0.0]), np.array([False, False, True]), Request)


def test_quantised_logits_may_be_off_by_more_but_not_by_everything(rng):
    class Int8:
        quantization = "int8"

    logits = rng.normal(size=(2, 50, 4)).astype(np.float32)
    self_check._check_parity(logits + 0.2, logits, Int8)
    with pytest.raises(RuntimeError, match="of exit 2 that are off"):
        self_check._check_parity(np.stack([logits[0], -logits[1]]), logits, Int8)
    with pytest.raises(RuntimeError, match="off by nan"):
        self_check._check_parity(np.full_like(logits, np.nan), logits, Int8)


def test_operations_that_litert_does_not_bring_are_refused():
    _check_operations(["CONV_2D", "IF"], "stage_1.tflite")
    said = r"'stage_1.tflite' holds operations.*\['CUSTOM:FlexConv2D'\]. Replace"
    with pytest.raises(ValueError, match=said):
        _check_operations(["CONV_2D", "CUSTOM:FlexConv2D"], "out/stage_1.tflite")


@pytest.mark.long
def test_what_the_converter_cannot_write_says_what_to_do(tmp_path):
    said = "LiteRT has no operation of its own.*recurrent layers need a fixed batch"
    with pytest.raises(RuntimeError, match=said):
        prepared("masked")[0].export_stages(tmp_path / "out", batch_size=None, verbose=0)
    assert list(tmp_path.iterdir()) == []


EXPORT = """
import sys
sys.path.insert(0, "tests")
import cases
model = next(case for case in cases.MODELS if case.name == "residual").make()
print("begin", flush=True)
model.export_stages(sys.argv[1], layout="signatures")
"""


def start_export(place, **options):
    return subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        **options,
    )


@pytest.mark.long
@pytest.mark.parametrize("which", ["parent", "both", "child"])
def test_kills_at_any_time_leave_nothing_half_written(tmp_path, which, rng):
    place = tmp_path / "out"
    for _ in range(4):
        process = start_export(place, start_new_session=True)
        assert process.stdout.readline() == "begin\n"
        time.sleep(rng.uniform(0.2, 6.0))
        if which == "both":
            os.killpg(process.pid, signal.SIGKILL)
        elif which == "parent":
            process.kill()
        else:
            listed = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
            )
            for pid in map(int, listed.stdout.split()):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
        if place.exists():
            StageRunner(place)  # whole
        if which != "both":
            wait_until(lambda: not list(tmp_path.glob(".*")))
    process = start_export(place)
    process.communicate()
    assert process.returncode == 0
    StageRunner(place)
    assert list(tmp_path.iterdir()) == [place], "the next export cleans up"


@pytest.mark.long
@pytest.mark.parametrize("limit", [1_000, 8_000])
def test_files_that_may_not_grow_leave_nothing(tmp_path, limit):
    def hold():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = start_export(tmp_path / "out", preexec_fn=hold)
    _, said = process.communicate()
    assert process.returncode != 0 and "Error" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("kilobytes", [24, 64, 130])
def test_a_full_disk_leaves_nothing(tmp_path, kilobytes):
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only a superuser mounts a small disk")
    try:
        process = start_export(tmp_path / "out")
        _, said = process.communicate()
        assert process.returncode != 0 and "Error" in said
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
