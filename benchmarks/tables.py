# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README and docs from the files in benchmarks/results.

    python benchmarks/tables.py            writes them
    python benchmarks/tables.py --check    says which differ from their results

A document marks the place: `<!-- results: NAME -->` and `<!-- /results -->`, NAME being a
function of this file.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REGION = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def mnist_b_lenet():
    """The demo's report, `make demo` on MNIST."""
    report = json.loads((RESULTS / "mnist_b_lenet.json").read_text("utf-8"))
    test, cost, time = report["test"], report["cost"], report["time_per_image"]
    shares = " and ".join(f"{100 * share:.1f} %" for share in test["exit_shares"])
    exits = ", ".join(f"{100 * accuracy:.2f} %" for accuracy in test["exits"].values())
    rows = [
        (
            "accuracy on the test set",
            f"{100 * test['plain']:.2f} %",
            f"{100 * test['staged']:.2f} %",
            f"{100 * (test['staged'] - test['plain']):+.2f} points",
        ),
        ("every image at exit 1, at exit 2", "", exits, ""),
        ("leave at exit 1, at exit 2", "", shares, ""),
    ]
    for key, name in (("heads_counted", "everything"), ("heads_left_out", "trunk only")):
        rows.append(
            (
                f"multiplications an image, {name}",
                f"{cost['plain_macs'] / 1e6:.3f} M",
                f"{cost['expected_macs'][key] / 1e6:.3f} M",
                f"{cost['times_less'][key]:.2f} times fewer",
            )
        )
    for size, taken in time.items():
        rows.append(
            (
                f"µs an image, {size.replace('_', ' of ')}",
                f"{1e3 * taken['plain']['median']:.1f}",
                f"{1e3 * taken['staged']['median']:.1f}",
                speed(taken["times_as_fast"]["median"]),
            )
        )
    made = report["made_with"]
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    return (
        markdown(("", "plain LeNet", "B-LeNet", ""), rows)
        + f"\n{report['data']}. Seed {report['seed']}, {report['seconds']:.0f} s in all, "
        f"{made['cores']} cores of {made['processor']}, {made['date'][:10]}; {versions}. "
        "Times are medians, both networks taking turns as concrete `tf.function`s, from "
        "NumPy to NumPy.\n"
    )


def speed(ratio):
    return f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times slower"


def markdown(header, rows):
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rendered(text):
    """`text` with every marked region written anew."""

    def region(match):
        return match[1] + globals()[match[2]]() + match[3]

    return REGION.sub(region, text)


def documents():
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    stale = []
    for path in documents():
        text = path.read_text("utf-8")
        new = rendered(text)
        if new == text:
            continue
        stale.append(path.relative_to(ROOT))
        if not args.check:
            path.write_text(new, "utf-8")
    if stale and args.check:
        sys.exit(f"Out of date: {', '.join(map(str, stale))}. Run {sys.argv[0]}.")
    print("Written: " + ", ".join(map(str, stale)) if stale else "All up to date.")


if __name__ == "__main__":
    main()
