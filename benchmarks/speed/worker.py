# SPDX-License-Identifier: Apache-2.0
"""A process with a runtime in it, told over a pipe what to do next.

    python -m benchmarks.speed.worker FILE_DESCRIPTOR

It obeys `("open", batch)`, `("answers", …)`, `("time", …)`, `("stage", …)`, `("stop",)`; an
error comes back as text. Timing is done in here, so that the pipe is no part of it.
"""

import os
import re
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

MIB = 1024  # KiB
SHORT = 0.05  # seconds, below which a call to warm up comes first


def main():
    pipe = Connection(int(sys.argv[1]))
    config = pipe.recv()
    os.sched_setaffinity(0, config["cores"])
    sys.path += config["paths"]
    sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
    try:
        worker = Worker(config)
        pipe.send(("ready", worker.first))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
        return
    while True:
        verb, *args = pipe.recv()
        if verb == "stop":
            return
        try:
            pipe.send(("done", getattr(worker, verb)(*args)))
        except BaseException:
            pipe.send(("error", traceback.format_exc()))


class Worker:
    """The images and one contestant, or several that share a process."""

    def __init__(self, config):
        from benchmarks.speed import contestants

        # Copy-on-write: one copy in memory for all processes, and writable for PyTorch.
        self.images = np.load(Path(config["folder"]) / "images.npy", mmap_mode="c")
        self.contestants, self.batch, self.last = {}, 1, {}
        for kind in config["kinds"]:
            made = contestants.make(kind, config["folder"], config["threads"])
            made.images = self.images
            self.contestants[kind] = made
        self.first = self.first_answer(config)
        float(self.images.sum())  # every page is in memory from here on
        self.base = memory("VmRSS")

    def first_answer(self, config):
        """Milliseconds from the start of the process to the answer for one image."""
        contestant = self.contestants[config["kinds"][0]]
        if not hasattr(contestant, "run"):
            return None
        contestant.open(1)
        contestant.set_thresholds([0.0] * config["early_exits"])
        contestant.run(self.images[:1])
        return (time.time() - config["started"]) * 1e3

    def pin(self, cores):
        """Lets every thread of the process run on these cores only."""
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cores)

    def open(self, kind, batch):
        self.batch, self.last[kind] = batch, 0.0
        self.contestants[kind].close()
        self.contestants[kind].open(batch)

    def answers(self, kind, thresholds, count):
        """Labels and exits of the first `count` batches, and the peak of memory, in MiB."""
        contestant = self.contestants[kind]
        contestant.set_thresholds(thresholds)
        forget_peak()
        parts = [contestant.run(x) for x in self.batches(kind, count)]
        peak = max(memory("VmHWM") - self.base, 0) / MIB
        labels, exits = zip(*parts, strict=True)
        joined = None if exits[0] is None else np.concatenate(exits)
        return np.concatenate(labels), joined, peak

    def time(self, kind, thresholds, count):
        """Seconds of each of the first `count` batches; one figure for a stream of them."""
        contestant, taken = self.contestants[kind], []
        contestant.set_thresholds(thresholds)
        if self.last[kind] < SHORT:  # other processes have had the caches
            contestant.run(self.images[: self.batch])
        for x in self.batches(kind, count):
            begin = time.perf_counter()
            contestant.run(x)
            taken.append(time.perf_counter() - begin)
        self.last[kind] = taken[-1]
        return taken

    def batches(self, kind, count):
        if kind.endswith("stream"):
            return [self.images[: count * self.batch]]
        edges = range(0, count * self.batch, self.batch)
        return [self.images[at : at + self.batch] for at in edges]

    def stage(self, kind, *args):
        """Seconds of one stage alone."""
        return self.contestants[kind].measure(*args)


def memory(field):
    """A figure of this process in KiB, from the kernel."""
    text = Path("/proc/self/status").read_text("utf-8")
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)[1])


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
