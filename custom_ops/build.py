# SPDX-License-Identifier: Apache-2.0
"""Builds the native exit gate and the native step: g++, and nvcc where there is one.

    python custom_ops/build.py [--directory DIR] [--force] [--sanitize]

The gate is an op of TensorFlow; the step is what staged inference without TensorFlow does
between two stages, and needs a compiler only. `setup.py` runs this at installation,
`keras_branchy.native` and `keras_branchy.native_step` at their first use. It does not
import TensorFlow, which takes seconds, and may be absent while pip builds.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "BuildError",
    "build",
    "build_step",
    "cache_directory",
    "find",
    "find_step",
    "library_name",
    "stamp_of",
    "step_library_name",
]

SOURCES = Path(__file__).resolve().parent
SHARED = ("build.py", "lanes.h", "isa.h", "isa.cc")
COMPILED = (
    *SHARED,
    "exit_gate.h",
    "exit_gate_op.cc",
    "exit_gate_cpu.cc",
    "exit_gate_cpu_isa.cc",
    "exit_gate_cuda.cu",
)
STEP = (*SHARED, "stage_step.h", "stage_step.cc", "stage_step_isa.cc")
STAMP = b"\nkeras_branchy "  # then JSON, at the very end of the library

COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# GCC's own AVX-512 header reads variables that it says are undefined on purpose.
KERNEL = [
    *["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"],
    *["-Wno-psabi", "-Wno-maybe-uninitialized"],
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
# Abseil does not compile with the checks that are left out, and lays out its containers
# differently than TensorFlow was built with where it sees ASan.
SANITIZE = [
    *["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1", "-O1"],
    "-fno-sanitize=null,vptr,returns-nonnull-attribute,nonnull-attribute",
    "-U__SANITIZE_ADDRESS__",
]
LINK = ["-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic-functions", "-Wl,-z,defs"]
GPUS = ["arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]"]


class BuildError(RuntimeError):
    """A library cannot be built, or is not one that was built here."""


class _NvccError(BuildError):
    """Only the CUDA kernel cannot be built."""


# ---- What there is ------------------------------------------------------------------
def find_tensorflow() -> tuple[Path, str]:
    """The installed TensorFlow's directory and version.

    Raises:
        BuildError: If there is none.
    """
    # pip builds in an environment that hides site-packages: look there by path too.
    places = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    spec = importlib.util.find_spec("tensorflow")
    if spec is not None and spec.submodule_search_locations:
        places.insert(0, Path(spec.submodule_search_locations[0]).parent)
    for place in places:
        if (place / "tensorflow" / "include").is_dir():
            for found in importlib.metadata.distributions(path=[str(place)]):
                if found.name in ("tensorflow", "tensorflow-cpu", "tf-nightly"):
                    return place / "tensorflow", found.version
    raise BuildError("TensorFlow is not installed; `pip install tensorflow`.")


def minor(version: str) -> str:
    """The part of a TensorFlow version that a compiled op is bound to."""
    return ".".join(version.split(".")[:2])


def find_compiler() -> str:
    """The C++ compiler: `$CXX`, or g++, or c++.

    Raises:
        BuildError: If the platform has no kernel or there is no compiler.
    """
    if sys.platform != "linux":
        raise BuildError(f"There is no native kernel for {sys.platform}, only Linux.")
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and shutil.which(name):
            return name
    raise BuildError("There is no C++ compiler; install g++ (Debian: apt install g++).")


def find_cuda() -> tuple[str, Path] | None:
    """The path of nvcc and its static runtime library, if both are there."""
    nvcc = shutil.which(os.environ.get("NVCC", "nvcc"))
    if nvcc is None:
        return None
    # nvcc may be a wrapper; it knows its own home.
    trial = [nvcc, "--dryrun", "-c", str(SOURCES / "exit_gate_cuda.cu"), "-o", "x.o"]
    run = subprocess.run(trial, capture_output=True, text=True, check=False)
    homes = re.findall(r"^#\$ _?TOP=(.+)$", run.stdout + run.stderr, re.MULTILINE)
    for home in homes:
        for lib in ("lib64", "lib", "targets/x86_64-linux/lib"):
            runtime = Path(home.strip(), lib, "libcudart_static.a")
            if runtime.exists():
                return nvcc, runtime.resolve()
    return None


# ---- Names and stamps ---------------------------------------------------------------
def library_name(version: str) -> str:
    """The file name of the op's library for a TensorFlow version and these sources."""
    return f"exit_gate-tf{minor(version)}-{_digest(COMPILED)}.so"


