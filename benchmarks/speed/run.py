# SPDX-License-Identifier: Apache-2.0
"""All cells: prepared, measured, kept as they come, and put together."""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.speed import cell as cells
from benchmarks.speed import document, networks, prepare, rows, starts
from benchmarks.speed.settings import Answers
from benchmarks.speed.team import ROOT, Team, Torch

COMPILED_AT = (1, 32, 256)  # batches at which torch.compile is timed
ENGINE = (
    *("early_exit*.py", "direct_call.py", "reference.py", "native*.py", "batches.py"),
    *("stage*.py", "walk.py", "waiting.py", "answer_rows.py", "*_gate.py", "streaming.py"),
    *("runner/*.py", "../custom_ops/lanes.h", "../custom_ops/stage_step*"),
)
LARGE = 256  # a batch that takes heavy networks seconds


@dataclass
class Run:
    """One call of benchmarks/inference.py.

    Attributes:
        names: Of networks.
        batches: Their sizes.
        threads: Numbers of threads.
        seconds: About how long the turns of a cell may take, in each start.
        store: Where trained networks are.
        work: Where files, and cells that are done, are kept.
        torch: A `Torch`.
        runtimes: Only these, or None for all; stages alone are always timed.
        starts: How often every cell is measured, all cells once before any again.
    """

    names: list[str]
    batches: list[int]
    threads: list[int]
    seconds: float
    store: Path
    work: Path
    torch: Torch
    runtimes: list[str] | None = None
    starts: int = 1
    failures: dict = field(default_factory=dict)

    def __post_init__(self):
        # Once: who edits a file meanwhile must not lose what was measured.
        self.code = engine()

    def forget(self):
        """Measures anew what another call has measured."""
        for path in (self.work / "parts").glob("*.json"):
            path.unlink()

    def prepare(self):
        for name in self.names:
            folder = self.prepared(networks.named(name))
            print(f"{name}: files are in {folder}", flush=True)

    def prepared(self, network):
        """The network's folder, made in a process of its own if it is not there."""
        found = prepare.ready(network, self.store, self.work)
        if found is None:
            print(f"{network.name}: exporting", flush=True)
            self.prepare_apart(network.name)
            found = self.work / network.name
        return found

    def prepare_apart(self, name):
        code = (
            "import sys; sys.path[:0] = sys.argv[4:]; "
            "from benchmarks.speed.prepare import prepare; prepare(*sys.argv[1:4])"
        )
        given = [name, str(self.store), str(self.work), str(ROOT), str(ROOT / "examples")]
        self.work.mkdir(parents=True, exist_ok=True)
        path = self.work / f"prepare_{name}.log"
        with path.open("w", encoding="utf-8") as log:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code, *given],
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode:
            told = path.read_text("utf-8")[-2000:]
            sys.exit(f"{name} could not be exported. The end of {path}:\n{told}")

    def measure(self):
        for start, name, threads in product(range(self.starts), self.names, self.threads):
            network = networks.named(name)
            folder = self.prepared(network)
            wanted = [
                batch
                for batch in self.batches
                if takes_part(network, batch, threads, max(self.threads))
                and not self.path(folder, batch, threads, start).exists()
            ]
            if wanted:
                self.measure_network(network, folder, wanted, threads, start)

    def measure_network(self, network, folder, batches, threads, start=0):
        info = json.loads((folder / "info.json").read_text("utf-8"))
        answers = answers_of(folder, info)
        kinds = kinds_of(network, self.torch, self.runtimes)
        limits = len(info["criteria"])
        with Team(folder, kinds, threads, limits, self.torch, self.work) as team:
            for batch in batches:
                taking_part = [kind for kind in kinds if at_batch(kind, batch)]
                given = team, answers, info, batch, self.seconds, taking_part
                try:
                    found = cells.Measurement(*given).run()
                except RuntimeError as error:  # the other cells are worth having
                    self.fail(network, batch, threads, error)
                    continue
                made = rows.Rows(network.name, info, found, answers, team.first).all()
                made += absent(network, self.torch, batch, threads)
                kept = {"rows": made, "stages": rows.stage_rows(network.name, found)}
                document.write(self.path(folder, batch, threads, start), kept)
                print(summary(made), flush=True)

    def fail(self, network, batch, threads, error):
        """Keeps why a cell was not measured; the call ends with 1 then."""
        told = str(error).strip().splitlines()[-1][:300]
        print(f"{network.name} batch {batch} threads {threads}: {error}", flush=True)
        self.failures[network.name, batch, threads] = told

    def stream(self, name, images):
        """A million images through the iterator, in a process of its own."""
        folder = self.prepared(networks.named(name))
        command = ["-m", "benchmarks.speed.streaming", str(folder.resolve()), str(images)]
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        lines = [x for x in done.stdout.splitlines() if x.startswith("STREAM ")]
        if done.returncode or not lines:
            sys.exit(f"The stream ended with code {done.returncode}.")
        return json.loads(lines[-1].removeprefix("STREAM "))

    def path(self, folder, batch, threads, start):
        """Where a cell is kept; another engine or another network has another place."""
        key = hashlib.sha256((folder / "info.json").read_bytes())
        key.update(self.code)
        key.update(repr((self.seconds, self.torch.absent, self.runtimes)).encode())
        parts = self.work / "parts"
        name = f"{folder.name}-{batch}-{threads}-{start}-{key.hexdigest()[:12]}.json"
        return parts / name

    def assembled(self):
        """Everything that is there: rows, stages, and what was measured with what."""
        whole = {"networks": {}, "rows": [], "stages": [], "missing": []}
        for name in self.names:
            folder = self.work / name
            info = json.loads((folder / "info.json").read_text("utf-8"))
            info.pop("source")
            whole["networks"][name] = info
            for threads in self.threads:
                for batch in self.batches:
                    self.add(whole, networks.named(name), batch, threads)
        return whole

    def add(self, whole, network, batch, threads):
        place = self.work / network.name, batch, threads
        paths = [self.path(*place, start) for start in range(self.starts)]
        parts = [json.loads(p.read_text("utf-8")) for p in paths if p.exists()]
        if parts:
            found = starts.merged(parts)
            whole["rows"] += found["rows"]
            whole["stages"] += found["stages"]
        else:
            place = {"network": network.name, "batch": batch, "threads": threads}
            whole["missing"].append({**place, "why": self.why(network, batch, threads)})

    def why(self, network, batch, threads):
        """Why a cell is not there."""
        if not takes_part(network, batch, threads, max(self.threads)):
            return f"takes seconds a batch: on {max(self.threads)} threads only"
        failed = self.failures.get((network.name, batch, threads))
        return failed or "not measured with this engine"


