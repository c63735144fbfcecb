# SPDX-License-Identifier: Apache-2.0
"""The published results, reproduced: one target a call.

    python benchmarks/reproduce.py lenet
    python benchmarks/reproduce.py alexnet --seeds 0 --minutes 10
    python benchmarks/reproduce.py --help       names the targets

A target trains what it needs, chooses thresholds on validation images, measures on the test
images, and writes JSON, CSV and figures. A call that was stopped, or that ran out of
`--minutes`, goes on from its last epoch when it is called again; what is trained is kept in
build/reproduce and used by every target that needs it. The default schedule is for two
cores, `--full` is the published one, `--quick` shows that the code runs. `--estimate` says
how long the trainings of a seed would take on this machine.

    python benchmarks/reproduce.py resnet --full --estimate
"""

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reproduce"
# In place of this folder, whose files TensorFlow would take for its own modules.
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "examples"))

from benchmarks.reproduction.targets import TARGETS, target  # noqa: E402

UNFINISHED = 75  # the exit code that says: call again
REHEARSED = 200  # images that are judged where only trainings are timed


def main():
    args = parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Many small functions are traced once each, of which TensorFlow warns.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    (estimate if args.estimate else reproduce)(args)


def reproduce(args):
    from benchmarks.reproduction.run import Run
    from benchmarks.reproduction.training import OutOfTime, Trainer

    until = time.monotonic() + 60 * args.minutes
    run = Run(
        Trainer(args.store, until), args.schedule, args.seeds, args.times, args.made_up
    )
    try:
        found = target(args.target)(run)
    except OutOfTime:
        print(f"{args.minutes:g} minutes are over. Call it again to go on.")
        sys.exit(UNFINISHED)
    finish(args, found)


def finish(args, found):
    import evidence

    from benchmarks.reproduction import figures, output

    path = args.json or RESULTS / f"{args.target}.json"
    document = {
        "target": args.target,
        "schedule": args.schedule,
        "seeds": args.seeds,
        "made_with": evidence.surroundings(),
        **found,
    }
    output.write(path, json.loads(json.dumps(document)))
    drawn = figures.draw(document, path.parent)
    print(f"Wrote {', '.join(map(str, [path, path.with_suffix('.csv'), *drawn]))}.")


def estimate(args):
    """How long the trainings of one seed take here."""
    import evidence

    from benchmarks.reproduction.estimate import Estimator
    from benchmarks.reproduction.output import hours
    from benchmarks.reproduction.run import Run

    estimator = Estimator()
    run = Run(estimator, args.schedule, args.seeds[:1], timed=False, made_up=args.made_up)
    run.judged = REHEARSED
    target(args.target)(run)
    total = sum(row["hours"] for row in estimator.rows)
    print(f"{args.target}, schedule {args.schedule}: {hours(total)} a seed.")
    if args.json is not None:
        document = {
            "target": args.target,
            "schedule": args.schedule,
            "hours": total,
            "rows": estimator.rows,
            "made_with": evidence.surroundings(),
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "target", choices=TARGETS, help=", ".join(TARGETS), metavar="TARGET"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    schedules = parser.add_mutually_exclusive_group()
    for name, text in (
        ("full", "the published schedule and network, for a GPU"),
        ("quick", "a rehearsal: one epoch on a few images"),
    ):
        schedules.add_argument(
            f"--{name}", dest="schedule", action="store_const", const=name, help=text
        )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then stop")
    parser.add_argument("--json", type=Path, help="where to write; beside it go the rest")
    parser.add_argument("--store", type=Path, default=ROOT / "build" / "reproduce")
    parser.add_argument("--no-times", dest="times", action="store_false")
    parser.add_argument(
        "--estimate", action="store_true", help="only say how long it would train"
    )
    parser.add_argument("--made-up", action="store_true", help="images without a data set")
    args = parser.parse_args()
    args.schedule = args.schedule or "default"
    return checked(parser, args)


def checked(parser, args):
    """Before anything slow is imported."""
    rehearsed = args.made_up or args.schedule == "quick"
    if args.json is None and rehearsed and not args.estimate:
        parser.error("a rehearsal needs --json, or would take the results' place")
    if args.json is not None and args.json.suffix != ".json":
        parser.error(f"--json names a file that ends in .json, not {args.json}")
    return args


if __name__ == "__main__":
    main()
