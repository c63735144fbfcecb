# SPDX-License-Identifier: Apache-2.0
"""The processes of one network on so many threads: started, told one at a time, stopped."""

import importlib.util
import os
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# These need no process each: they are no runtimes, and their memory is not reported.
TOGETHER = {"stages in litert": "stages in tensorflow"}


class WorkerError(RuntimeError):
    """A runtime failed in its process; the message is its traceback."""


class Torch:
    """Where PyTorch is: in this environment, in a folder, or under another Python."""

    def __init__(self, given=None):
        self.python, self.paths, self.absent = sys.executable, [], None
        if given is None:
            if importlib.util.find_spec("torch") is None:
                self.absent = "PyTorch is not installed here; name one with --torch"
        elif Path(given).is_dir():
            self.paths = [str(Path(given).resolve())]
            if not (Path(given) / "torch").is_dir():
                self.absent = f"there is no PyTorch in {Path(given).name}"
        else:
            self.python = given


def grouped(kinds):
    """Kinds by process: each alone but those of TOGETHER."""
    found = []
    for kind in kinds:
        host = next((group for group in found if TOGETHER.get(kind) == group[0]), None)
        if host is None:
            found.append([kind])
        else:
            host.append(kind)
    return found


class Team:
    """A process for each runtime; only one runs at a time, while it is asked.

    Args:
        folder: Of the network, as `prepare` left it.
        kinds: Names of runtimes.
        threads: For each; also the number of cores that a process may use.
        early_exits: How many thresholds there are.
        torch: A `Torch`.
        work: Where compilers keep what they made.
    """

    def __init__(self, folder, kinds, threads, early_exits, torch, work):
        self.cores = sorted(os.sched_getaffinity(0))
        self.config = {
            "folder": str(folder),
            "threads": threads,
            "early_exits": early_exits,
        }
        self.torch, self.work = torch, Path(work)
        self.members, self.first = {}, {}
        self.work.mkdir(parents=True, exist_ok=True)
        self.log = (self.work / "workers.log").open("a", encoding="utf-8")
        try:
            self.start_all(kinds)
        except BaseException:
            self.close()
            raise

    def start_all(self, kinds):
        """Starts as many processes at a time as have cores of their own, two at least."""
        groups = grouped(kinds)
        threads = self.config["threads"]
        at_once = max(2, len(self.cores) // threads)
        for start in range(0, len(groups), at_once):
            some = groups[start : start + at_once]
            for place, group in enumerate(some):
                first = place * threads % (len(self.cores) - threads + 1)
                self.start(group, self.cores[first : first + threads])
            for group in some:
                self.first[group[0]] = self.reply(group[0])
        for group in groups:
            self.ask(group[0], "pin", self.cores[:threads])

    def start(self, group, cores):
        """Starts a process; its first answer comes as a reply."""
        ours, theirs = Pipe()
        is_torch = group[0].startswith("torch")
        command = [self.torch.python if is_torch else sys.executable]
        command += ["-m", "benchmarks.speed.worker", str(theirs.fileno())]
        started = time.time()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment(),
            pass_fds=[theirs.fileno()],
            stdout=self.log,
            stderr=self.log,
        )
        theirs.close()
        paths = self.torch.paths if is_torch else []
        told = {"kinds": group, "paths": paths, "started": started, "cores": cores}
        for kind in group:
            self.members[kind] = ours, process
        ours.send({**self.config, **told})

    def environment(self):
        threads = str(self.config["threads"])
        return {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            "PYTHONWARNINGS": "ignore",
        }

    def ask(self, kind, verb, *args):
        """What a process answers to a command.

        Raises:
            WorkerError: If it failed.
        """
        given = args if verb == "pin" else (kind, *args)
        self.members[kind][0].send((verb, *given))
        return self.reply(kind)

    def reply(self, kind):
        try:
            status, value = self.members[kind][0].recv()
        except EOFError:
            code = self.members[kind][1].wait()
            status, value = (
                "error",
                f"its process ended with code {code}; see {self.log.name}",
            )
        if status == "error":
            raise WorkerError(f"{kind}: {value}")
        return value

    def close(self):
        members = {id(pipe): (pipe, process) for pipe, process in self.members.values()}
        for pipe, _ in members.values():
            try:
                pipe.send(("stop",))
            except OSError:
                pass
            pipe.close()
        for _, process in members.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
