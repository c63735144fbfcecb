# SPDX-License-Identifier: Apache-2.0
"""One network with exits: its graphs, and their times at any batch size."""

import numpy as np
import staged_clock
import staged_counting as counting
import staged_networks as subjects
from gpu_rows import short

CACHE = 128 << 20  # bytes; a slice as large needs no other beside it
LEAST = 64  # samples of a pool
PIECE = 512  # samples that go through the stages at once, to fill the pools


class Bench:
    """The plain backbone, staged inference, and every stage with and without its head."""

    def __init__(self, tf, model, rehearse):
        from keras_branchy import cost, native

        self.tf, self.model, self.rehearse = tf, model, rehearse
        self.pace = {"seconds": 0.1, "trials": 9}
        if rehearse:
            self.pace = {"seconds": 0.01, "trials": 3}
        self.stages = model.stages()
        self.costs = cost.stage_costs(model)
        status = native.status()
        self.gate = "native" if status.native else f"reference: {status.cause}"
        self.plain_model = subjects.backbone_of(model)
        (self.name,) = self.stages[0].input_names
        self.specs = {self.name: self.spec(model.inputs[0])}
        self.thresholds_spec = {"t": tf.TensorSpec([len(self.stages) - 1], tf.float32)}
        self.plain = self.loop(self.run_plain, self.specs)
        self.staged = self.loop(
            lambda x, more: model.early_exit(x[self.name], more["t"]),
            self.specs,
            self.thresholds_spec,
        )
        self.stage_loops = [self.stage_loop(stage) for stage in self.stages]
        self.trunk_loops = [self.stage_loop(stage, heads=False) for stage in self.stages]
        self.measured = {}

    def spec(self, tensor):
        return self.tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)

    def loop(self, body, specs, extra=None, **options):
        return staged_clock.Loop(self.tf, body, specs, extra, **self.pace, **options)

    def run_plain(self, tensors, _):
        return self.plain_model(tensors[self.name], training=False)

    def stage_loop(self, stage, heads=True):
        """A stage; without its head only what later stages read, None if nothing."""
        last = stage is self.stages[-1]
        specs = {
            name: self.spec(tensor)
            for name, tensor in zip(stage.input_names, stage.model.inputs, strict=True)
        }
        if not heads and not last and not stage.output_names:
            return None

        def body(tensors, _):
            made = stage(tensors)
            if not heads and not last:
                del made["logits"]  # and with it, from the graph, the head
            return made

        return self.loop(body, specs)

    # ---- Pools -----------------------------------------------------------------------
    def pools(self, images):
        """What each stage reads for these images, by stage, and the scores of all exits."""
        tf, found, scores = self.tf, [], []
        tensors = {self.name: tf.constant(images)}
        for index, stage in enumerate(self.stages):
            found.append({name: tensors[name] for name in stage.input_names})
            made, score = [], []
            for start in range(0, len(images), PIECE):
                part = {n: x[start : start + PIECE] for n, x in tensors.items()}
                outputs, rated = self.step(index, part)
                made.append(outputs)
                score.append(rated.numpy())
            joined = {n: tf.concat([x[n] for x in made], 0) for n in made[0]}
            tensors = {n: ({**tensors, **joined})[n] for n in stage.live}
            scores.append(np.concatenate(score))
        return found, scores[:-1]

    def step(self, index, tensors):
        from keras_branchy import exit_gate

        stage = self.stages[index]
        made = stage({name: tensors[name] for name in stage.input_names})
        criterion = [*self.model.criteria, "entropy"][index]
        score = exit_gate(made["logits"], None, criterion)[2]
        return {n: x for n, x in made.items() if n != "logits"}, score

    def count_of_images(self, batch):
        size = 4 * int(np.prod(self.model.inputs[0].shape[1:]))
        slices = 1 if batch * size > CACHE else max(2, -(-LEAST // batch))
        return batch * slices

    def counts(self, images, batch, thresholds):
        """For each slice of the pool, the samples at each stage."""
        thresholds = self.tf.constant(thresholds, self.tf.float32)
        found = []
        for start in range(0, len(images), batch):
            answer = self.model.early_exit(images[start : start + batch], thresholds)
            exits = answer["exits"].numpy().tolist()
            found.append(counting.counts_of(exits, len(self.stages)))
        return found

    # ---- Times -----------------------------------------------------------------------
    def time_of(self, loops, pools, which):
        """`(stage, samples) -> µs`, each measured once."""

        def micros(stage, n):
            key = (which, stage, n)
            if key not in self.measured:
                loop = loops[stage]
                taken = loop.micros(pools[stage], n)[0] if loop else 0.0
                self.measured[key] = taken
            return self.measured[key]

        return micros

    def plain_row(self, images, batch):
        """Times of the plain backbone, as a graph, under XLA, and from Python."""
        tf, pools = self.tf, {self.name: tf_constant(self.tf, images)}
        micros, half = self.plain.micros(pools, batch)
        row = {"batch": batch, "plain_us": micros, "plain_spread_us": half}
        xla = self.loop(self.run_plain, self.specs, size=batch, xla=True)
        try:
            row["xla_us"], row["xla_spread_us"] = xla.micros(pools, batch)
        except tf.errors.OpError as error:
            row["xla_us"], row["xla_reason"] = None, short(error)
        run = tf.function(
            lambda x: tf.argmax(self.run_plain({self.name: x}, None), -1), autograph=False
        )
        first = pools[self.name][:batch]
        row["plain_call_us"] = staged_clock.call_micros(lambda: run(first).numpy())
        return row

    def staged_row(self, images, pools, plain, batch, thresholds):
        """Both countings at one batch size and one set of thresholds."""
        tf = self.tf
        counts = self.counts(images, batch, thresholds)
        extra = {"t": tf.constant(thresholds, tf.float32)}
        taken, half = self.staged.micros(pools[0], batch, extra)
        shares = counting.shares_of(counts)
        row = {"batch": batch, "shares": shares, "staged_us": taken}
        row |= {"staged_spread_us": half, "plain_us": plain["plain_us"]}
        row |= counting.figures(
            plain["plain_us"],
            taken,
            counts,
            self.time_of(self.stage_loops, pools, "stage"),
            self.time_of(self.trunk_loops, pools, "trunk"),
        )
        if plain["xla_us"]:
            row["gain_over_xla"] = plain["xla_us"] / taken
        row |= counting.mac_limits(self.costs, shares)
        first = pools[0][self.name][:batch]
        row["staged_call_us"] = staged_clock.call_micros(
            lambda: self.model.early_exit(first, extra["t"])["labels"].numpy()
        )
        return row

    def energy(self, meter, pools, batch, thresholds):
        """Millijoules an image, plain and staged."""
        extra = {"t": self.tf.constant(thresholds, self.tf.float32)}
        found = {"energy_method": meter.method}
        for name, loop, more in (
            ("plain", self.plain, None),
            ("staged", self.staged, extra),
        ):
            turns = max(1, int(0.2e6 / max(loop.micros(pools[0], batch, more)[0], 1)))
            spent = meter.of(lambda r=loop, m=more, t=turns: r.once(pools[0], batch, t, m))
            found[f"{name}_mj_per_image"] = spent / turns / batch
        return found


def tf_constant(tf, images):
    return images if tf.is_tensor(images) else tf.constant(images)
