# SPDX-License-Identifier: Apache-2.0
"""Times the exit gate inside a graph: native, reference, composite and XLA.

    python custom_ops/benchmark.py [--json FILE] [--quick] [--cpu-time]

Each is the body of a `while_loop` of many turns, whose logits are another slice of a
pool at each turn, so that nothing is hoisted; an empty loop with the same slice and the
same loop variables is subtracted. A `tf.function` call from Python costs 100 to 300 µs,
which would hide the small shapes. The implementations take turns, so that a disturbance
meets all of them; given are medians, and half the distance between the quartiles.

The composite is the fastest of several, which the JSON names. None of them has guards:
they are wrong for NaN and infinite logits. Threads are set per process, so each count
runs in a child. On a machine that is not quiet, `--cpu-time` counts the processor's time
in place of the clock's, for one thread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES = [
    (1, 10),
    (32, 10),
    (256, 10),
    (4096, 10),
    (256, 1000),
    (4096, 1000),
    (64, 50257),
]
THRESHOLD = 0.5
POOL = 4  # slices that the turns of a loop go through
LOOP_SECONDS = 0.03  # what one timed loop should take


# ---- Implementations, each logits [B, C] -> exit, label, score ------------------------
def composites(tf: Any) -> dict[str, Callable]:
    """The unguarded composites of TensorFlow ops."""

    def log_softmax(z):
        log_p = tf.nn.log_softmax(z)
        return -tf.reduce_sum(tf.exp(log_p) * log_p, axis=-1)

    def softmax_log(z):
        p = tf.nn.softmax(z)
        return -tf.reduce_sum(p * tf.math.log(p), axis=-1)

    def crossentropy(z):
        return tf.nn.softmax_cross_entropy_with_logits(labels=tf.nn.softmax(z), logits=z)

    def logsumexp(z):
        p = tf.nn.softmax(z)
        return tf.reduce_logsumexp(z, axis=-1) - tf.reduce_sum(p * z, axis=-1)

    def by_hand(z):
        d = z - tf.reduce_max(z, axis=-1, keepdims=True)
        e = tf.exp(d)
        s = tf.reduce_sum(e, axis=-1)
        return tf.math.log(s) - tf.reduce_sum(e * d, axis=-1) / s

    def einsum(z):
        log_p = tf.nn.log_softmax(z)
        return -tf.einsum("bc,bc->b", tf.exp(log_p), log_p)

    scores = (log_softmax, softmax_log, crossentropy, logsumexp, by_hand, einsum)

    def gate(score):
        def run(z):
            h = score(z)
            return h < THRESHOLD, tf.argmax(z, axis=-1, output_type=tf.int64), h

        return run

    return {score.__name__: gate(score) for score in scores}


def implementations(tf: Any) -> dict[str, tuple[Callable, bool]]:
    """Name -> body, and whether XLA compiles it."""
    from keras_branchy import native, reference

    threshold = tf.constant(THRESHOLD)
    bodies = {
        "native": (lambda z: native.exit_gate(z, threshold, "entropy"), False),
        "reference": (lambda z: reference.exit_gate(z, threshold, "entropy"), False),
        "empty": (None, False),
        "empty/xla": (None, True),
    }
    for name, body in composites(tf).items():
        bodies[f"composite/{name}"] = (body, False)
        bodies[f"xla/{name}"] = (body, True)
    return bodies


def loop(tf: Any, body: Callable | None, pool: Any, batch: int, xla: bool) -> Callable:
    """`turns -> results` of a loop over `body`; `None` is the empty loop.

    The loops of TensorFlow carry the answers of two turns and the slice. So the empty
    one can exchange the two: what it only passed on, the graph's optimizer would take
    out of the loop. XLA's carry the answers alone, and its empty loop one logit.
    """

    def turn(i, *before):
        z = tf.slice(pool, [(i % POOL) * batch, 0], [batch, pool.shape[1]])
        if xla:
            return i + 1, *(body(z) if body else (before[0] + z[0, 0],))
        answers = body(z) if body else before[3:6]
        return i + 1, *answers, *before[:3], z

    answers = [
        [
            tf.fill([batch], tf.cast(value, dtype))
            for dtype in (tf.bool, tf.int64, tf.float32)
        ]
        for value in (0, 1)
    ]
    start = [*answers[0], *answers[1], pool[:batch]]
    if xla:
        start = answers[0] if body else [tf.constant(0.0)]

    @tf.function(jit_compile=xla)
    def run(turns):
        return tf.while_loop(
            lambda i, *_: i < turns, turn, [0, *start], parallel_iterations=1
        )[1:4]

    return run


# ---- Measuring ----------------------------------------------------------------------
def check(tf: Any, runs: dict[str, Callable], pool: Any, batch: int) -> None:
    """Every loop must give the answers of float64 NumPy for its last slice."""
    import numpy as np

    turns = 3
    z = pool.numpy()[(turns - 1) * batch : turns * batch].astype(np.float64)
    d = z - z.max(-1, keepdims=True)
    e = np.exp(d)
    expected = np.log(e.sum(-1)) - (e * d).sum(-1) / e.sum(-1)
    for name, run in runs.items():
        if name.startswith("empty"):
            continue
        leaves, label, score = (x.numpy() for x in run(tf.constant(turns)))
        clear = np.abs(expected - THRESHOLD) > 1e-4
        if not (
            np.allclose(score, expected, rtol=1e-4, atol=1e-5)
            and (label == z.argmax(-1)).all()
            and (leaves == (expected < THRESHOLD))[clear].all()
        ):
            raise RuntimeError(f"{name} is wrong at {z.shape}")


def measure(
    tf: Any,
    batch: int,
    classes: int,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Microseconds a turn for each implementation, the empty loops among them."""
    pool = tf.random.stateless_normal([POOL * batch, classes], [batch, classes]) * 3.0
    runs = {
        name: loop(tf, body, pool, batch, xla)
        for name, (body, xla) in implementations(tf).items()
    }
    check(tf, runs, pool, batch)

    def seconds(name: str, turns: int) -> float:
        argument = tf.constant(turns)
        start = clock()
        runs[name](argument)[-1].numpy()
        return clock() - start

    turns = {}
    for name in runs:
        seconds(name, 1)  # traces and compiles
        few, many = 20, 220
        each = max((seconds(name, many) - seconds(name, few)) / (many - few), 2e-8)
        turns[name] = min(200_000, max(8, int(LOOP_SECONDS / each)))
    # A difference of two lengths: what a call costs besides its turns cancels.
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, count in turns.items():
            short = max(1, count // 8)
            each = (seconds(name, count) - seconds(name, short)) / (count - short)
            samples[name].append(each * 1e6)
    return samples


def rows_of(samples: dict[str, list[float]], **shape: Any) -> list[dict[str, Any]]:
    """The JSON rows: native, reference, and the fastest composite with and without XLA."""
    net = {}
    for name, values in samples.items():
        if not name.startswith("empty"):
            empty = samples["empty/xla" if name.startswith("xla") else "empty"]
            base = statistics.median(empty)
            net[name] = [value - base for value in values]
    rows = []
    for kind in ("native", "reference", "composite", "xla"):
        names = [name for name in net if name.split("/")[0] == kind]
        best = min(names, key=lambda name: statistics.median(net[name]))
        low, middle, high = statistics.quantiles(net[best], n=4)
        row = {**shape, "dtype": "float32", "implementation": kind}
        row |= {"median_us": round(middle, 3), "spread_us": round((high - low) / 2, 3)}
        if "/" in best:
            row["variant"] = best.split("/")[1]
        rows.append(row)
    return rows


def child(
    threads: int,
    shapes: list[tuple[int, int]],
    repeats: int,
    clock: Callable[[], float],
) -> None:
    """Measures in this process, and prints the rows as JSON."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    rows = []
    for batch, classes in shapes:
        samples = measure(tf, batch, classes, repeats, clock)
        found = rows_of(samples, batch=batch, classes=classes, threads=threads)
        print_line(found)
        rows += found
    from keras_branchy import native

    print(json.dumps({"rows": rows, "isa": native.status().instruction_set}))


def print_line(rows: list[dict[str, Any]]) -> None:
    """One line of a shape, on the error stream; standard output is the parent's."""
    first = rows[0]
    times = "  ".join(
        f"{row['implementation']} {row['median_us']:.2f} ± {row['spread_us']:.2f}"
        for row in rows
    )
    ratios = ", ".join(f"{row['median_us'] / first['median_us']:.1f}x" for row in rows[1:])
    shape = f"{first['batch']}x{first['classes']}"
    print(
        f"{shape:>11} {first['threads']} thr: {times}  µs ({ratios})",
        file=sys.stderr,
        flush=True,
    )


# ---- The report ---------------------------------------------------------------------
def hardware() -> str:
    """The processor, as Linux names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} logical CPUs"
    return platform.processor()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and shapes")
    parser.add_argument("--cpu-time", action="store_true", help="one thread only")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shapes = SHAPES[:3] if arguments.quick else SHAPES
    repeats = 3 if arguments.quick else arguments.repeats
    if arguments.child:
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        child(arguments.child, shapes, repeats, clock)
        return
    # The op must be the one of this checkout, and no warning may hide that it is not.
    environment = {
        **os.environ,
        "KERAS_BRANCHY_CUSTOM_OPS": "on",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    results = []
    flags = [name for name in ("--quick", "--cpu-time") if name in sys.argv]
    for threads in (1,) if arguments.cpu_time else (1, 2):
        command = [sys.executable, __file__, "--child", str(threads)]
        command += ["--repeats", str(repeats), *flags]
        run = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
        results.append(json.loads(run.stdout.splitlines()[-1]))
    if arguments.json:
        arguments.json.write_text(json.dumps(report(results, flags), indent=1) + "\n")


def report(results: list[dict[str, Any]], flags: list[str]) -> dict[str, Any]:
    """The JSON document of all children's results."""
    from importlib.metadata import version

    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python custom_ops/benchmark.py --json FILE", *flags]),
        "hardware": f"{hardware()}, {results[0]['isa']}",
        "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy")}
        | {"python": platform.python_version()},
        "rows": [row for result in results for row in result["rows"]],
    }


if __name__ == "__main__":
    main()
