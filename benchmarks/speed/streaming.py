# SPDX-License-Identifier: Apache-2.0
"""A million images through `stream_early`: order, memory, and throughput.

    python -m benchmarks.speed.streaming FOLDER IMAGES

It runs in a process of its own, on all cores. The images of the folder come round again
and again as a `tf.data.Dataset` of batches; every answer is compared with the known ones,
and the checksum of labels weighted by their place says that none is missing or moved.
Single batches are timed before and after, by `predict_early`, one batch a call.
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
MILLION = 1_000_000
PRIME = 1_000_003


def main():
    folder, images = Path(sys.argv[1]), int(sys.argv[2])
    print("STREAM " + json.dumps(streamed(folder, images)), flush=True)


def streamed(folder, count, seconds=2.0):
    """What was measured, as a dict."""
    import keras

    from keras_branchy import BranchyModel  # noqa: F401 (the file holds it)

    info = json.loads((folder / "info.json").read_text("utf-8"))
    model = keras.models.load_model(folder / "branchy.keras", compile=False)
    model.thresholds = info["thresholds"] or [0.5] * len(model.criteria)
    pool = np.load(folder / "images.npy")
    known = known_answers(model, pool)
    before = single_batches(model, pool, seconds)
    size = max(before, key=before.get)
    found = stream(model, pool, known, count, size)
    after = single_batches(model, pool, seconds)
    best = max(max(before.values()), max(after.values()))
    return {
        "network": info["network"],
        "batch": size,
        "single_batch_images_per_second": {
            str(n): round((before[n] + after[n]) / 2) for n in before
        },
        **found,
        "of_single_batch": round(found["images_per_second"] / best, 4),
    }


def known_answers(model, pool):
    answer = model.predict_early(pool, batch_size=256, verbose=0)
    return answer.labels, answer.exits


def single_batches(model, pool, seconds):
    """Images a second by batch size, one batch a call; each in turn."""
    sizes = [size for size in SINGLE if size <= len(pool)]
    taken = {size: [] for size in sizes}
    end, turn = time.perf_counter() + seconds, 0
    while turn < 3 or time.perf_counter() < end:
        for size in sizes:
            start = turn * size % (len(pool) - size + 1)
            x = pool[start : start + size]
            begin = time.perf_counter()
            model.predict_early(x, batch_size=size, verbose=0)
            taken[size].append(time.perf_counter() - begin)
        turn += 1
    return {size: size / float(np.median(times[1:])) for size, times in taken.items()}


def dataset(pool, size, count):
    """`count` images in batches, the pool again and again."""
    import tensorflow as tf

    usable = len(pool) // size * size
    batches = tf.data.Dataset.from_tensor_slices(
        pool[:usable].reshape(-1, size, *pool.shape[1:])
    )
    return batches.repeat().take(-(-count // size)).prefetch(2), usable


def stream(model, pool, known, count, size):
    data, usable = dataset(pool, size, count)
    labels, exits = (part[:usable] for part in known)
    every = max(1, -(-count // size) // SAMPLES)
    seen = wrong = moved = checksum = expected = 0
    memory = []
    begin = time.perf_counter()
    for index, answer in enumerate(model.stream_early(data)):
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
    seconds = time.perf_counter() - begin
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
