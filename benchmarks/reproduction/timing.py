# SPDX-License-Identifier: Apache-2.0
"""Time an image, in both countings, the plain and the branchy network taking turns.

Everything: from NumPy to labels in NumPy, heads, gate, masking and copies inside the timer,
the device waited for. Trunk only: as BranchyNet's authors took theirs, one image at a time,
the segments of the trunk alone, weighted by the share of the images that needs them, beside
the whole plain network in one call.
"""

import time

import evidence
import keras
import numpy as np
import tensorflow as tf

SIZES = {1: 600, 512: 30}  # batch size: rounds


def times(plain, model, thresholds, images, shares):
    """Milliseconds an image and gains, by batch size and counting."""
    model.thresholds = thresholds
    taken = {
        f"batch_{size}": everything(plain, model, images, size, rounds)
        for size, rounds in SIZES.items()
        if size <= len(images)
    }
    return {**taken, "batch_1_trunk_only": trunk_only(plain, model, images, shares)}


def everything(plain, model, images, size, rounds):
    """The gain is of means: images that leave and that stay are both part of the time."""
    found = evidence.compare(plain, model, images, size, rounds)
    return {**found, "gain": found["times_as_fast"]["mean"]}


def trunk_only(plain, model, images, shares, rounds=300):
    """The authors' counting: medians of segments, weighted by who needs them.

    The plain network is one call, not the sum of calls for its segments.
    """
    runs = [*trunk_segments(model, images[:1]), in_one_call(plain, images[:1])]
    for run in runs:
        run()
    taken = np.zeros((rounds, len(runs)))
    for turn in range(rounds):
        for index, run in enumerate(runs):
            begin = time.perf_counter()
            run()
            taken[turn, index] = (time.perf_counter() - begin) * 1e3
    *medians, alone = np.median(taken, axis=0).tolist()
    needed = 1 - np.concatenate([[0], np.cumsum(shares[:-1])])
    return {
        "segments_ms": medians,
        "plain_ms": alone,
        "branchy_ms": float(medians @ needed),
        "gain": float(alone / (medians @ needed)),
    }


def in_one_call(plain, image):
    tensor = tf.constant(image)
    traced = tf.function(lambda x: plain(x, training=False), autograph=False)
    concrete = traced.get_concrete_function(tensor)
    return lambda: concrete(tensor)


def trunk_segments(model, image):
    """A function without arguments for each stage's part of the trunk, heads left out."""
    tensors = {model.inputs[0]._keras_history.operation.name: tf.constant(image)}
    segments = []
    for stage in model.stages():
        run, made = segment(stage, tensors)
        tensors.update(made)
        segments.append(run)
    return segments


def segment(stage, tensors):
    """The stage without its head, unless it is the last, and what it makes."""
    outputs = {name: stage.model.output[name] for name in stage.model.output}
    logits = outputs.pop("logits")
    trunk = keras.Model(stage.model.input, outputs or {"logits": logits})
    traced = tf.function(lambda read: trunk(read, training=False))
    read = {name: tensors[name] for name in stage.model.input}
    concrete = traced.get_concrete_function(read)
    return lambda: concrete(read), concrete(read)