def step_library_name() -> str:
    """The file name of the step's library for these sources."""
    return f"stage_step-{_digest(STEP)}.so"


def _digest(sources: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in sources:
        digest.update((SOURCES / name).read_bytes())
    return digest.hexdigest()[:12]


def cache_directory() -> Path:
    """Where a library is kept that was built at first use."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "keras_branchy"


def find(version: str) -> Path | None:
    """The op's library for a TensorFlow version: beside the sources, or in the cache."""
    return _find(library_name(version))


def find_step() -> Path | None:
    """The step's library: beside the sources, or in the cache."""
    return _find(step_library_name())


def _find(name: str) -> Path | None:
    for directory in (SOURCES, cache_directory()):
        if (path := directory / name).exists():
            return path
    return None


def stamp_of(path: Path) -> dict[str, Any]:
    """What `build` wrote at the end of a library, once its contents are verified.

    Loading half a library ends in a signal, not in an exception.

    Raises:
        BuildError: If the file is truncated, altered, or not from here.
    """
    content, found, stamp = path.read_bytes().rpartition(STAMP)
    try:
        facts = json.loads(stamp) if found else {}
    except ValueError:
        facts = {}
    if facts.get("sha256") != hashlib.sha256(content).hexdigest():
        raise BuildError(f"{path} is truncated or altered. Delete it.")
    return facts


# ---- Compiling ----------------------------------------------------------------------
def build(
    directory: Path | None = None, *, force: bool = False, sanitize: bool = False
) -> Path:
    """Builds the library unless it is there; about 20 s on two cores.

    Args:
        directory: Where to put it; the user's cache if `None`.
        force: Build again, even if it is there or failed before.
        sanitize: Build the CPU part with ASan and UBSan, for a process that preloads
            libasan. Give it a directory of its own.

    Returns:
        The library's path.

    Raises:
        BuildError: If it cannot be built. The cause is kept beside it, so that the
            next process does not try for seconds again; `force` does.
    """
    home, version = find_tensorflow()
    compiler = find_compiler()
    return _built(
        directory,
        library_name(version),
        force,
        lambda path: _compile(path, home, version, compiler, sanitize),
    )


def build_step(
    directory: Path | None = None, *, force: bool = False, sanitize: bool = False
) -> Path:
    """Builds the step's library unless it is there; 2 s on two cores.

    Arguments, result and errors are those of `build`.
    """
    compiler = find_compiler()
    extra = SANITIZE if sanitize else []
    return _built(
        directory,
        step_library_name(),
        force,
        lambda path: _compile_step(path, compiler, extra),
    )


def _built(
    directory: Path | None, name: str, force: bool, compile_to: Callable[[Path], None]
) -> Path:
    """The library of that name in a directory, compiled if need be."""
    directory = Path(directory or cache_directory())
    path = directory / name
    failure = path.with_suffix(".error")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _lock(directory / ".lock"):
            if force:
                failure.unlink(missing_ok=True)
            elif path.exists():
                return path
            elif failure.exists():
                raise BuildError(f"{failure.read_text()} (recorded in {failure})")
            try:
                compile_to(path)
            except BuildError as error:
                failure.write_text(str(error))
                raise
    except OSError as error:
        raise BuildError(f"Cannot write to {directory}: {error}") from error
    return path


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl  # Linux only, as is the op

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(path: Path, home: Path, version: str, compiler: str, sanitize: bool) -> None:
    cuda = None if sanitize else find_cuda()
    extra = SANITIZE if sanitize else []
    problem = None if cuda else "nvcc was not found when the op was built"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as scratch:
        made = Path(scratch)
        if cuda is not None:
            try:
                _compile_parts(made, home, compiler, cuda, [])
            except _NvccError as error:
                cuda, problem = None, str(error)
        if cuda is None:
            _compile_parts(made, home, compiler, None, extra)
        library = made / "library.so"
        _run([*_link_command(made, home, compiler, cuda, library), *extra])
        _stamp(library, tensorflow=version, cuda_problem=problem)
        os.replace(library, path)


def _compile_step(path: Path, compiler: str, extra: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as scratch:
        made = Path(scratch)
        parts = {"isa": ("isa.cc", KERNEL), "step": ("stage_step.cc", KERNEL)}
        parts |= _every_isa("stage_step_isa.cc")
        _together([[*job, *extra] for job in _jobs(made, compiler, parts)])
        library = made / "library.so"
        objects = map(str, sorted(made.glob("*.o")))
        _run([compiler, "-shared", "-o", str(library), *objects, *LINK, "-lm", *extra])
        _stamp(library)
        os.replace(library, path)


def _compile_parts(
    made: Path,
    home: Path,
    compiler: str,
    cuda: tuple[str, Path] | None,
    extra: list[str],
) -> None:
    jobs = _commands(made, home, compiler, with_cuda=cuda is not None)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = [pool.submit(_run, [*job, *extra]) for job in jobs]
        if cuda is not None:
            pool.submit(_run, _nvcc_command(made, cuda[0]), _NvccError).result()
        for part in parts:
            part.result()


def _commands(made: Path, home: Path, compiler: str, *, with_cuda: bool) -> list[list[str]]:
    tensorflow = ["-isystem", str(home / "include"), "-D_GLIBCXX_USE_CXX11_ABI=1"]
    tensorflow += ["-DEIGEN_MAX_ALIGN_BYTES=64", "-O2"]
    if with_cuda:
        tensorflow.append("-DKERAS_BRANCHY_CUDA")
    parts = {
        "op": ("exit_gate_op.cc", tensorflow),
        "cpu": ("exit_gate_cpu.cc", KERNEL),
        "isa": ("isa.cc", KERNEL),
        **_every_isa("exit_gate_cpu_isa.cc"),
    }
    return _jobs(made, compiler, parts)


def _every_isa(source: str) -> dict[str, tuple[str, list[str]]]:
    """A kernel's builds, by the namespace of each."""
    parts = {"baseline": (source, KERNEL)}
    if sysconfig.get_platform() == "linux-x86_64":
        parts["avx2"] = (source, [*KERNEL, *AVX2])
        parts["avx512"] = (source, [*KERNEL, *AVX512])
    return parts


def _jobs(
    made: Path, compiler: str, parts: dict[str, tuple[str, list[str]]]
) -> list[list[str]]:
    return [
        [
            *[compiler, *COMMON, *flags, f"-DKERAS_BRANCHY_ISA={name}", "-c"],
            *[str(SOURCES / source), "-o", str(made / f"{name}.o")],
        ]
        for name, (source, flags) in parts.items()
    ]


def _nvcc_command(made: Path, nvcc: str) -> list[str]:
    return [
        *[nvcc, "-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden"],
        *[part for gpu in GPUS for part in ("-gencode", gpu)],
        *["-c", str(SOURCES / "exit_gate_cuda.cu"), "-o", str(made / "cuda.o")],
    ]


def _link_command(
    made: Path,
    home: Path,
    compiler: str,
    cuda: tuple[str, Path] | None,
    library: Path,
) -> list[str]:
    # TensorFlow exports stubs of CUDA 12 under the runtime's names. The static runtime
    # must stand before it, or nvcc's code binds to them without a word.
    runtime = [str(cuda[1]), "-ldl", "-lrt", "-lpthread"] if cuda else []
    return [
        *[compiler, "-shared", "-o", str(library)],
        *map(str, sorted(made.glob("*.o"))),
        *runtime,
        *[f"-L{home}", "-l:libtensorflow_framework.so.2"],
        *LINK,
    ]


def _together(commands: list[list[str]]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(_run, command) for command in commands]:
            done.result()


def _run(command: list[str], error: type[BuildError] = BuildError) -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        output = (run.stderr or run.stdout).strip()
        raise error(f"{' '.join(command)}\nfailed:\n{output[:2000]}")


def _stamp(library: Path, **facts: str | None) -> None:
    facts = {"sha256": hashlib.sha256(library.read_bytes()).hexdigest(), **facts}
    with open(library, "ab") as file:
        file.write(STAMP + json.dumps(facts).encode())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="default: the user's cache")
    parser.add_argument("--force", action="store_true", help="build it again")
    parser.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    arguments = parser.parse_args()
    given = {"force": arguments.force, "sanitize": arguments.sanitize}
    failed = []
    for name, make in (("step", build_step), ("exit gate", build)):
        try:
            path = make(arguments.directory, **given)
            print(f"{path}: {stamp_of(path)}")
        except BuildError as error:
            failed.append(f"The native {name} was not built. {error}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
