# SPDX-License-Identifier: Apache-2.0
"""Staged inference beside what people would use instead: every runtime, in turn.

    python benchmarks/inference.py --json FILE [--figures DIR] [--starts 3]
    python benchmarks/inference.py --networks b_lenet --batches 32 256 --quick
    python benchmarks/inference.py --streaming --json FILE
    python benchmarks/inference.py --check FILE

Each runtime has a process of its own, and only one of them runs at a time. What is timed
begins and ends in NumPy: images in, labels out, with heads, gate, selection and copies. A
call that was stopped goes on where it was; `--prepare` exports and does nothing else.
Trained networks come from build/reproduce. docs/performance.md says what each figure means.
"""

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In place of this folder, whose files TensorFlow would take for its own modules.
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "examples"))

from benchmarks.speed.networks import NETWORKS, UNTRAINED, NotTrainedError  # noqa: E402

BATCHES = (1, 8, 32, 256, 1024)
SECONDS, QUICK = 6.0, 1.0


def main():
    args = parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        sys.exit(act(args))
    except NotTrainedError as error:
        sys.exit(str(error))


def act(args):
    if args.check is not None:
        return check(args)
    run = run_of(args)
    if args.streaming:
        return stream(args, run)
    if not args.assemble:
        run.prepare()
    if not args.prepare:
        if not args.assemble:
            run.measure()
        finish(args, run)
    return 1 if run.failures else 0


def run_of(args, **changed):
    from benchmarks.speed.run import Run
    from benchmarks.speed.team import Torch

    given = {
        "names": args.networks,
        "batches": args.batches,
        "threads": args.threads,
        "seconds": args.seconds,
        "store": args.store,
        "work": args.work,
        "torch": Torch(args.torch),
        "runtimes": args.runtimes,
        "starts": args.starts,
        **changed,
    }
    return Run(**given)


def finish(args, run):
    """Writes what is there, and draws it."""
    from benchmarks.speed import document

    found = {"made_with": document.surroundings(run.torch), **run.assembled()}
    found["made_with"] |= {"seconds_a_cell": run.seconds, "starts": run.starts}
    if args.json is not None:
        kept = json.loads(args.json.read_text("utf-8")) if args.json.exists() else {}
        found["streaming"] = kept.get("streaming", [])
        document.write(args.json, found)
        print(f"Wrote {args.json}.")
    if args.figures is not None:
        from benchmarks.speed import figures

        drawn = figures.draw(found, args.figures)
        print(f"Drew {', '.join(map(str, drawn))}.")


def stream(args, run):
    """A million images through the iterator; added to the file that is there."""
    from benchmarks.speed import document

    found = [run.stream(name, args.images) for name in args.networks]
    print(json.dumps(found, indent=1))
    if args.json is not None:
        kept = json.loads(args.json.read_text("utf-8")) if args.json.exists() else {}
        made = document.surroundings(run.torch)
        kept["streaming"] = [{**row, "made_with": made} for row in found]
        document.write(args.json, kept)
        print(f"Wrote {args.json}.")
    return 0


def check(args):
    """1 where a ratio is worse than the committed one."""
    from benchmarks.speed import check as checks
    from benchmarks.speed import document

    if not args.check.exists():
        sys.exit(
            f"{args.check} is not there, so there is nothing to compare with. Measure it "
            f"first: python benchmarks/inference.py --json {args.check}"
        )
    committed = json.loads(args.check.read_text("utf-8"))
    before, now = committed["made_with"]["processor"], document.processor()
    if before != now:
        print(f"The committed ratios are of another processor: {before}, here {now}.")
    name = checks.network(args.store)

    given = {"names": [name], "work": args.work / "check"}
    run = run_of(args, **given, batches=[*checks.BATCHES], starts=checks.STARTS)
    run.forget()
    run.measure()
    found = checks.compare(committed["rows"], run.assembled()["rows"])
    for _ in range(checks.AGAIN):
        run.starts += 1
        for batch, threads in checks.seem_worse(found):
            print(f"Batch {batch} on {threads} threads seems worse: once more.", flush=True)
            place = {"batches": [batch], "threads": [threads]}
            run_of(args, **given, **place, starts=run.starts).measure()
        found = checks.compare(committed["rows"], run.assembled()["rows"])
    told, fine = checks.conclusion(found)
    print(checks.table(found))
    print(told)
    return 0 if fine else 1


def parse_args():
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draws them there")
    known = [*NETWORKS, UNTRAINED.name]
    parser.add_argument("--networks", nargs="+", choices=known, default=[*NETWORKS])
    parser.add_argument("--batches", nargs="+", type=int, default=[*BATCHES])
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores}))
    parser.add_argument("--runtimes", nargs="+", help="only these; all by default")
    parser.add_argument("--seconds", type=float, help="for the turns of a cell")
    parser.add_argument("--quick", action="store_true", help="a rehearsal, no result")
    parser.add_argument("--streaming", action="store_true", help="the iterator, alone")
    parser.add_argument("--images", type=int, default=1_000_000, help="of the stream")
    parser.add_argument("--check", type=Path, metavar="FILE", help="against its ratios")
    parser.add_argument("--starts", type=int, default=1, help="of every cell, in turn")
    parser.add_argument("--prepare", action="store_true", help="export, measure nothing")
    parser.add_argument(
        "--assemble", action="store_true", help="what was measured, by several calls too"
    )
    parser.add_argument("--store", type=Path, default=ROOT / "build" / "reproduce")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "inference")
    parser.add_argument(
        "--torch", metavar="PYTHON_OR_PATH", help="a Python, or a folder, with PyTorch"
    )
    args = parser.parse_args()
    if args.starts < 1:
        parser.error(f"--starts takes a number from 1 on. Received: {args.starts}.")
    args.seconds = args.seconds or (QUICK if args.quick else SECONDS)
    if args.streaming and args.networks == [*NETWORKS]:
        args.networks = ["b_lenet"]
    return args


if __name__ == "__main__":
    main()
