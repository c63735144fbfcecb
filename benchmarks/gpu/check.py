# SPDX-License-Identifier: Apache-2.0
"""Checks the kernel and staged inference on an NVIDIA GPU, part by part, unattended.

    python benchmarks/gpu/check.py                   runs what is not there yet
    python benchmarks/gpu/check.py --list            the parts, and where each stands
    python benchmarks/gpu/check.py --part grid       one part; may be given again
    python benchmarks/gpu/check.py --again           runs complete parts anew
    python benchmarks/gpu/check.py --stop-after 25   begins nothing after 25 minutes
    python benchmarks/gpu/check.py --rehearse        the same on the CPU, in small
    python benchmarks/gpu/check.py --publish         results to benchmarks/results/gpu

Every part runs in a process of its own, for eight minutes at most, and keeps what it has
measured: one that is cut off goes on with the next call, and at once if it got anywhere. A
part that lacks something says what. docs/gpu.md is the guide. TENSORFLOW_ENV may name a
shell script that sets up the environment of the TensorFlow parts, where it is not the one
that this runs in. Exit status: 0 if all is there and right, 1 if something is wrong or not
finished, 2 if something could not run.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import threading
import time

import gpu_plan
import gpu_report
from gpu_rows import COULD_NOT, HERE, ROOT, digest_of, read_json, write_json

OUT = ROOT / "build" / "gpu"
REHEARSAL = ROOT / "build" / "gpu-rehearsal"
PUBLISHED = ROOT / "benchmarks" / "results" / "gpu"
GOES = 6  # of a part that is cut off and got somewhere each time


# ---- One part ------------------------------------------------------------------------
def stamp(part, args):
    """What the rows of a part depend on."""
    carried = read_json(args.carried / "carried.json") if args.carried else None
    made = str((carried or {}).get("made", args.carried))
    return f"{digest_of(part.depends)} {made if part.carries else ''}".strip()


def standing(part, args):
    """The record of a complete part, or None."""
    record = read_json(args.out / f"{part.name}.json")
    if record and record["state"] == "done" and record["stamp"] == stamp(part, args):
        return record
    return None


def perform(part, args):
    """Runs a part until it is through, and writes its record."""
    rows_file = args.out / f"{part.name}.rows.json"
    if args.again:
        rows_file.unlink(missing_ok=True)
    # Of the sources as they are now: edited while it runs, it is not complete.
    begun = stamp(part, args)
    started, before = time.monotonic(), -1
    for go in range(1, GOES + 1):
        state, reason = one_go(part, args, rows_file, begun, append=go > 1)
        got = len((read_json(rows_file) or {}).get("rows", []))
        if state != "timed out" or got <= before or args.left() <= 0:
            break
        before = got
        print(f"{part.name}: cut off with {got} rows; going on", flush=True)
    found = read_json(rows_file) or {}
    current = found.get("stamp") == begun
    record = {
        "part": part.name,
        "about": part.about,
        "state": state,
        "reason": reason,
        "seconds": round(time.monotonic() - started, 1),
        "stamp": begun,
        "rehearsal": args.rehearse,
        "made_with": found.get("made_with") if current else None,
        "rows": found.get("rows", []) if current else [],
    }
    write_json(args.out / f"{part.name}.json", record)
    return record


def one_go(part, args, rows_file, begun, append):
    """Runs a part's program once: its state, and the reason where it is not done."""
    log = args.out / f"{part.name}.log"
    with open(log, "a" if append else "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command_of(part, args, rows_file, begun),
            cwd=ROOT,
            env=environment(args),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        lines = []
        reader = threading.Thread(target=copy, args=(process.stdout, file, lines))
        reader.start()
        limit = min(part.seconds if args.limit is None else args.limit, args.hard_left())
        try:
            status = process.wait(max(limit, 1))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_group(process)
            reader.join()  # Whoever held the pipe is gone.
            process.stdout.close()
    if status is None:
        return "timed out", f"ended after its {limit:.0f} seconds"
    return verdict(status, lines)


def copy(source, file, lines):
    """Passes on what a part prints: to the screen, the log, and the last lines."""
    for line in source:
        sys.stdout.write(f"  {line}")
        sys.stdout.flush()
        file.write(line)
        file.flush()
        lines.append(line.rstrip())
        del lines[:-400]


def end_group(process):
    """Ends the part and whatever it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def verdict(status, lines):
    if status == 0:
        return "done", None
    for mark, state in (("COULD NOT RUN: ", "could not run"), ("FAILED: ", "failed")):
        said = [line[len(mark) :] for line in lines if line.startswith(mark)]
        if said and (state == "failed" or status == COULD_NOT):
            return state, "; ".join(said)
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    return "failed", f"{how}: {last[-300:]}"


def command_of(part, args, rows_file, begun):
    program, *rest = part.command
    command = [args.python, str(HERE / program), *rest, "--rows", str(rows_file)]
    command += ["--stamp", begun]
    command += ["--rehearse"] if args.rehearse else []
    command += ["--carried", str(args.carried)] if args.carried else []
    setup = os.environ.get("TENSORFLOW_ENV")
    if part.tensorflow and setup:
        return ["bash", "-c", '. "$0" && exec "$@"', setup, *command]
    return command


def environment(args):
    """Memory is not taken in advance, since PyTorch and JAX share the GPU."""
    made = {
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "KERAS_BACKEND": "tensorflow",
        "PYTHONUNBUFFERED": "1",
    }
    if args.carried and (args.carried / "keras_branchy").is_dir():
        made["XDG_CACHE_HOME"] = str(args.carried)  # the op, built elsewhere
    return {**made, **os.environ}


# ---- All parts -----------------------------------------------------------------------
def check(parts, args):
    """Runs what is wanted; returns the records by name, None where nothing ran."""
    args.out.mkdir(parents=True, exist_ok=True)
    records = {}
    for part in parts:
        records[part.name] = standing(part, args)
        if records[part.name] and not args.again:
            print(f"{part.name}: complete", flush=True)
            continue
        if args.left() <= 0:
            records[part.name] = None
            continue
        print(f"{part.name}: {part.about}", flush=True)
        records[part.name] = record = perform(part, args)
        why = f": {record['reason']}" if record["reason"] else ""
        print(f"{part.name}: {record['state']} in {record['seconds']} s{why}", flush=True)
        gpu_report.assemble(args.out, gpu_plan.parts())
    return records


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {part.name: part for part in gpu_plan.parts()}
    parser.add_argument("--part", action="append", choices=list(parts), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--again", action="store_true", help="complete parts too")
    parser.add_argument("--out", type=type(ROOT), help="build/gpu; a folder for results")
    parser.add_argument("--carried", type=type(ROOT), help="the folder of carry.py")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in small")
    parser.add_argument("--stop-after", type=float, default=math.inf, metavar="MINUTES")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="of each part")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--publish", action="store_true", help="copy the results")
    args = parser.parse_args(argv)
    args.out = (args.out or (REHEARSAL if args.rehearse else OUT)).resolve()
    args.carried = args.carried and args.carried.resolve()
    if args.rehearse and (args.publish or PUBLISHED in (args.out, *args.out.parents)):
        parser.error("a rehearsal is no result: it is not written to benchmarks/results")
    if args.limit is not None and args.limit > gpu_plan.LIMIT:
        parser.error(f"--limit must be at most {gpu_plan.LIMIT} seconds")
    end = time.monotonic() + 60 * args.stop_after
    args.left = lambda: end - time.monotonic()
    # What runs when time is up may take a minute more.
    args.hard_left = lambda: args.left() + 60
    args.parts = [parts[name] for name in args.part or parts]
    return args


def main():
    args = parse_args()
    # A job that is ended from outside ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if args.publish:
        sys.exit(gpu_report.publish(args.out, PUBLISHED))
    if args.list:
        for part in args.parts:
            record = read_json(args.out / f"{part.name}.json")
            state = "complete" if standing(part, args) else (record or {}).get("state")
            print(f"{part.name:22} {state or 'not run':14} {part.about}")
        return
    records = check(args.parts, args)
    text, status = gpu_report.summary(records)
    (args.out / "summary.txt").write_text(text, "utf-8")
    print(text, end="")
    sys.exit(status)


if __name__ == "__main__":
    main()
