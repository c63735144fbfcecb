# SPDX-License-Identifier: Apache-2.0
"""The same staging through PyTorch calling the kernel: B-LeNet and B-AlexNet.

For a machine on which TensorFlow cannot be made to work, and labelled as what it is. A
stage, the gate, one host read of how many stay, an index of them, the next stage. Weights
are the arrays of NETWORK.npz (carry.py), or drawn. Times are of calls from Python between
CUDA events, the plain backbone's as well; as CUDA graphs the plain backbone and the stages
alone are timed too, which staged inference, with its host reads, cannot be.
"""

import argparse

import gpu_rows
import kernel_native
import staged_counting as counting
from gpu_rows import CouldNotRunError, need, short
from kernel_time import spread
from staged_layers import NETWORKS, Network
from staged_sweep import swept

BATCHES = (1, 8, 64, 256, 1024, 4096, 8192)
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
REHEARSED = (1, 8), (0.0, 0.5, 1.0)
TRIALS = 21
MODEL = "calibrated"


def main(args, rows):
    torch = need("torch")
    if not args.rehearse:
        gpu_rows.need_gpu()
        if not torch.cuda.is_available():
            raise CouldNotRunError("PyTorch does not see the GPU")
    torch.backends.cuda.matmul.allow_tf32 = True  # as TensorFlow does
    torch.backends.cudnn.allow_tf32 = True
    bench = Bench(torch, args)
    batches, shares = REHEARSED if args.rehearse else (BATCHES, SHARES)
    points = [MODEL, *shares] if bench.thresholds else list(shares)
    common = {"network": args.network, "framework": "torch", "gate": "native"}
    common["thresholds_are"] = "of the file" if bench.thresholds else "untrained"
    with torch.inference_mode():
        for batch in batches:
            for point in points:
                if not rows.has(batch=batch, sweep=point):
                    row = counting.rounded(bench.row(batch, point))
                    rows.add(**common, kind="staged", sweep=point, **row)
    return None


class Bench:
    """The plain backbone, its stages, and staged inference around the kernel."""

    def __init__(self, torch, args):
        self.torch, self.gpu = torch, not args.rehearse
        self.trials = TRIALS if self.gpu else 3
        self.device = "cuda" if self.gpu else "cpu"
        arrays = arrays_of(args)
        self.net = Network(torch, args.network, self.device, arrays)
        self.thresholds = thresholds_in(arrays)
        self.gates = {}
        self.native = kernel_native.build(args.rehearse)
        self.measured = {}
        self.about = NETWORKS[args.network]

    # ---- Staged inference ------------------------------------------------------------
    def plain(self, x):
        for stage in range(self.net.stages):
            x = self.net.trunk(stage, x)
        return x.argmax(-1)

    def gate(self, logits, threshold):
        if threshold not in self.gates:
            self.gates[threshold] = self.native.gate(self.torch, threshold)
        return self.gates[threshold](logits)

    def staged(self, x, thresholds):
        """Label and exit of every sample, in the order of the input."""
        torch = self.torch
        labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
        exits = torch.empty_like(labels)
        position = None
        for stage in range(self.net.stages):
            x = self.net.trunk(stage, x)
            last = stage == self.net.stages - 1
            logits = x if last else self.net.head(stage, x)
            limit = float("-inf") if last else thresholds[stage]
            leaves, label, _ = self.gate(logits.contiguous(), limit)
            # Everyone here gets this answer; who stays gets a later one over it.
            if position is None:
                labels.copy_(label)
                exits.fill_(stage)
            else:
                labels[position] = label
                exits[position] = stage
            if last:
                break
            stay = (~leaves).nonzero()[:, 0]  # the one host read: how many
            if not len(stay):
                break
            position = stay if position is None else position[stay]
            x = x[stay]
        return labels, exits

    # ---- Thresholds ------------------------------------------------------------------
    def scores(self, x):
        found = []
        for stage in range(self.net.stages - 1):
            x = self.net.trunk(stage, x)
            logits = self.net.head(stage, x).contiguous()
            found.append(self.gate(logits, float("-inf"))[2].cpu().numpy())
        return found

    def thresholds_of(self, x, point):
        if point == MODEL:
            return self.thresholds
        return swept(self.scores(x), ["entropy"] * (self.net.stages - 1), point)

    # ---- Times -----------------------------------------------------------------------
    def micros(self, calls, graph=False):
        """Median µs a call, between events; or of a graph of the calls."""
        torch = self.torch
        if not self.gpu:
            return self.by_clock(calls)
        for call in calls[:3]:
            call()
        torch.cuda.synchronize()
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                for call in calls:
                    call()
            return self.events([captured.replay]) / len(calls)
        return self.events(calls)

    def events(self, calls):
        torch, values = self.torch, []
        for _ in range(self.trials):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for call in calls:
                call()
            stop.record()
            stop.synchronize()
            values.append(start.elapsed_time(stop) * 1e3 / len(calls))
        return spread(values)[0]

    def by_clock(self, calls):
        import time

        values = []
        for _ in range(self.trials):
            begin = time.perf_counter()
            for call in calls:
                call()
            values.append((time.perf_counter() - begin) * 1e6 / len(calls))
        return spread(values)[0]

    def time_of(self, slices, heads):
        """`(stage, samples) -> µs` of a stage from Python, with or without its head."""

        def micros(stage, n):
            key = (stage, n, heads)
            if key not in self.measured:
                given = [x[stage][:n].contiguous() for x in slices]
                calls = [lambda x=x: self.one_stage(stage, x, heads) for x in given]
                self.measured[key] = self.micros(calls)
            return self.measured[key]

        return micros

    def one_stage(self, stage, x, heads):
        x = self.net.trunk(stage, x)
        if heads and stage < self.net.stages - 1:
            self.net.head(stage, x)
        return x

    def inputs_of_stages(self, x):
        found = []
        for stage in range(self.net.stages):
            found.append(x)
            x = self.net.trunk(stage, x)
        return found

    def row(self, batch, point):
        torch = self.torch
        count = max(2, 64 // batch)
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (count * batch, *self.about["shape"])
        pool = torch.rand(shape, generator=generator, device=self.device)
        thresholds = self.thresholds_of(pool, point)
        slices = list(pool.split(batch))
        exits = [self.staged(x, thresholds)[1].tolist() for x in slices]
        counts = [counting.counts_of(each, self.net.stages) for each in exits]
        stages = [self.inputs_of_stages(x) for x in slices[:2]]
        plain = self.micros([lambda x=x: self.plain(x) for x in slices])
        staged = self.micros([lambda x=x: self.staged(x, thresholds) for x in slices])
        row = {"batch": batch, "shares": counting.shares_of(counts)}
        row |= {"plain_us": plain, "staged_us": staged}
        row["plain_graph_us"] = self.in_graph(slices)
        return row | counting.figures(
            plain, staged, counts, self.time_of(stages, True), self.time_of(stages, False)
        )

    def in_graph(self, slices):
        if not self.gpu:
            return None
        try:
            return self.micros([lambda x=x: self.plain(x) for x in slices], graph=True)
        except RuntimeError as error:
            print(f"  not captured: {short(error)}", flush=True)
            return None


def arrays_of(args):
    """The arrays of NETWORK.npz by name, or None."""
    path = args.carried and args.carried / f"{args.network}.npz"
    if not path or not path.exists():
        return None
    with need("numpy").load(path) as data:
        return dict(data)


def thresholds_in(arrays):
    found = [] if arrays is None else arrays["thresholds"].tolist()
    return found if found and all(t == t for t in found) else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", required=True)
    gpu_rows.run(main, parser)
