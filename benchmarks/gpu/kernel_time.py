# SPDX-License-Identifier: Apache-2.0
"""The kernel beside five others on the same tensors, one dtype.

`median_us` is what decides: the time in a CUDA graph of many calls (JAX: in one jitted
loop), where Python's own cost does not count, for all alike; `call_us` is a call from
Python. Calls go through a pool of slices, and the cache is overwritten before each timed
run. `copy_share` is the rate at which logits are read and answers written, as a share of
the rate at which the largest copy of the same run reads and writes.
"""

import argparse
import statistics
import time

import gpu_rows
import kernel_native
import kernel_rivals
from gpu_rows import CouldNotRunError, need, short

SHAPES = [
    (1, 10),
    (1024, 10),
    (65536, 10),
    (65536, 100),
    (65536, 1000),
    (8192, 32000),
    (512, 256000),
]
REHEARSED = [(1, 10), (64, 10), (4, 5000)]
THRESHOLD = 0.5
ANSWER_BYTES = 13  # a bool, an int64 and a float32 for each row
TRIALS = 21


def main(args, rows):
    torch = need("torch")
    if not args.rehearse:
        gpu_rows.need_gpu()
        if not torch.cuda.is_available():
            raise CouldNotRunError("PyTorch does not see the GPU")
    device = "cpu" if args.rehearse else "cuda"
    native = kernel_native.build(args.rehearse)
    lab = Lab(torch, device)
    makers = kernel_rivals.contestants(torch, native, THRESHOLD, args.dtype, device)
    # What was missing may be there by now.
    rows.rows = [row for row in rows.rows if row["median_us"] is not None]
    failures = []
    for shape in REHEARSED if args.rehearse else SHAPES:
        wanted = [name for name in makers if not lab.there(rows, args.dtype, shape, name)]
        if wanted:
            failures += measure_shape(lab, rows, args.dtype, shape, wanted, makers)
    return failures


def measure_shape(lab, rows, dtype, shape, wanted, makers):
    pool = lab.pool(shape, dtype)
    truth = lab.truth(pool[0])
    copy_us = lab.copy_time(pool)
    key = {"batch": shape[0], "classes": shape[1], "dtype": dtype}
    failures = []
    for name in wanted:
        try:
            found = lab.best(makers[name], pool, truth, name)
        except CouldNotRunError as error:
            rows.add(**key, implementation=name, median_us=None, reason=str(error))
            continue
        except Exception as error:  # one that fails does not stop the others
            reason = short(error)
            rows.add(**key, implementation=name, median_us=None, reason=reason)
            failures += [f"{name} at {shape}: {reason}"] if name == "native" else []
            continue
        share = copy_share(shape, lab.bytes_of(pool[0]), found["median_us"], lab.copy_rate)
        rows.add(
            **key, implementation=name, **found, copy_us=copy_us, copy_share=round(share, 4)
        )
    return failures


def copy_share(shape, logit_bytes, micros, copy_rate):
    """Bytes that must move over the time, as a share of the copy's bytes a µs."""
    return (logit_bytes + ANSWER_BYTES * shape[0]) / micros / copy_rate


