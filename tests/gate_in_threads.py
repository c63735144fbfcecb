# SPDX-License-Identifier: Apache-2.0
"""A worker: the op under a given number of TensorFlow's threads.

    python tests/gate_in_threads.py LIBRARY THREADS

Checks hostile rows against float64, calls from eight Python threads at once, and prints
a digest of all answers: it must not depend on the number of threads.
"""

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
from gate_oracle import CRITERIA, DTYPES, assert_answers, hostile, stored


def main() -> None:
    library, threads = sys.argv[1], int(sys.argv[2])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    op = tf.load_op_library(library).keras_branchy_exit_gate
    rng = np.random.default_rng(4)
    digest = hashlib.sha256()
    cases = []
    for dtype in DTYPES:
        for criterion in CRITERIA:
            for rows, classes in ((0, 3), (1, 10), (31, 33), (2000, 100), (9, 9000)):
                logits = stored(hostile(rng, rows, classes), dtype)
                cases.append((tf.convert_to_tensor(logits), criterion))
                answers = op(*cases[-1][:1], 0.5, criterion)
                assert_answers(answers, logits, 0.5, criterion, dtype)
    # Large enough to be split among threads.
    cases.append((tf.random.stateless_normal([256, 20000], [1, 2]), "entropy"))

    def answers_of(case: tuple[tf.Tensor, str]) -> bytes:
        return b"".join(x.numpy().tobytes() for x in op(case[0], 0.5, case[1]))

    serial = [answers_of(case) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            if list(pool.map(answers_of, cases)) != serial:
                sys.exit("answers differ between runs")
    for answers in serial:
        digest.update(answers)
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
