# SPDX-License-Identifier: Apache-2.0
"""A worker: makes malformed calls of the op, each of which must raise an exception.

    python tests/malformed_calls.py LIBRARY SEED COUNT

Prints how many did. A worker that dies says nothing, and so fails all its calls.
"""

import os
import random
import sys
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf

WRONG_DTYPES = ["int8", "uint8", "int32", "int64", "bool", "complex64", "complex128"]
WRONG_NAMES = ["", "Entropy", "entropy ", "margin\0", "max-probability", "x" * 100_000, "…"]
WRONG_VALUES = [None, "entropy", b"\xff", object(), {}, [[1.0], [1.0, 2.0]], [None], "1"]
CRITERIA = ["entropy", "max_probability", "margin", "distance"]
DTYPES = ["float32", "float16", "bfloat16", "float64"]


def good_logits(pick: random.Random) -> tf.Tensor:
    shape = [pick.randrange(4), 1 + pick.randrange(40)]
    return tf.cast(tf.fill(shape, pick.uniform(-9, 9)), pick.choice(DTYPES))


def wrong_shape(pick: random.Random) -> list[int]:
    """Not of rank 2, or of no class."""
    if pick.random() < 0.3:
        return [pick.choice([0, 1, 7, 100_000]), 0]
    rank = pick.choice([0, 1, 3, 4, 5, 8])
    return [pick.choice([0, 1, 2, 3]) for _ in range(rank)]


def bad_logits(pick: random.Random) -> object:
    kind = pick.randrange(6)
    if kind < 3:
        return tf.zeros(wrong_shape(pick), pick.choice(DTYPES))
    if kind == 3:
        return tf.cast(tf.zeros([2, 3]), pick.choice(WRONG_DTYPES))
    if kind == 4:
        return pick.choice(
            [tf.constant([["a"]]), np.array([[object()]]), tf.zeros([2, 3], "bool")]
        )
    return pick.choice(WRONG_VALUES)


def bad_threshold(pick: random.Random) -> object:
    kind = pick.randrange(4)
    if kind == 0:
        return tf.zeros([pick.randrange(4)] * (1 + pick.randrange(4)))
    if kind == 1:
        return tf.cast(0, pick.choice([*WRONG_DTYPES, "float64", "float16"]))
    if kind == 2:
        return np.zeros([pick.randrange(3)], "float32")
    return pick.choice(WRONG_VALUES)


def call_of(op: Callable, pick: random.Random) -> Callable[[], object]:
    """One call with one or more wrong arguments, eager or traced."""
    wrong = pick.choice(["logits", "threshold", "criterion", "all", "count", "unranked"])
    every = wrong == "all"
    logits = bad_logits(pick) if every or wrong == "logits" else good_logits(pick)
    threshold = bad_threshold(pick) if every or wrong == "threshold" else 0.5
    name = pick.choice(CRITERIA)
    if every or wrong == "criterion":
        name = pick.choice([*WRONG_NAMES, 3, b"\xff\xfe", ["entropy"]])
    if wrong == "count":
        return pick.choice(
            [lambda: op(logits), lambda: op(), lambda: op(logits, 0.5, "margin", 1, 2)]
        )
    if wrong == "unranked":
        # The shape is only known to the kernel, when it runs.
        shape = wrong_shape(pick)
        traced = tf.function(
            lambda x, t: op(x, t, name),
            input_signature=[tf.TensorSpec(None), tf.TensorSpec(None)],
            autograph=False,
        )
        limit = tf.zeros([2] if len(shape) == 2 and shape[1] else [])
        return lambda: traced(tf.zeros(shape), limit)

    def call() -> object:
        return op(logits=logits, threshold=threshold, criterion=name)

    return tf.function(call, autograph=False) if pick.random() < 0.3 else call


def main() -> None:
    library, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    op = tf.load_op_library(library).keras_branchy_exit_gate
    pick = random.Random(seed)
    raised = 0
    for _ in range(count):
        call = call_of(op, pick)
        try:
            answer = call()
        except Exception:
            raised += 1
        else:
            print(f"answered: {answer}", file=sys.stderr)
    # The op still works.
    op(logits=tf.zeros([2, 3]), threshold=0.5, criterion="entropy")
    print(raised)


if __name__ == "__main__":
    main()
