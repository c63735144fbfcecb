# SPDX-License-Identifier: Apache-2.0
"""What can only be shown outside this process: the binaries, their crashes, their ISAs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPS = ROOT / "custom_ops"
TESTS = ROOT / "tests"
CROSS = "aarch64-linux-gnu-g++"


def needs(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"there is no {', '.join(missing)}")


def run(*command, **environment):
    result = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout


def together(commands):
    """Standard outputs of processes that run at once."""
    running = [
        subprocess.Popen([str(x) for x in command], stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in running]
    # A process that died of a signal has a negative code.
    assert [process.returncode for process in running] == [0] * len(running)
    return outputs


@pytest.fixture(scope="module")
def native(native_op):
    return native_op


@pytest.fixture(scope="module")
def library(native):
    return native.status().library


def compile_cpu_check(builder, made, compiler, x86, *flags):
    """`cpu_check` of all instruction sets, with the flags of the installed op."""
    kernel = [compiler, *builder.COMMON, *builder.KERNEL, *flags, "-c"]
    sets = {"baseline": []}
    if x86:
        sets |= {"avx2": builder.AVX2, "avx512": builder.AVX512}
    commands = [
        [
            *kernel,
            *isa,
            f"-DKERAS_BRANCHY_ISA={name}",
            OPS / "exit_gate_cpu_isa.cc",
            "-o",
            made / f"{name}.o",
        ]
        for name, isa in sets.items()
    ]
    commands += [
        [*kernel, OPS / f"{name}.cc", "-o", made / f"{name}.o"]
        for name in ("exit_gate_cpu", "isa", "cpu_check")
    ]
    together(commands)
    run(
        compiler,
        *flags,
        "-static" if not x86 else "-pie",
        *made.glob("*.o"),
        "-o",
        made / "cpu_check",
    )
    return made / "cpu_check"


# ---- The library --------------------------------------------------------------------
@needs("nm")
def test_no_cuda_symbol_is_left_to_tensorflow(library):
    undefined = run("nm", "-D", "--undefined-only", library)
    assert "absl" in undefined and "cuda" not in undefined.lower()
    defined = run("nm", "-D", "--defined-only", library)
    ours = {line.split()[-1] for line in defined.splitlines() if " T " in line}
    assert ours == {"keras_branchy_cuda_problem", "keras_branchy_instruction_set"}


@needs("nm", "g++")
def test_the_step_needs_no_tensorflow(native, tmp_path):
    library = native.builder().build_step(tmp_path)
    assert "tensorflow" not in run("ldd", library).lower()
    defined = run("nm", "-D", "--defined-only", library)
    ours = {line.split()[-1] for line in defined.splitlines() if " T " in line}
    assert all(name.startswith("keras_branchy_") for name in ours) and len(ours) == 3


@needs("nm", "g++")
def test_wide_instructions_stay_in_their_unit(native, tmp_path):
    # A weak symbol of such a unit could replace that of a unit for every machine.
    builder = native.builder()
    compile_cpu_check(builder, tmp_path, "g++", True, "-O1")
    commands = [
        [
            *["g++", *builder.COMMON, *builder.KERNEL, *flags, "-c"],
            *[OPS / "stage_step_isa.cc", "-DKERAS_BRANCHY_ISA=wide"],
            *["-o", tmp_path / f"step_{name}"],
        ]
        for name, flags in (("avx2", builder.AVX2), ("avx512", builder.AVX512))
    ]
    together(commands)
    for name in ("avx2.o", "avx512.o", "step_avx2", "step_avx512"):
        symbols = run("nm", "-C", "--defined-only", tmp_path / name).splitlines()
        kinds = {line.split()[1] for line in symbols}
        assert kinds <= set("TtrRdDbBV"), kinds
        assert sum(" T " in line for line in symbols) == 1
        weak = [line for line in symbols if " V " in line]
        assert all("DW.ref.__gxx_personality" in line for line in weak), weak
    assert "wrong, largest" in run(tmp_path / "cpu_check", "--quick")


def test_two_thousand_malformed_calls(library):
    worker = [sys.executable, TESTS / "malformed_calls.py", library]
    assert together([[*worker, seed, 1000] for seed in (1, 2)]) == ["1000\n", "1000\n"]


def test_one_thread_and_two_give_the_same_bits(library):
    worker = [sys.executable, TESTS / "gate_in_threads.py", library]
    one, two = together([[*worker, threads] for threads in (1, 2)])
    assert one == two and len(one) == 65


# ---- CUDA without a GPU -------------------------------------------------------------
@needs("g++")
def test_the_cuda_kernels_emulated_on_the_cpu(tmp_path):
    sources = (OPS / "cuda_check.cu", OPS / "exit_gate_cuda.cu")
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
    run(
        "g++",
        *flags,
        f"-I{TESTS / 'cuda_emulation'}",
        "-x",
        "c++",
        *sources,
        "-o",
        tmp_path / "check",
    )
    printed = run(tmp_path / "check", "--quick")
    assert re.search(r"^\d{5,} rows, 0 wrong", printed, re.MULTILINE), printed


@needs("nvcc", "make")
def test_cuda_check_builds_without_spills(tmp_path):
    shutil.copytree(OPS, tmp_path / "custom_ops")
    shutil.copy(ROOT / "Makefile", tmp_path)
    made = subprocess.run(
        ["make", "build/cuda_check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    printed = made.stdout + made.stderr
    used = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", printed)
    # 7 kernels for each of 4 types, 2 that merge, for 2 architectures
    assert len(used) == 2 * (4 * 7 + 2) and set(used) == {("0", "0")}
    assert max(map(int, re.findall(r"Used (\d+) registers", printed))) <= 64
    check = subprocess.run(
        [tmp_path / "build" / "cuda_check"], capture_output=True, text=True, check=True
    )
    assert "no CUDA device" in check.stdout or " 0 wrong" in check.stdout


# ---- Long ---------------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.timeout(1800)
@needs("g++")
def test_every_instruction_set_under_sanitizers(native, tmp_path):
    flags = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    check = compile_cpu_check(native.builder(), tmp_path, "g++", True, *flags)
    printed = run(check)
    assert printed.count(" 0 wrong") == len(printed.splitlines())


@pytest.mark.long
@needs("g++")
def test_more_than_2_to_the_31_logits(native, tmp_path):
    check = compile_cpu_check(native.builder(), tmp_path, "g++", True)
    printed = run(check, "--huge")
    assert printed.count("more than 2^31 logits: right") == printed.count(" 0 wrong")


@pytest.mark.long
@pytest.mark.timeout(1800)
@needs(CROSS, "qemu-aarch64")
def test_neon_by_emulation(native, tmp_path):
    check = compile_cpu_check(native.builder(), tmp_path, CROSS, False)
    assert "baseline" in (printed := run("qemu-aarch64", check, "--quick"))
    assert " 0 wrong" in printed


@pytest.mark.long
@pytest.mark.timeout(1800)
@needs("g++")
def test_the_op_under_sanitizers(native, tmp_path):
    library = native.builder().build(tmp_path, sanitize=True)
    preload = [
        run("g++", f"-print-file-name=lib{name}.so").strip() for name in ("asan", "ubsan")
    ]
    environment = {
        "LD_PRELOAD": " ".join(preload),
        # Python and TensorFlow leave memory to the end of the process.
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    digest = run(sys.executable, TESTS / "gate_in_threads.py", library, 2, **environment)
    assert len(digest) == 65
    calls = (sys.executable, TESTS / "malformed_calls.py", library, 3, 2000)
    assert run(*calls, **environment) == "2000\n"


@pytest.mark.long
@pytest.mark.timeout(1800)
@needs("g++")
def test_the_step_under_sanitizers(native, tmp_path):
    cache = tmp_path / "keras_branchy"
    native.builder().build_step(cache, sanitize=True)
    preload = [
        run("g++", f"-print-file-name=lib{name}.so").strip() for name in ("asan", "ubsan")
    ]
    printed = run(
        *[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        *[TESTS / "test_native_step.py", "-k", "not compiler and not damaged"],
        LD_PRELOAD=" ".join(preload),
        ASAN_OPTIONS="detect_leaks=0",
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert re.search(r"\d{3} passed", printed) and "failed" not in printed


@pytest.mark.long
@pytest.mark.timeout(1800)
@needs("g++")
def test_an_installed_wheel_has_the_op(native, tmp_path):
    tree, target = tmp_path / "tree", tmp_path / "target"
    for name in ("keras_branchy", "custom_ops"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
    ]
    run(*pip, "--target", target, tree, XDG_CACHE_HOME=str(tmp_path))
    code = "from keras_branchy import native; print(native.status().library)"
    installed = run(
        *[sys.executable, "-P", "-c", code],  # not the checkout, should it be the cwd
        PYTHONPATH=str(target),
        KERAS_BRANCHY_CUSTOM_OPS="on",
        XDG_CACHE_HOME=str(tmp_path / "empty"),
    )
    assert Path(installed.strip()).parent == target / "keras_branchy" / "custom_ops"
