# SPDX-License-Identifier: Apache-2.0
"""Answers on the GPU, without TF32, against those on the CPU, for all test images.

Each device answers in a process of its own. An image may differ only where a score that was
asked is within a thousandth of its threshold; those are counted.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gpu_rows
import staged_networks as subjects
from gpu_rows import CouldNotRunError

NEAR = 1e-3  # of the threshold
MOST_NEAR = 0.002  # share of the images
REHEARSED = 64


def main(args, rows):
    if args.answers:
        return answer(args)
    if rows.rows:
        return verdict(rows.rows[0])
    if not args.rehearse:
        gpu_rows.need_gpu()
    data = subjects.DATA[args.network]
    carried = args.carried
    if not carried or not (carried / f"{data}.npz").exists():
        raise CouldNotRunError(
            f"there is no {data}.npz; --carried names the folder that carry.py writes"
        )
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        cpu, gpu = (other(args, Path(folder) / f"{d}.npz", d) for d in ("cpu", "gpu"))
        with np.load(cpu) as one, np.load(gpu) as two:
            found = compared(np, dict(one), dict(two))
    rows.add(network=args.network, data=data, **found)
    return verdict(found)


def verdict(found):
    failures = []
    if found["differ"]:
        failures.append(f"{found['differ']} images differ away from the threshold")
    # Scores of untrained networks crowd about their median.
    if found["trained"] and found["near_share"] > MOST_NEAR:
        failures.append(f"{found['near_share']:.2%} of the images are near a threshold")
    return failures


def compared(np, cpu, gpu):
    """Counts of images. Each holds labels, exits, and scores [early exits, n]."""
    near = np.zeros(len(cpu["exits"]), bool)
    for index, limit in enumerate(cpu["thresholds"]):
        # Only decisions that are taken: who has left before is not asked again.
        asked = np.minimum(cpu["exits"], gpu["exits"]) >= index
        distance = np.abs(cpu["scores"][index] - limit)
        near |= asked & np.isfinite(limit) & (distance <= NEAR * abs(limit))
    differs = (cpu["exits"] != gpu["exits"]) | (cpu["labels"] != gpu["labels"])
    return {
        "images": len(near),
        "differ": int((differs & ~near).sum()),
        "differ_near": int((differs & near).sum()),
        "near": int(near.sum()),
        "near_share": float(near.mean()),
        "thresholds": cpu["thresholds"].tolist(),
        "trained": bool(cpu["trained"]),
        "largest_score_difference": float(
            np.abs(cpu["scores"] - gpu["scores"]).max(initial=0.0)
        ),
    }


def other(args, path, device):
    """Answers of a device, in a process of its own."""
    command = [sys.executable, __file__, "--network", args.network, "--device", device]
    command += ["--answers", str(path), "--rows", str(args.rows)]
    command += ["--carried", str(args.carried)] + ["--rehearse"] * args.rehearse
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {}
    subprocess.run(command, env={**os.environ, **hidden}, check=True)
    return path


def answer(args):
    tf = subjects.prepare(args, "auto")
    if args.device == "gpu":
        subjects.need_tensorflow_gpu(tf, args)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    import numpy as np

    from keras_branchy.scoring import all_logits
    from keras_branchy.thresholds import gate_thresholds

    model, trained = subjects.make(args.network, args.carried, args.rehearse)
    images, _ = subjects.images(args.network, args.carried, "test")
    images = images[:REHEARSED] if args.rehearse else images
    logits, _ = all_logits(model, images, batch_size=500, verbose=0)
    scores = np.stack(
        [score_of(z, c) for z, c in zip(logits, model.criteria, strict=False)]
    )
    if trained:
        subjects.calibrated(model, args.network, args.carried)
    else:
        model.thresholds = thresholds_without_training(np, scores, args)
    given = model.predict_early(images, batch_size=500, verbose=0)
    np.savez(
        args.answers,
        labels=given.labels,
        exits=given.exits,
        scores=scores,
        thresholds=np.asarray(gate_thresholds(model.thresholds, model.criteria)),
        trained=trained,
    )


def score_of(logits, criterion):
    from keras_branchy.criteria import gate_scores

    return gate_scores(logits, criterion)[0]


def thresholds_without_training(np, scores, args):
    """Medians of the CPU's scores, which the second process reads from the first."""
    before = args.answers.with_name("cpu.npz")
    if before.exists() and before != args.answers:
        with np.load(before) as cpu:
            return cpu["thresholds"].tolist()
    return [float(np.median(row)) for row in scores]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", required=True)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--device", choices=("cpu", "gpu"))
    gpu_rows.run(main, parser)
