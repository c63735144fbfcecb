# SPDX-License-Identifier: Apache-2.0
"""Does TensorFlow compute rightly on the GPU, and is the exit gate's op placed there?

First TensorFlow's own operations against its CPU; then the op's registration, its place,
and the hostile rows of the tests against float64; then, where pytest and Hypothesis are,
the tests of the gate themselves. Every kind of failure is a row.
"""

import importlib.util
import os
import subprocess
import sys

import gpu_rows
import staged_networks as subjects
from gpu_rows import ROOT, CouldNotRunError, short

TOLERANCE = 2e-3  # relative, of the norm: TF32 has ten bits
OP = "KerasBranchy>ExitGate"
GRID = [(0, 10), (1, 10), (7, 1), (4096, 10), (4096, 100), (101, 1000), (7, 50257)]
REHEARSED = GRID[:3]


def main(args, rows):
    rows.rows = []
    tf = subjects.prepare(args, "on")
    device = "/CPU:0" if args.rehearse else "/GPU:0"
    found = [gpu.name for gpu in tf.config.list_physical_devices("GPU")]
    rows.add(what="registered", devices=found, preloaded=subjects.preloaded)
    if not found and not args.rehearse:
        gpu_rows.need_gpu()
        raise CouldNotRunError(
            f"TensorFlow {tf.__version__} registers no GPU though the driver shows one; "
            "its log above names the library that it cannot open"
        )
    failures = [*own_operations(tf, rows, device), *the_op(tf, rows, device, args)]
    failures += the_tests(rows, args)
    return failures


# ---- TensorFlow itself ---------------------------------------------------------------
def own_operations(tf, rows, device):
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((512, 512), np.float32) for _ in "ab")
    x = rng.standard_normal((8, 32, 32, 16), np.float32)
    w = rng.standard_normal((3, 3, 16, 32), np.float32)
    work = {
        "softmax": lambda: tf.nn.softmax(a * 2.0 + b),
        "matmul": lambda: tf.matmul(a, b),
        "conv2d": lambda: tf.nn.conv2d(x, w, 1, "SAME"),
        "max_pool": lambda: tf.nn.max_pool2d(x, 2, 2, "SAME"),
        "boolean_mask": lambda: tf.boolean_mask(a, a[:, 0] > 0),
        "matmul under XLA": lambda: tf.function(tf.matmul, jit_compile=True)(a, b),
    }
    failures = []
    for name, run in work.items():
        row = {"what": name}
        try:
            with tf.device("/CPU:0"):
                want = run().numpy()
            with tf.device(device):
                got = run()
            error = float(np.linalg.norm(got.numpy() - want) / np.linalg.norm(want))
            placed = device[1:4] in got.device
            row |= {"error": error, "device": got.device.rsplit("/", 1)[-1]}
            row["right"] = placed and error < TOLERANCE
        except Exception as error:
            row |= {"right": False, "reason": short(error)}
        rows.add(**row)
        failures += [] if row["right"] else [f"{name}: {row}"]
    return failures


# ---- The op --------------------------------------------------------------------------
def the_op(tf, rows, device, args):
    from keras_branchy import native

    status = native.status()
    row = {"what": "op", "native": status.native, "cuda": status.cuda}
    row["reason"] = status.cause
    if not status.native or (status.cuda != "ready" and not args.rehearse):
        rows.add(**row, right=False)
        return [f"the op does not run: {status.cause or status.cuda}"]
    rows.add(**row, right=True)
    place = placement(tf, device)
    right = all(device[1:4] in each for each in place)
    rows.add(what="placement", devices=place, right=right)
    failures = [] if right else [f"the op was placed on {place}"]
    return failures + hostile_rows(tf, rows, device, REHEARSED if args.rehearse else GRID)


def placement(tf, device):
    """Devices of the op's answers, called at once and in a graph."""
    from keras_branchy import exit_gate

    with tf.device(device):
        logits = tf.random.stateless_normal([64, 10], [1, 2])
        eager = exit_gate(logits, 0.5)
        graph = tf.function(lambda x: exit_gate(x, 0.5))(logits)
    return sorted({x.device.rsplit("/", 1)[-1] for x in (*eager, *graph)})


def hostile_rows(tf, rows, device, grid):
    sys.path.append(str(ROOT / "tests"))
    import gate_oracle as oracle
    import numpy as np

    from keras_branchy import exit_gate

    failures, checked = [], 0
    for shape in grid:
        for dtype in oracle.DTYPES:
            for criterion in oracle.CRITERIA:
                rng = np.random.default_rng(checked)
                logits = oracle.stored(oracle.hostile(rng, *shape), dtype)
                with tf.device(device):
                    answers = exit_gate(tf.constant(logits), 0.5, criterion)
                try:
                    oracle.assert_answers(answers, logits, 0.5, criterion, dtype)
                except AssertionError as error:
                    where = f"{shape} {dtype} {criterion}"
                    failures.append(f"{where}: {short(error)[:200]}")
                checked += 1
    rows.add(what="hostile rows", cases=checked, wrong=len(failures), right=not failures)
    return failures


def the_tests(rows, args):
    """`tests/test_gate_native.py` as it stands, on the native op."""
    missing = [m for m in ("pytest", "hypothesis") if not importlib.util.find_spec(m)]
    if missing or args.rehearse:
        reason = f"no {', '.join(missing)}" if missing else "not in a rehearsal"
        rows.add(what="tests of the gate", ran=False, reason=reason)
        return []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["tests/test_gate_native.py", "-k", "not reference"]
    # conftest.py hides the GPU unless told which.
    setting = {"CUDA_VISIBLE_DEVICES": "0", "KERAS_BRANCHY_CUSTOM_OPS": "on"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **setting},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-6000:], flush=True)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    rows.add(what="tests of the gate", ran=True, right=done.returncode == 0, said=last)
    return [] if done.returncode == 0 else [f"the gate's tests: {last}"]


if __name__ == "__main__":
    gpu_rows.run(main)