def spread(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return round(middle, 3), round((high - low) / 2, 3)


class Lab:
    """Pools, clocks and the truth, on one device."""

    def __init__(self, torch, device):
        self.torch, self.device, self.gpu = torch, device, device == "cuda"
        self.cache, self.trials = 1 << 20, TRIALS if self.gpu else 3
        if self.gpu:
            self.cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.flusher = self.empty(2 * self.cache, torch.uint8)
        big = self.empty(1 << (29 if self.gpu else 22), torch.uint8)
        target = torch.empty_like(big)
        micros = self.events([lambda: target.copy_(big)], self.trials)[0]
        self.copy_rate = 2 * big.numel() / micros  # bytes a µs

    def empty(self, count, dtype):
        return self.torch.empty(count, dtype=dtype, device=self.device)

    def there(self, rows, dtype, shape, name):
        key = {"batch": shape[0], "classes": shape[1], "dtype": dtype}
        return rows.has(**key, implementation=name)

    def bytes_of(self, tensor):
        return tensor.nbytes

    def pool(self, shape, dtype):
        """Slices [B, C], more than twice the cache in all where 64 of them are."""
        torch = self.torch
        kind = getattr(torch, dtype)
        one = shape[0] * shape[1] * torch.tensor([], dtype=kind).element_size()
        count = min(64, max(2, 1 + 2 * self.cache // one))
        generator = torch.Generator(self.device).manual_seed(20170906)
        slices = []
        for _ in range(count):
            made = torch.randn(shape, generator=generator, device=self.device) * 3.0
            slices.append(made.to(kind))
        return slices

    def truth(self, z):
        """Score in float64, and the lowest class of the largest logit."""
        torch, scores, labels = self.torch, [], []
        step = max(1, (1 << 24) // z.shape[1])
        classes = torch.arange(z.shape[1], device=z.device)
        for part in z.split(step):
            x = part.double()
            m = x.max(-1, keepdim=True).values
            d = x - m
            e = d.exp()
            at = torch.where(x == m, classes, z.shape[1]).min(-1).values
            rest = e.sum(-1) - 1  # all but the largest, in float64
            scores.append(torch.log1p(rest) - (e * d).sum(-1) / (1 + rest))
            labels.append(at)
        return torch.cat(scores), torch.cat(labels)

    def check(self, run, z, truth, name):
        """Whether the answers are right; raises if not."""
        torch = self.torch
        exits, labels, scores = (torch.as_tensor(x, device=z.device) for x in run(z))
        want, at = truth
        off = (scores.double() - want).abs()
        if name == "native":
            size = want.abs()
            allowed = size * (1e-6 + 1.2e-7 * (size + 1e-30).log().abs())
            same = labels == at
        else:
            allowed = 1e-3 * want.abs() + 1e-5
            chosen = z.gather(1, labels.long()[:, None])[:, 0]
            same = chosen == z.gather(1, at[:, None])[:, 0]  # any class of a tie
        clear = (want - THRESHOLD).abs() > allowed
        right = (off <= allowed) & same & ((exits.bool() == (want < THRESHOLD)) | ~clear)
        if not bool(right.all()):
            worst = float((off / allowed).max())
            raise RuntimeError(
                f"{int((~right).sum())} of {len(z)} rows are wrong; largest error "
                f"{worst:.3g} of what is allowed"
            )

    # ---- Clocks ----------------------------------------------------------------------
    def flush(self):
        self.flusher.zero_()

    def sync(self):
        if self.gpu:
            self.torch.cuda.synchronize()

    def events(self, calls, trials):
        """Median and spread, µs a call of `calls` one after another."""
        values = []
        for trial in range(trials + 2):
            self.flush()
            self.sync()
            if self.gpu:
                start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for call in calls:
                    call()
                stop.record()
                stop.synchronize()
                micros = start.elapsed_time(stop) * 1e3
            else:
                begin = time.perf_counter()
                for call in calls:
                    call()
                micros = (time.perf_counter() - begin) * 1e6
            if trial >= 2:
                values.append(micros / len(calls))
        return spread(values)

    def in_graph(self, calls, trials):
        """The same for a CUDA graph of all calls; None where it cannot be captured."""
        torch = self.torch
        if not self.gpu:
            return None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                for call in calls[:3]:
                    call()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
        except Exception as error:
            print(f"  not captured: {short(error)}", flush=True)
            self.sync()
            return None
        median, half = self.events([graph.replay], trials)
        return round(median / len(calls), 3), round(half / len(calls), 3)

    def copy_time(self, pool):
        """µs of a copy of one slice, timed as the kernels are."""
        target = self.torch.empty_like(pool[0])
        calls = [lambda z=z: target.copy_(z) for z in self.turns(pool)]
        return (self.in_graph(calls, self.trials) or self.events(calls, self.trials))[0]

    def turns(self, pool):
        """Slices of the pool in turn: as many calls as a timed run needs."""
        small = self.bytes_of(pool[0]) < (1 << 20)
        least = (200 if self.gpu else 8) if small else len(pool)
        return [pool[i % len(pool)] for i in range(max(least, len(pool)))]

    # ---- One implementation ----------------------------------------------------------
    def best(self, make, pool, truth, name):
        """Times the fastest right candidate of an implementation."""
        if name == "jax":
            return self.jax(make(), pool, truth)
        candidates = make()
        candidates = candidates(pool[0]) if callable(candidates) else candidates
        timed, problems = [], []
        for run in candidates:
            try:
                self.check(run, pool[0], truth, name)
                calls = [lambda z=z, run=run: run(z) for z in pool[:3]]
                timed.append(((self.in_graph(calls, 5) or self.events(calls, 5))[0], run))
            except Exception as error:
                problems.append(f"{run.__name__}: {short(error)}")
        if not timed:
            raise RuntimeError("; ".join(problems))
        run = min(timed, key=lambda pair: pair[0])[1]
        calls = [lambda z=z: run(z) for z in self.turns(pool)]
        call_us, call_spread = self.events(calls, self.trials)
        graph = self.in_graph(calls, self.trials)
        median, half = graph or (call_us, call_spread)
        made = {"median_us": median, "spread_us": half, "call_us": call_us}
        made["timing"] = "graph" if graph else "calls"
        if len(candidates) > 1:
            made["variant"] = run.__name__
        return made | ({"left_out": problems} if problems else {})

    def jax(self, candidates, pool, truth):
        """JAX by the clock, since it has a stream of its own.

        A jitted loop over the pool, or calls that do not wait for each other, whichever is
        faster: XLA may copy what a loop slices.
        """
        jax = need("jax")
        if self.gpu and jax.default_backend() != "gpu":
            raise CouldNotRunError(f"JAX runs on {jax.default_backend()}, not on the GPU")
        slices = [jax.dlpack.from_dlpack(z) for z in pool]
        stack = jax.numpy.stack(slices)
        turns = len(self.turns(pool)) * (5 if self.gpu else 1)
        timed, problems = [], []
        for run in candidates:
            try:
                self.check(lambda z, run=run: self.from_jax(run, z), pool[0], truth, "jax")
                timed.append((self.jax_loop(jax, run, stack, turns, 5)[0], run))
            except Exception as error:
                problems.append(f"{run.__name__}: {short(error)}")
        if not timed:
            raise RuntimeError("; ".join(problems))
        run = min(timed, key=lambda pair: pair[0])[1]
        median, half = self.jax_loop(jax, run, stack, turns, self.trials)
        calls = self.jax_calls(jax, run, self.turns(slices))
        found = {"median_us": median, "spread_us": half, "timing": "jitted loop"}
        if calls[0] < median:
            found = {"median_us": calls[0], "spread_us": calls[1], "timing": "calls"}
        return found | {"call_us": calls[0], "variant": run.__name__}

    def from_jax(self, run, z):
        made = run(need("jax").dlpack.from_dlpack(z))
        return [self.torch.from_dlpack(x.astype(x.dtype)) for x in made]

    def jax_loop(self, jax, run, stack, turns, trials):
        """µs a turn of a loop that carries the answers and goes through the pool."""
        lax, count = jax.lax, len(stack)

        @jax.jit
        def loop(stack):
            def turn(i, before):
                z = lax.dynamic_index_in_dim(stack, i % count, 0, keepdims=False)
                return run.__wrapped__(z)

            return lax.fori_loop(0, turns, turn, run.__wrapped__(stack[0]))

        def once():
            jax.block_until_ready(loop(stack))

        values = []
        for trial in range(trials + 1):
            self.flush()
            self.sync()
            begin = time.perf_counter()
            once()
            if trial:
                values.append((time.perf_counter() - begin) * 1e6 / (turns + 1))
        return spread(values)

    def jax_calls(self, jax, run, slices):
        """µs a call of jitted calls, all of them on their way before the wait."""
        values = []
        for _ in range(self.trials):
            self.flush()
            self.sync()
            begin = time.perf_counter()
            made = [run(z) for z in slices]
            jax.block_until_ready(made)
            values.append((time.perf_counter() - begin) * 1e6 / len(slices))
        return spread(values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", required=True)
    gpu_rows.run(main, parser)
