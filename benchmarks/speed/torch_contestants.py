# SPDX-License-Identifier: Apache-2.0
"""PyTorch on the CPU: the plain backbone, and the early-exit loop that people write.

Each is eager or under `torch.compile`. Of the two memory formats the faster one is taken,
separately for every batch size.
"""

import pickle
import time

import torch

from benchmarks.speed.contestants import Contestant
from benchmarks.speed.torch_twin import Twin

TRIALS = 3


class _Torch(Contestant):
    compiled = False

    def load(self):
        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)
        self.specs = pickle.loads((self.folder / "specs.pickle").read_bytes())
        self.thresholds = None

    def open(self, batch):
        self.batch = batch
        self.format = torch.channels_last
        self.build()
        if not self.compiled:
            self.format = min(
                (torch.channels_last, torch.contiguous_format), key=self.time_of
            )
            self.build()

    def time_of(self, memory_format):
        self.format = memory_format
        self.build()
        x = torch.zeros(self.batch, *self.image_shape()).numpy()
        self.run(x)
        begin = time.perf_counter()
        for _ in range(TRIALS):
            self.run(x)
        return time.perf_counter() - begin

    def image_shape(self):
        return self.specs["shape"]

    def twin(self, spec, dynamic=None):
        module = Twin(spec).eval().to(memory_format=self.format)
        return torch.compile(module, dynamic=dynamic) if self.compiled else module

    def tensor(self, x):
        """[B, H, W, C] in NumPy to [B, C, H, W]: a view in channels_last."""
        return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=self.format)


class TorchPlain(_Torch):
    def build(self):
        spec = self.specs["plain"]
        (self.name,), (self.made,) = spec["inputs"], spec["outputs"]
        self.network = self.twin(spec, dynamic=False)

    def run(self, x):
        return self.network({self.name: self.tensor(x)})[self.made].argmax(-1).numpy(), None


class TorchLoop(_Torch):
    """Stage, entropy, boolean mask; the next stage for those who stay."""

    def build(self):
        stages = self.specs["stages"]
        # Behind the first exit every number of samples occurs.
        self.stages = [
            self.twin(stage["spec"], dynamic=index > 0)
            for index, stage in enumerate(stages)
        ]
        self.live = [stage["live"] for stage in stages]
        (self.name,) = stages[0]["spec"]["inputs"]

    def run(self, x):
        limits = self.thresholds or [None] * (len(self.stages) - 1)
        labels = torch.empty(len(x), dtype=torch.int64)
        exits = torch.empty(len(x), dtype=torch.int64)
        who, tensors = torch.arange(len(x)), {self.name: self.tensor(x)}
        for index, stage in enumerate(self.stages):
            tensors = {**tensors, **stage(tensors)}
            logits = tensors.pop("logits")
            if index == len(limits):
                labels[who], exits[who] = logits.argmax(-1), index
                break
            leaves = entropy(logits) < limit(limits[index])
            gone = who[leaves]
            labels[gone], exits[gone] = logits[leaves].argmax(-1), index
            who = who[~leaves]
            if not len(who):
                break
            tensors = {name: tensors[name][~leaves] for name in self.live[index]}
        return labels.numpy(), exits.numpy()


def limit(threshold):
    return float("-inf") if threshold is None else threshold


def entropy(logits):
    logs = torch.log_softmax(logits, -1)
    return -(logs.exp() * logs).sum(-1)


class CompiledPlain(TorchPlain):
    compiled = True


class CompiledLoop(TorchLoop):
    compiled = True


KINDS = {
    "torch": TorchPlain,
    "torch.compile": CompiledPlain,
    "torch, loop": TorchLoop,
    "torch.compile, loop": CompiledLoop,
}
