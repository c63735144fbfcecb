# SPDX-License-Identifier: Apache-2.0
"""Staged inference beside what people would use instead: every runtime, in turn.

    python benchmarks/inference.py --json FILE [--figures DIR]
    python benchmarks/inference.py --networks b_lenet --batches 32 256 --quick
    python benchmarks/inference.py --streaming --json FILE
    python benchmarks/inference.py --check FILE

Each runtime has a process of its own, and only one of them runs at a time. What is timed
begins and ends in NumPy: images in, labels out, with heads, gate, selection and copies. A
call that was stopped goes on where it was; `--prepare` exports and does nothing else.
Trained networks come from build/reproduce. docs/performance.md says what each figure means.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In place of this folder, whose files TensorFlow would take for its own modules.
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "examples"))

from benchmarks.speed.networks import NETWORKS, NotTrainedError  # noqa: E402

BATCHES = (1, 8, 32, 256, 1024)
SECONDS, QUICK = 8.0, 1.0


def main():
    args = parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    from benchmarks.speed.run import Run
    from benchmarks.speed.team import Torch

    run = Run(
        args.networks,
        args.batches,
        args.threads,
        args.seconds,
        args.store,
        args.work,
        Torch(args.torch),
    )
    try:
        return act(args, run)
    except NotTrainedError as error:
        sys.exit(str(error))


def act(args, run):
    run.prepare()
    if args.prepare:
        return
    run.measure()
    document = run.assembled()
    if args.json is not None:
        finish(args, document)


def finish(args, document):
    import evidence

    from benchmarks.speed.run import as_text

    document = {"made_with": evidence.surroundings(), **document}
    args.json.write_text(as_text(document), "utf-8")
    print(f"Wrote {args.json}.")


def parse_args():
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draws them there")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--batches", nargs="+", type=int, default=[*BATCHES])
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores}))
    parser.add_argument("--seconds", type=float, help="for the turns of a cell")
    parser.add_argument("--quick", action="store_true", help="a rehearsal, no result")
    parser.add_argument("--prepare", action="store_true", help="export, measure nothing")
    parser.add_argument("--store", type=Path, default=ROOT / "build" / "reproduce")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "inference")
    parser.add_argument(
        "--torch", metavar="PYTHON_OR_PATH", help="a Python, or a folder, with PyTorch"
    )
    args = parser.parse_args()
    args.seconds = args.seconds or (QUICK if args.quick else SECONDS)
    return args


if __name__ == "__main__":
    main()
