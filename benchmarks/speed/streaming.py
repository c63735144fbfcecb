# SPDX-License-Identifier: Apache-2.0
"""A million images through `stream_early`: order, memory, and throughput.

    python -m benchmarks.speed.streaming FOLDER IMAGES

It runs in a process of its own, on all cores. The images of the folder come round again
and again as a `tf.data.Dataset` of batches; every answer is compared with the known ones,
and the checksum of labels weighted by their place says that none is missing or moved.
Single batches, one a call of `predict_early`, are timed in between: machines are faster at
one time than at another. Both throughputs are images over seconds, all of them counted.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np

SINGLE = (32, 256, 1024, 4096)
SAMPLES = 100  # of memory
WARM_UP, TURNS = 3, 25  # of single batches
MILLION = 1_000_000
PRIME = 1_000_003


def main():
    folder, images = Path(sys.argv[1]), int(sys.argv[2])
    print("STREAM " + json.dumps(streamed(folder, images)), flush=True)


def streamed(folder, count):
    """What was measured, as a dict."""
    import keras

    from keras_branchy import BranchyModel  # noqa: F401 (the file holds it)

    info = json.loads((folder / "info.json").read_text("utf-8"))
    model = keras.models.load_model(folder / "branchy.keras", compile=False)
    model.thresholds = info["thresholds"] or [0.5] * len(model.criteria)
    pool = np.load(folder / "images.npy")
    known = known_answers(model, pool)
    for turns in (WARM_UP, TURNS):
        singles = Singles(model, pool)
        for turn in range(turns):
            singles.take(turn)
    size = max(singles.rates(), key=singles.rates().get)
    singles = Singles(model, pool)
    found = stream(model, pool, known, count, size, singles)
    rates = singles.rates()
    return {
        "network": info["network"],
        "batch": size,
        "single_batch_images_per_second": {str(n): round(r) for n, r in rates.items()},
        **found,
        "of_single_batch": round(found["images_per_second"] / max(rates.values()), 4),
    }


def known_answers(model, pool):
    answer = model.predict_early(pool, batch_size=256, verbose=0)
    return answer.labels, answer.exits


class Singles:
    """Single batches of several sizes, each timed in turn.

    Args:
        model: The network.
        pool: Its images, from which the batches are.
    """

    def __init__(self, model, pool):
        self.model, self.pool = model, pool
        self.taken = {size: [] for size in SINGLE if size <= len(pool)}

    def take(self, turn):
        """One batch of each size."""
        for size, taken in self.taken.items():
            start = turn * size % (len(self.pool) - size + 1)
            x = self.pool[start : start + size]
            begin = time.perf_counter()
            self.model.predict_early(x, batch_size=size, verbose=0)
            taken.append(time.perf_counter() - begin)

    def rates(self):
        """Images a second by batch size."""
        return {size: size * len(taken) / sum(taken) for size, taken in self.taken.items()}


def dataset(pool, size, count):
    """`count` images in batches, the pool again and again."""
    import tensorflow as tf

    usable = len(pool) // size * size
    batches = tf.data.Dataset.from_tensor_slices(
        pool[:usable].reshape(-1, size, *pool.shape[1:])
    )
    return batches.repeat().take(-(-count // size)).prefetch(2), usable


def stream(model, pool, known, count, size, singles):
    data, usable = dataset(pool, size, count)
    labels, exits = (part[:usable] for part in known)
    batches = -(-count // size)
    every, between = (max(1, batches // parts) for parts in (SAMPLES, TURNS))
    seen = wrong = moved = checksum = expected = 0
    memory, seconds = [], 0.0
    begin = time.perf_counter()
    answers = model.stream_early(data)
    for index in range(batches):
        answer = next(answers)
        seconds += time.perf_counter() - begin
        where = np.arange(seen, seen + len(answer.labels))
        told, left = labels[where % usable], exits[where % usable]
        weights = where % PRIME + 1
        checksum += int((weights * (10 * answer.labels + answer.exits)).sum())
        expected += int((weights * (10 * told + left)).sum())
        wrong += int((answer.labels != told).sum())
        moved += int((answer.exits != left).sum())
        seen += len(where)
        if index % every == 0:
            memory.append(resident())
        if index % between == 0:
            singles.take(index // between)
        begin = time.perf_counter()
    if next(answers, None) is not None:
        raise RuntimeError("More answers than batches.")
    return {
        "images": seen,
        "seconds": round(seconds, 2),
        "images_per_second": round(seen / seconds),
        "labels_that_differ": wrong,
        "exits_that_differ": moved,
        "checksum": checksum,
        "expected_checksum": expected,
        **flatness(memory),
    }


def flatness(memory):
    """MiB: in the second tenth, at the end, and at most between them."""
    settled = memory[len(memory) // 10 :]
    return {
        "rss_mib_early": round(settled[0], 1),
        "rss_mib_late": round(settled[-1], 1),
        "rss_mib_most": round(max(settled), 1),
        "rss_mib": [round(value) for value in memory],
    }


def resident():
    text = Path("/proc/self/status").read_text("utf-8")
    return int(re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)[1]) / 1024


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
