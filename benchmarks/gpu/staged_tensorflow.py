# SPDX-License-Identifier: Apache-2.0
"""Staged inference in one tf.function against the plain backbone, by batch and shares.

A row holds both countings: everything, and the trunk only as published. Times are of loops
inside a graph (staged_clock.py); `…_call_us` are calls from Python. The plain backbone also
runs under XLA; staged inference does not, since the native gate is outside it.
"""

import argparse

import gpu_rows
import staged_counting as counting
import staged_networks as subjects
import staged_profile
from gpu_rows import CouldNotRunError, short
from staged_bench import Bench
from staged_energy import Meter
from staged_sweep import swept

BATCHES = (1, 8, 64, 256, 1024, 4096, 8192)
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
REHEARSED = (4,), (0.0, 0.5)
ENERGY = (1, 1024, 8192)  # batches at which energy is measured
PROFILED = 1024
MODEL = "calibrated"  # in place of a swept share


def main(args, rows):
    tf = subjects.prepare(args, "auto")
    subjects.need_tensorflow_gpu(tf, args)
    model, trained = subjects.make(args.network, args.carried, args.rehearse)
    about = "untrained"
    if trained:
        about = subjects.calibrated(model, args.network, args.carried)
    bench = Bench(tf, model, args.rehearse)
    batches, shares = REHEARSED if args.rehearse else (BATCHES, SHARES)
    points = [MODEL, *shares] if trained else list(shares)
    common = {"network": args.network, "framework": "tensorflow", "gate": bench.gate}
    common |= {"thresholds_are": about}
    for batch in batches:
        wanted = [p for p in points if not rows.has(kind="staged", batch=batch, sweep=p)]
        if not wanted or rows.has(kind="left out", batch=batch):
            continue
        try:
            one_batch(rows, bench, args, batch, wanted, common)
        except tf.errors.ResourceExhaustedError as error:
            rows.add(**common, kind="left out", batch=batch, reason=short(error))
    conclude(rows, bench, args, batches, common)


def one_batch(rows, bench, args, batch, wanted, common):
    count = bench.count_of_images(batch)
    images, kind = subjects.some_images(bench.model, args.network, args.carried, count)
    common = {**common, "images": kind}
    pools, scores = bench.pools(images)
    known = rows.find(kind="plain", batch=batch)
    if not known:
        row = counting.rounded(bench.plain_row(pools[0][bench.name], batch))
        rows.add(**common, kind="plain", **row)
        known = rows.find(kind="plain", batch=batch)
    for point in wanted:
        thresholds = thresholds_of(bench.model, scores, point)
        row = bench.staged_row(images, pools, known[0], batch, thresholds)
        if batch in ENERGY and point in (MODEL, 0.9) and not args.rehearse:
            row |= energy_of(bench, pools, batch, thresholds)
        rows.add(**common, kind="staged", sweep=point, **counting.rounded(row))


def thresholds_of(model, scores, point):
    if point == MODEL:
        from keras_branchy.thresholds import gate_thresholds

        return list(map(float, gate_thresholds(model.thresholds, model.criteria)))
    return swept(scores, model.criteria, point)


def energy_of(bench, pools, batch, thresholds):
    try:
        return bench.energy(Meter(), pools, batch, thresholds)
    except CouldNotRunError as error:
        return {"energy_method": f"could not run: {error}"}


def conclude(rows, bench, args, batches, common):
    """Break-even shares, and where the time goes."""
    rows.rows = [row for row in rows.rows if row["kind"] != "break even"]
    for batch in batches:
        swept = [r for r in rows.find(kind="staged", batch=batch) if r["sweep"] != MODEL]
        if swept:
            share = counting.break_even(swept)
            rows.add(**common, kind="break even", batch=batch, share=share)
    if not rows.has(kind="profile"):
        batch = batches[-1] if args.rehearse else PROFILED
        images, _ = subjects.some_images(bench.model, args.network, args.carried, batch)
        scores = bench.pools(images)[1]
        thresholds = thresholds_of(bench.model, scores, 0.5)
        found = staged_profile.of(bench, images, thresholds)
        rows.add(**common, kind="profile", batch=batch, sweep=0.5, **found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", required=True)
    gpu_rows.run(main, parser)
