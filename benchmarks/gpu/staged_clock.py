# SPDX-License-Identifier: Apache-2.0
"""Times TensorFlow graphs inside a `while_loop`, so that a call from Python does not count.

A turn takes the next slice of a pool; the difference of two lengths of the loop leaves out
what a call costs. Slices of whole rows share the pool's memory: nothing is copied.
"""

import statistics
import time


class Loop:
    """`body(tensors, extra) -> outputs` as a loop over slices of pools, traced once.

    Args:
        tf: TensorFlow.
        body: What a turn does.
        specs: Of the pools, by name.
        extra: Specs of tensors that every turn gets as they are.
        seconds: What a timed loop should take.
        trials: How many of them.
        size: Samples of a slice, where the graph must know it.
        xla: Whether XLA compiles the body.
    """

    def __init__(
        self, tf, body, specs, extra=None, *, seconds, trials, size=None, xla=False
    ):
        self.tf, self.seconds, self.trials = tf, seconds, trials
        if xla:
            body = tf.function(body, jit_compile=True, autograph=False)

        def run(pools, more, n, turns):
            slices = tf.shape(next(iter(pools.values())))[0] // n

            def turn(i, total):
                begin = (i % slices) * n
                tensors = {
                    name: rows_of(tf, pool, begin, n if size is None else size)
                    for name, pool in pools.items()
                }
                made = [touch(tf, x) for x in tf.nest.flatten(body(tensors, more))]
                return i + 1, total + tf.add_n(made)

            start = [tf.constant(0), tf.constant(0.0)]
            return tf.while_loop(
                lambda i, _: i < turns, turn, start, parallel_iterations=1
            )[1]

        integer = tf.TensorSpec([], tf.int32)
        signature = [specs, extra or {}, integer, integer]
        self.run = tf.function(run, input_signature=signature, autograph=False)

    def once(self, pools, n, turns, extra=None):
        """Seconds of one call of so many turns, the GPU's work included."""
        numbers = self.tf.constant(n), self.tf.constant(turns)
        start = time.perf_counter()
        self.run(pools, extra or {}, *numbers).numpy()
        return time.perf_counter() - start

    def micros(self, pools, n, extra=None):
        """Median and half the distance of the quartiles, µs a turn."""
        self.once(pools, n, 2, extra)
        few, many = 2, 12
        each = self.once(pools, n, many, extra) - self.once(pools, n, few, extra)
        each = max(each / (many - few), 1e-6)
        turns = int(min(20000, max(4, self.seconds / each)))
        short = max(1, turns // 8)
        values = []
        for _ in range(self.trials):
            taken = self.once(pools, n, turns, extra) - self.once(pools, n, short, extra)
            values.append(max(taken, 0.0) / (turns - short) * 1e6)
        low, middle, high = statistics.quantiles(values, n=4)
        return middle, (high - low) / 2


def rows_of(tf, pool, begin, count):
    """Rows [begin, begin + count) of a pool."""
    rest = pool.shape.rank - 1
    begin = tf.stack([begin, *[tf.constant(0)] * rest])
    if isinstance(count, int):
        return tf.slice(pool, begin, [count, *pool.shape[1:]])
    return tf.slice(pool, begin, tf.stack([count, *[tf.constant(-1)] * rest]))


def touch(tf, x):
    """One element, which keeps the rest from being left out of the graph."""
    return tf.cast(tf.reshape(x, [-1])[0], tf.float32)


def call_micros(call, seconds=0.2, most=200):
    """Median µs of a call from Python that waits for its answer."""
    call()
    values, start = [], time.perf_counter()
    while len(values) < 3 or (time.perf_counter() - start < seconds and len(values) < most):
        begin = time.perf_counter()
        call()
        values.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(values)
