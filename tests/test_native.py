# SPDX-License-Identifier: Apache-2.0
"""Finding, checking and loading the compiled gate, and saying what happened."""

import hashlib
import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import tensorflow as tf

from keras_branchy import compiled, exit_gate, native

SWITCH = "KERAS_BRANCHY_CUSTOM_OPS"


@pytest.fixture
def builder():
    return native.builder()


@pytest.fixture
def first_use(monkeypatch, tmp_path):
    """A process that has not looked for the op, and an empty cache for it."""

    def forget():
        native._attempt.cache_clear()
        native._warn_once.cache_clear()

    forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(SWITCH, "auto")
    yield tmp_path / "keras_branchy"
    forget()


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def place(first_use, builder):
    """Puts bytes where the op is looked for."""

    def put(content):
        first_use.mkdir()
        path = first_use / builder.library_name(tf.__version__)
        path.write_bytes(content)
        return path

    return put


def stamped(builder, content, **facts):
    stamp = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "tensorflow": tf.__version__,
        "cuda_problem": "no",
    }
    return content + builder.STAMP + json.dumps(stamp | facts).encode()


# ---- The switch ---------------------------------------------------------------------
def test_three_modes(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    assert native.mode() == "auto"
    for value in ("auto", "on", "off"):
        monkeypatch.setenv(SWITCH, value)
        assert native.mode() == value
    monkeypatch.setenv(SWITCH, "yes")
    with pytest.raises(ValueError, match="'auto', 'on' or 'off'. Received: 'yes'. Unset"):
        native.mode()


def test_off_never_looks(first_use, monkeypatch):
    monkeypatch.setenv(SWITCH, "off")
    monkeypatch.setattr(native, "_load", lambda: pytest.fail("looked for the op"))
    assert native.load() is None
    assert str(native.status()) == (
        f"exit gate: reference, in plain TensorFlow\n  switch   {SWITCH}=off\n"
        f"  cause    {SWITCH}=off"
    )
    with pytest.raises(RuntimeError, match="not loaded. Call `keras_branchy.exit_gate`"):
        native.exit_gate(tf.zeros([1, 2]), 0.5, "entropy")


def test_importing_takes_neither_tensorflow_nor_a_build():
    code = (
        "import sys, keras_branchy.native as native; native.mode();"
        "assert 'tensorflow' not in sys.modules and not native.builder.cache_info().misses"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_status_of_the_op(implementation):
    status = native.status()
    assert status.native == (implementation == "native")
    if status.native:
        assert native.load() is native.load()
        assert status.library.is_file() and status.cause is None
        assert status.instruction_set in ("AVX-512", "AVX2", "baseline")
        report = str(status).splitlines()
        assert report[0] == "exit gate: native op"
        assert report[2] == f"  library  {status.library}"
        assert report[3] == f"  CPU      {status.instruction_set}"


# ---- Falling back -------------------------------------------------------------------
def falls_back(cause, monkeypatch):
    """Under `auto` one warning and the reference; under `on` an error with its cause."""
    with pytest.warns(RuntimeWarning, match=cause) as caught:
        first = exit_gate([[9.0, 0.0]], 0.5)
    assert first[1].numpy().tolist() == [0] and len(caught) == 1
    assert "plain TensorFlow, several times slower" in str(caught[0].message)
    assert f"To do without it: {SWITCH}=off" in str(caught[0].message)
    assert "build.py --force" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exit_gate([[9.0, 0.0]], 0.5)
    status = native.status()
    assert not status.native and "cause" in str(status)
    monkeypatch.setenv(SWITCH, "on")
    with pytest.raises(RuntimeError, match="=on, but the native exit gate cannot") as error:
        exit_gate([[9.0, 0.0]], 0.5)
    assert error.value.__cause__ is native._attempt().error


def test_no_op_and_no_compiler(first_use, no_compiler, monkeypatch):
    falls_back("There is no C.. compiler; install g..", monkeypatch)


def test_a_truncated_library(place, builder, monkeypatch):
    whole = stamped(builder, b"\x7fELF" + bytes(5000))
    place(whole[: len(whole) // 2])
    falls_back("is truncated or altered. Delete it", monkeypatch)


def test_an_altered_library(place, builder, monkeypatch):
    place(stamped(builder, b"\x7fELF" + bytes(5000)).replace(b"ELF", b"elf"))
    falls_back("is truncated or altered. Delete it", monkeypatch)


def test_a_library_of_another_tensorflow(place, builder, monkeypatch):
    place(stamped(builder, b"\x7fELF" + bytes(5000), tensorflow="2.20.1"))
    falls_back("built for TensorFlow 2.20.1. Received: TensorFlow 2.21", monkeypatch)


def test_a_library_that_does_not_load(place, builder, monkeypatch):
    place(stamped(builder, b"not a library" * 99))
    falls_back("invalid ELF header", monkeypatch)


def test_a_gpu_without_a_usable_cuda_kernel(first_use, monkeypatch):
    class Builder:
        find = staticmethod(lambda version: Path("op.so"))
        stamp_of = staticmethod(
            lambda path: {"tensorflow": tf.__version__, "cuda_problem": "no nvcc"}
        )
        minor = staticmethod(lambda version: version)

    monkeypatch.setattr(native, "builder", Builder)
    monkeypatch.setattr(native, "_ask", lambda path: ("AVX2", None))
    monkeypatch.setattr(tf, "load_op_library", lambda path: path)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a GPU"])
    with pytest.raises(RuntimeError, match="sees a GPU, and the op's CUDA .* no nvcc"):
        native._load()
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [])
    assert native._load().cuda == "no nvcc"


def test_the_sources_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "package" / "compiled.py"))
    with pytest.raises(RuntimeError, match="The sources of the native parts are missing"):
        compiled.build_file()


def test_first_use_builds_and_says_so(first_use, monkeypatch, caplog):
    def build():
        raise OSError("no room")

    monkeypatch.setattr(native.builder(), "build", build)
    with pytest.warns(RuntimeWarning, match="no room"):
        assert native.load() is None
    assert "Building the native exit gate for TensorFlow" in caplog.text


# ---- XLA ----------------------------------------------------------------------------
def test_xla_is_seen_from_inside():
    seen = {}

    def look(name):
        seen[name] = native.in_xla_context()
        return tf.constant(0)

    look("eager")
    tf.function(lambda: look("graph"))()
    tf.function(lambda: look("xla"), jit_compile=True)()

    def loop():
        return tf.while_loop(lambda i: i < 2, lambda i: (i + 1 + look("loop"),), [0])

    tf.function(loop, jit_compile=True)()
    tf.function(lambda: tf.function(lambda: look("called"))(), jit_compile=True)()
    assert seen == {
        "eager": False,
        "graph": False,
        "xla": True,
        "loop": True,
        "called": True,
    }


def test_the_op_is_not_in_an_xla_graph(implementation):
    gate = tf.function(lambda x: exit_gate(x, 0.5), jit_compile=True)
    graph = gate.get_concrete_function(tf.TensorSpec([2, 3])).graph
    assert not any("ExitGate" in op.type for op in graph.get_operations())


# ---- build.py -----------------------------------------------------------------------
FAKE_COMPILER = """#!{python}
import pathlib, sys, time
with open("{log}", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if {fails}:
    sys.exit("no such flag: -std=c++17")
time.sleep(0.05)
if "--dryrun" in sys.argv:
    sys.exit("#$ TOP={home}")
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_bytes(b"\\x7fELF made")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Writes a compiler that notes its calls; returns a function that reads them."""

    def write(variable, fails=False):
        log = tmp_path / f"{variable}.log"
        path = tmp_path / variable
        text = FAKE_COMPILER.format(
            python=sys.executable, log=log, fails=fails, home=tmp_path / "cuda"
        )
        path.write_text(text)
        path.chmod(0o755)
        monkeypatch.setenv(variable, str(path))
        return lambda: log.read_text().splitlines() if log.exists() else []

    monkeypatch.setenv("NVCC", "no-nvcc-here")
    return write


def test_a_build(fake, builder, tmp_path):
    calls = fake("CXX")
    path = builder.build(tmp_path / "made")
    assert path.name == builder.library_name(tf.__version__)
    assert path.name.startswith("exit_gate-tf2.21-")
    stamp = builder.stamp_of(path)
    assert builder.minor(stamp["tensorflow"]) == "2.21"
    assert stamp["cuda_problem"] == "nvcc was not found when the op was built"
    assert builder.build(tmp_path / "made") == path
    # The op, the dispatcher and what it asks, three instruction sets, the link.
    assert len(calls()) == 7
    assert not any("-march=native" in call for call in calls())
    assert sorted(x.name for x in path.parent.iterdir()) == [".lock", path.name]


def test_a_build_of_the_step(fake, builder, tmp_path):
    calls = fake("CXX")
    path = builder.build_step(tmp_path / "made")
    assert path.name == builder.step_library_name() and builder.stamp_of(path)
    assert builder.build_step(tmp_path / "made") == path
    assert len(calls()) == 6
    assert not any("tensorflow" in call for call in calls())
    assert sorted(x.name for x in path.parent.iterdir()) == [".lock", path.name]


def test_a_failed_build_is_not_tried_again(fake, builder, tmp_path):
    calls = fake("CXX", fails=True)
    with pytest.raises(builder.BuildError, match=r"failed:\nno such flag"):
        builder.build(tmp_path / "made")
    tried = len(calls())
    with pytest.raises(builder.BuildError, match=r"no such flag[\s\S]*recorded in .*error"):
        builder.build(tmp_path / "made")
    assert len(calls()) == tried
    calls = fake("CXX")
    builder.build(tmp_path / "made", force=True)
    assert not list((tmp_path / "made").glob("*.error"))


def test_two_processes_build_once(fake, builder, tmp_path):
    calls = fake("CXX")
    command = [sys.executable, builder.__file__, "--directory", str(tmp_path / "made")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(outputs) == 1 and len(calls()) == 6 + 7  # the step, the op


def cuda_home(tmp_path):
    (tmp_path / "cuda" / "lib64").mkdir(parents=True)
    runtime = tmp_path / "cuda" / "lib64" / "libcudart_static.a"
    runtime.touch()
    return runtime


def test_cuda_is_linked_before_tensorflow(fake, builder, tmp_path):
    runtime = cuda_home(tmp_path)
    calls, nvcc = fake("CXX"), fake("NVCC")
    stamp = builder.stamp_of(builder.build(tmp_path / "made"))
    assert stamp["cuda_problem"] is None and "sm_90" in nvcc()[-1]
    link = calls()[-1].split()
    assert link.index(str(runtime)) < link.index("-l:libtensorflow_framework.so.2")
    assert "-Wl,--exclude-libs,ALL" in link
    assert any("-DKERAS_BRANCHY_CUDA" in call for call in calls())


def test_nvcc_may_fail(fake, builder, tmp_path, monkeypatch):
    runtime = cuda_home(tmp_path)
    calls, nvcc = fake("CXX"), fake("NVCC", fails=True)
    monkeypatch.setattr(builder, "find_cuda", lambda: (str(tmp_path / "NVCC"), runtime))
    stamp = builder.stamp_of(builder.build(tmp_path / "made"))
    assert "no such flag" in stamp["cuda_problem"] and len(nvcc()) == 1
    assert str(runtime) not in calls()[-1]


def test_what_a_build_needs(builder, monkeypatch, no_compiler, tmp_path):
    with pytest.raises(builder.BuildError, match="no C.. compiler; install g"):
        builder.find_compiler()
    assert builder.find_cuda() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(builder.BuildError, match="no native kernel for darwin, only Linux"):
        builder.find_compiler()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(builder.BuildError, match="TensorFlow is not installed"):
        builder.find_tensorflow()


def test_a_place_that_cannot_be_written(fake, builder, tmp_path):
    fake("CXX")
    (tmp_path / "file").touch()
    with pytest.raises(builder.BuildError, match="Cannot write to"):
        builder.build(tmp_path / "file" / "made")


def test_the_command_line_says_why_not(fake, builder, tmp_path):
    fake("CXX", fails=True)
    command = [sys.executable, builder.__file__, "--directory", str(tmp_path / "made")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("The native step was not built.")
    assert "\nThe native exit gate was not built." in run.stderr


# ---- The wheel ----------------------------------------------------------------------
@pytest.mark.parametrize("compiler", [True, False])
def test_a_wheel_holds_the_sources_and_the_op(fake, builder, tmp_path, compiler):
    fake("CXX", fails=not compiler)
    root = Path(builder.__file__).parent.parent
    tree = tmp_path / "tree"
    for name in ("keras_branchy", "custom_ops"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / name, tree / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in"):
        shutil.copy(root / name, tree)
    command = (
        "import sys; sys.argv[1:] = ['-q', 'bdist_wheel']; exec(open('setup.py').read())"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"__file__ = 'setup.py'; {command}"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = (tree / "dist").glob("*.whl")
    inside = {Path(name).name for name in zipfile.ZipFile(wheel).namelist()}
    assert {
        *builder.COMPILED,
        *builder.STEP,
        "benchmark.py",
        "cuda_check.cu",
        "check.h",
    } <= inside
    for name in (builder.library_name(tf.__version__), builder.step_library_name()):
        assert (name in inside) == compiler
    for name in ("exit gate", "step"):
        assert (f"The native {name} was not built" in run.stderr) != compiler
    assert not any(name.endswith((".error", ".lock")) for name in inside)