def engine():
    """A digest of the code that is timed."""
    digest = hashlib.sha256()
    for pattern in ENGINE:
        for path in sorted((ROOT / "keras_branchy").glob(pattern)):
            digest.update(path.read_bytes())
    return digest.digest()


def takes_part(network, batch, threads, most):
    """Heavy networks run large batches on all threads only."""
    return not (network.heavy and batch >= LARGE and threads < most)


def kinds_of(network, torch, only=None):
    """The runtimes of a network's processes."""
    kinds = ["tensorflow", "litert", "onnxruntime", *cells.OURS, *cells.STAGES]
    if torch.absent is None:
        kinds += ["torch", "torch, loop"]
        kinds += ["torch.compile", "torch.compile, loop"] if network.compiled else []
    return [k for k in kinds if only is None or k in only or k in cells.STAGES]


def at_batch(kind, batch):
    if kind.startswith("torch.compile"):
        return batch in COMPILED_AT
    return kind != "stage_runner, one" or batch == 1


def absent(network, torch, batch, threads):
    """Rows that say why there is no PyTorch."""
    if torch.absent is None:
        return []
    place = {"network": network.name, "batch": batch, "threads": threads}
    return [
        {**place, "runtime": "torch", "ours": False, "plain": True, "absent": torch.absent}
    ]


def answers_of(folder, info):
    labels = folder / "labels.npy"
    return Answers(
        np.load(folder / "logits.npy"),
        np.load(folder / "plain.npy"),
        info["criteria"],
        np.load(labels) if labels.exists() else None,
    )


def summary(made):
    """A line for each runtime, calibrated or at half the images."""
    shown = []
    for row in made:
        if row.get("absent"):
            shown.append(f"{row['runtime']} is not among them: {row['absent']}")
            continue
        if row["setting"] not in (None, "calibrated", "0.75"):
            continue
        gain = row.get("gain_same_runtime")
        told = "" if row["plain"] else f"  {row['setting']:>10}  shares {row['shares']}"
        if gain is not None:
            told += (
                f"  gain {gain:.2f} ({row['gain_fastest_plain']:.2f})  efficiency "
                f"{row.get('efficiency', float('nan')):.2f}"
            )
        head = f"{row['network']} batch {row['batch']} threads {row['threads']}"
        shown.append(
            f"{head}  {row['runtime']:22} {row['us_per_image']:10.2f} ± "
            f"{row['spread']:.2f} µs  {row['peak_mib']:.0f} MiB{told}"
        )
    return "\n".join(shown)
