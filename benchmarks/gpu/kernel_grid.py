# SPDX-License-Identifier: Apache-2.0
"""Builds custom_ops/cuda_check and runs it, alone or under compute-sanitizer.

Alone it takes the whole hostile grid against float64 and then the bandwidth; under a tool,
the short grid. A rehearsal builds it with g++ against the emulation of the tests.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gpu_rows
from gpu_rows import ROOT, CouldNotRunError

SOURCES = [ROOT / "custom_ops" / name for name in ("cuda_check.cu", "exit_gate_cuda.cu")]
TALLY = re.compile(r"^(\d+) rows, (\d+) wrong, largest error ([\d.]+)", re.MULTILINE)
FOUND = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
OPTIONS = {"memcheck": ["--leak-check", "full"], "racecheck": ["--racecheck-report", "all"]}


def main(args, rows):
    if rows.rows:
        return None
    if not args.rehearse:
        gpu_rows.need_gpu()
    with tempfile.TemporaryDirectory() as scratch:
        program = build(Path(scratch), args.rehearse)
        if args.tool == "none":
            return whole_grid(program, Path(scratch), args, rows)
        return sanitized(program, args, rows)


def need_program(name, hint):
    """Its path.

    Raises:
        CouldNotRunError: If it is not there.
    """
    path = shutil.which(name)
    if path is None:
        raise CouldNotRunError(f"there is no {name} on the PATH; {hint}")
    return path


def build(folder, rehearse):
    program = folder / "cuda_check"
    if rehearse:
        command = [need_program("g++", "install a C++ compiler"), "-std=c++17", "-O2"]
        command += [f"-I{ROOT / 'tests' / 'cuda_emulation'}", "-x", "c++"]
    else:
        command = [need_program("nvcc", "it comes with the CUDA toolkit"), "-std=c++17"]
        command += ["-O3", "-lineinfo", "-arch=native"]
    subprocess.run([*command, *map(str, SOURCES), "-o", str(program)], check=True)
    return program


def whole_grid(program, scratch, args, rows):
    times = scratch / "times.json"
    command = [program, *(["--quick"] if args.rehearse else ["--json", times])]
    tally = run_check(command)
    rows.add(tool="none", grid="short" if args.rehearse else "whole", **tally)
    if times.exists():
        measured = json.loads(times.read_text("utf-8"))
        for row in measured["rows"]:
            rows.add(tool="bandwidth", **row)
        rows.add(tool="launch", median_us=measured["launch_us"])
    return wrong(tally)


def sanitized(program, args, rows):
    hint = "it comes with the CUDA toolkit"
    if args.rehearse:
        raise CouldNotRunError("compute-sanitizer has nothing to look at on a CPU")
    sanitizer = need_program("compute-sanitizer", hint)
    command = [sanitizer, "--tool", args.tool, *OPTIONS.get(args.tool, [])]
    tally = run_check([*command, program, "--quick"], expect_tool=True)
    rows.add(tool=args.tool, grid="short", **tally)
    found = tally["reported"]
    return wrong(tally) + ([f"{args.tool} reports {found}"] if found else [])


def run_check(command, expect_tool=False):
    """Runs the check, passes on what it prints, and returns what it counted.

    Raises:
        RuntimeError: If it did not come to its end.
    """
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout[-8000:], flush=True)
    return counted(done.stdout, done.returncode, expect_tool)


def counted(text, status, expect_tool):
    """The figures of a check's output; it counts only what is there to be read."""
    tally = TALLY.search(text)
    if tally is None or (status and int(tally[2]) == 0 and not expect_tool):
        raise RuntimeError(f"cuda_check ended with status {status}, without its tally")
    made = {
        "checked": int(tally[1]),
        "wrong": int(tally[2]),
        "largest_error_of_tolerance": float(tally[3]),
    }
    if expect_tool:
        reports = [int(a or b) for a, b in FOUND.findall(text)]
        if not reports:
            raise RuntimeError("compute-sanitizer printed no summary")
        made["reported"] = sum(reports)
    return made


def wrong(tally):
    if tally["checked"] == 0:
        return ["the grid is empty"]
    return [f"{tally['wrong']} rows are wrong"] if tally["wrong"] else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", required=True)
    sys.exit(gpu_rows.run(main, parser))
