# SPDX-License-Identifier: Apache-2.0
"""What was tried to make staged inference faster, each try beside what it would replace.

    python benchmarks/engine_trials.py [--json FILE] [--seconds 4]

On untrained networks, since time does not depend on weights; thresholds are quantiles of
the first exit's scores. One thread, but where two are on trial. Contestants take turns on
the same batches, and their answers are compared before they are timed. docs/performance.md
shows the table.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
# In place of this folder, whose files TensorFlow would take for its own modules.
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "examples"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from keras_branchy import StageRunner, networks, stages  # noqa: E402
from keras_branchy import batch_gate as gate_of_batches  # noqa: E402
from keras_branchy.batch_gate import batch_gate  # noqa: E402
from keras_branchy.criteria import gate_scores  # noqa: E402
from keras_branchy.direct_call import direct_call  # noqa: E402
from keras_branchy.early_exit import quick_call  # noqa: E402
from keras_branchy.exit_gate import exit_gate  # noqa: E402
from keras_branchy.row_gate import row_gate, softmax  # noqa: E402
from keras_branchy.runner import thread_choice  # noqa: E402
from keras_branchy.runner.engines import open_program  # noqa: E402
from keras_branchy.runner.manifest import Manifest  # noqa: E402
from keras_branchy.thresholds import gate_thresholds  # noqa: E402

FEWEST = 5  # rounds, however long they take
BATCHES = 16  # different ones
WARM = 20  # times, until few samples of a late stage have come to a choice too


def main():
    args = parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    rows = []
    for trial in TRIALS:
        for row in trial(args.seconds):
            print(json.dumps(row), flush=True)
            rows.append(row)
    report = {"rows": rows, "seconds": args.seconds, "made_with": made_with()}
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def made_with():
    import evidence

    return {
        **evidence.surroundings(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": "python benchmarks/engine_trials.py --json FILE",
    }


# ---- Two cores -----------------------------------------------------------------------
def threads(seconds):
    """LiteRT with two threads, against a runner with one for each half of a batch."""
    for name, shape in (("b_lenet", (28, 28, 1)), ("b_alexnet", (32, 32, 3))):
        keras.utils.set_random_seed(0)
        model = getattr(networks, name)()
        images = made_up(shape, 512)
        scores = entropies(model, images)
        model.thresholds = [1.0] * (len(model.exit_names) - 1)
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
            path = Path(folder) / "stages"
            model.export_stages(path, format="litert", batch_size=None, verbose=0)
            within = StageRunner(path, threads=2)
            halves = [StageRunner(path), StageRunner(path)]
            for size, share in product((32, 256), (0.25, 0.95)):
                limits = [float(np.quantile(scores, share))]
                limits += [None] * (len(model.criteria) - 1)
                ways = {
                    "within LiteRT": partial(in_one, within, limits),
                    "a half each": partial(in_halves, halves, pool, limits),
                }
                batches = [images[i : i + size] for i in range(0, len(images), size)]
                runs = {way: partial(over, run, batches) for way, run in ways.items()}
                agreed(runs)
                yield contest(
                    "two threads, in LiteRT",
                    runs,
                    seconds,
                    len(images),
                    network=name,
                    batch=size,
                    share=share,
                )


def choosing(seconds):
    """As many threads as are faster, all or one, against all of them.

    Also where there are more threads than cores, as on a machine that others use too.
    """
    model = networks.b_lenet()
    images = made_up((28, 28, 1), 128)
    model.thresholds = [float(np.quantile(entropies(model, images), 0.95))]
    with tempfile.TemporaryDirectory() as folder:
        for size, count in product((1, 8), (2, 4)):
            path = Path(folder) / str(size)
            fixed = 1 if size == 1 else None
            model.export_stages(path, format="litert", batch_size=fixed, verbose=0)
            batches = [images[i : i + size] for i in range(0, len(images), size)]
            runs = {}
            for way, short in (("chosen", thread_choice.SHORT), ("all", -1.0)):
                runner = StageRunner(path, threads=count)
                runs[way] = partial(over, partial(in_one, runner, None), batches)
                with mock.patch.object(thread_choice, "SHORT", short):
                    for _ in range(WARM):
                        runs[way]()
            agreed(runs)
            yield contest(
                f"one thread where it is faster, of {count} on two cores",
                runs,
                seconds,
                len(images),
                network="b_lenet",
                batch=size,
                share=0.95,
            )


def in_one(runner, limits, x):
    return runner.predict(x, limits).exits


def in_halves(runners, pool, limits, x):
    middle = len(x) // 2
    other = pool.submit(runners[1].predict, x[middle:], limits)
    return np.concatenate(
        [runners[0].predict(x[:middle], limits).exits, other.result().exits]
    )


def over(run, batches):
    return np.concatenate([run(x) for x in batches])


# ---- Layers that a head shares with the trunk ----------------------------------------
def sharing(seconds):
    """Stages that begin behind them, against stages that each compute their own."""
    for name, shape in (("b_lenet", (28, 28, 1)), ("b_alexnet", (32, 32, 3))):
        images = made_up(shape, 512)
        cuts = {how: cut_model(name, how) for how in ("shared", "apart")}
        scores = entropies(cuts["shared"], images)
        for engine, share in product(("TensorFlow", "LiteRT"), (0.25, 0.95)):
            nats = float(np.quantile(scores, share))
            thresholds = [nats, *[None] * (len(cuts["shared"].criteria) - 1)]
            with ExitStack() as open_until_timed:
                runs = {
                    how: partial(
                        answered, ENGINES[engine](model, open_until_timed), thresholds
                    )
                    for how, model in cuts.items()
                }
                one, other = (run(images[:256]) for run in runs.values())
                np.testing.assert_array_equal(one, other)
                yield contest(
                    f"layers of head and trunk computed once, in {engine}",
                    {k: partial(run, images) for k, run in runs.items()},
                    seconds,
                    len(images),
                    network=name,
                    batch=256,
                    share=share,
                )


def cut_model(name, how):
    """Cut as it is now, or as if no layer were shared; the weights are the same."""
    keras.utils.set_random_seed(0)
    model = getattr(networks, name)()
    if how == "shared":
        model.stages()
        return model
    with mock.patch.object(stages, "shared_layers", lambda x, head, trunk: (x, 0)):
        model.stages()
    return model


def traced(model, _):
    run = model.early_exit.get_concrete_function()

    def exits(x, thresholds):
        return run(x, tf.constant(gate_thresholds(thresholds, model.criteria)))["exits"]

    return exits


def staged(model, open_until_timed):
    path = Path(open_until_timed.enter_context(tempfile.TemporaryDirectory())) / "stages"
    model.thresholds = [1.0] * len(model.criteria)
    model.export_stages(path, format="litert", batch_size=None, verbose=0)
    runner = StageRunner(path)
    return lambda x, thresholds: runner.predict(x, thresholds).exits


ENGINES = {"TensorFlow": traced, "LiteRT": staged}


def answered(exits_of, thresholds, images):
    batches = (images[start : start + 256] for start in range(0, len(images), 256))
    return np.concatenate([np.asarray(exits_of(x, thresholds)) for x in batches])


# ---- TensorFlow: how the traced function is called -----------------------------------
def calling(seconds):
    """`early_exit` as it is, the concrete function that it comes to, and its operation.

    The last is traced for at least one sample, and so without the condition around it all.
    """
    model = networks.b_lenet()
    images = made_up((28, 28, 1), BATCHES * 256)
    limit = np.array([np.median(entropies(model, images))], np.float32)
    concrete = model.early_exit.get_concrete_function()
    made = {
        "tf.function": model.early_exit,
        "concrete function": concrete,
        "operation": direct_call(concrete),
        "operation, never empty": quick_call(model),
    }
    trial = "how the traced function is called"
    for size in (32, 256):
        yield of_calls(trial, made, images, size, 0.5, limit, seconds)


def of_calls(trial, made, images, size, share, limit, seconds):
    """The row of ways to compute B-LeNet's staged inference, which must agree."""
    batches = [images[i : i + size] for i in range(0, BATCHES * size, size)]
    runs = {name: partial(called, run, batches, limit) for name, run in made.items()}
    agreed(runs)
    about = {"network": "b_lenet", "batch": size, "share": share}
    return contest(trial, runs, seconds, BATCHES * size, **about)


def called(run, batches, limit):
    limit = tf.constant(limit)
    answers = (run(tf.constant(x), limit) for x in batches)
    found = ({k: v.numpy() for k, v in answer.items()} for answer in answers)
    return np.concatenate([answer["exits"] for answer in found])


# ---- TensorFlow: how those who stay are found ----------------------------------------
def searching(seconds):
    """One search an exit, and answers written over those of the exit before.

    Against `tf.boolean_mask` of all that leaves and of all that stays, which TensorFlow
    makes two searches of, and answers put together and back in order.
    """
    model = networks.b_lenet()
    images = made_up((28, 28, 1), BATCHES * 256)
    scores = entropies(model, images)
    made = {
        "one search": model.early_exit.get_concrete_function(),
        "boolean_mask": masked(model),
    }
    trial = "one search for those who stay, in TensorFlow"
    for size, share in product((32, 256), (0.25, 0.95)):
        limit = np.array([np.quantile(scores[: BATCHES * size], share)], np.float32)
        yield of_calls(trial, made, images, size, share, limit, seconds)


def masked(model):
    """Staged inference of a model with two exits by `tf.boolean_mask`."""
    first, last = model.stages()
    (image,), shape = first.input_names, first.model.inputs[0].shape

    def end(position, tensors):
        logits = last(tensors)["logits"]
        return told(position, logits, exit_gate(logits, None)[1:], 1)

    def told(position, logits, label_and_score, index):
        label, score = label_and_score
        exits = tf.fill(tf.shape(label), tf.constant(index, tf.int64))
        return position, label, tf.nn.softmax(logits), exits, score

    def nobody():
        none = tf.zeros([0], tf.int64)
        return told(none, tf.zeros([0, model.num_classes]), (none, tf.zeros([0])), 1)

    def run(x, limit):
        made = first({image: x})
        logits = made.pop("logits")
        leaves, label, score = exit_gate(logits, limit[0])
        position = tf.range(tf.shape(x, out_type=tf.int64)[0])
        gone = [tf.boolean_mask(y, leaves) for y in (position, logits, label, score)]
        kept = {name: tf.boolean_mask(made[name], ~leaves) for name in first.live}
        stay = tf.boolean_mask(position, ~leaves)
        rest = tf.cond(tf.size(stay) > 0, lambda: end(stay, kept), nobody)
        left = told(gone[0], gone[1], gone[2:], 0)
        position, *answers = (tf.concat(pair, 0) for pair in zip(left, rest, strict=True))
        order = tf.math.invert_permutation(position)
        names = ("labels", "probabilities", "exits", "scores")
        return dict(zip(names, (tf.gather(y, order) for y in answers), strict=True))

    return concrete(run, tf.TensorSpec(shape), tf.TensorSpec([1]))


# ---- TensorFlow: survivors of several batches together -------------------------------
def pooling(seconds):
    """One graph a batch, against survivors that wait until they are a batch."""
    model = networks.b_lenet()
    images = made_up((28, 28, 1), BATCHES * 256)
    scores = entropies(model, images)
    for size in (32, 256):
        batches = [images[i : i + size] for i in range(0, BATCHES * size, size)]
        for share in (0.5, 0.95):
            threshold = float(np.quantile(scores[: BATCHES * size], share))
            made = {"graph": in_graph(model, threshold), "pooled": pooled(model, threshold)}
            runs = {name: partial(run, batches) for name, run in made.items()}
            left = [run() for run in runs.values()]
            if abs(left[0] - left[1][0]) > 2:  # scores next to the threshold round apart
                raise SystemExit(f"They disagree on who leaves: {left}.")
            yield contest(
                "survivors of several batches together, in TensorFlow",
                runs,
                seconds,
                BATCHES * size,
                network="b_lenet",
                batch=size,
                share=share,
            )


def in_graph(model, threshold):
    run, limit = model.early_exit.get_concrete_function(), tf.constant([threshold])

    def answer(batches):
        left = 0
        for batch in batches:
            found = {k: v.numpy() for k, v in run(tf.constant(batch), limit).items()}
            left += int((found["exits"] == 0).sum())
        return left

    return answer


def pooled(model, threshold):
    """A function a stage, which gates and gathers inside; survivors wait in NumPy."""
    first, last = model.stages()
    (carried,) = first.live

    def begin(x, limit):
        made = first({first.input_names[0]: x})
        leaves, label, score = exit_gate(made["logits"], limit, "entropy", None)
        stay = tf.where(~leaves)[:, 0]
        shares = tf.nn.softmax(made["logits"])
        return stay, label, score, shares, tf.gather(made[carried], stay)

    def end(x):
        logits = last({carried: x})["logits"]
        _, label, score = exit_gate(logits, None, "entropy", None)
        return label, score, tf.nn.softmax(logits)

    shape = first.model.output[carried].shape
    begin = concrete(begin, tf.TensorSpec(first.model.inputs[0].shape), tf.TensorSpec([]))
    end = concrete(end, tf.TensorSpec(shape))
    limit = tf.constant(threshold)

    def answer(batches):
        waiting, count, left, told = [], 0, 0, None
        for batch in batches:
            stay, *told, kept = (t.numpy() for t in begin(tf.constant(batch), limit))
            left += len(batch) - len(stay)
            waiting, count = [*waiting, kept], count + len(stay)
            if count >= len(batch):
                rows = np.concatenate(waiting)
                told = [t.numpy() for t in end(tf.constant(rows[: len(batch)]))]
                waiting, count = [rows[len(batch) :]], count - len(batch)
        if count:
            told = [t.numpy() for t in end(tf.constant(np.concatenate(waiting)))]
        return left, told

    return answer


def concrete(function, *specs):
    return tf.function(function, autograph=False).get_concrete_function(*specs)


# ---- LiteRT: how many samples at a time ----------------------------------------------
def chunks(seconds):
    """256 images through a first stage, so many at a time."""
    for name, shape in (("b_lenet", (28, 28, 1)), ("b_alexnet", (32, 32, 3))):
        images = made_up(shape, 256)
        with Exported(getattr(networks, name)()) as manifest:
            call = manifest.stages[0].call
            programs = {size: open_program(manifest, call, "logits") for size in SIZES}
            name_in = call.inputs[0].name
            runs = {
                str(size): partial(through, program, name_in, images, size)
                for size, program in programs.items()
            }
            logits = [run() for run in runs.values()]
            for found in logits[1:]:
                np.testing.assert_allclose(found, logits[0], rtol=1e-3, atol=1e-4)
            yield contest(
                "samples at a time, in LiteRT",
                runs,
                seconds,
                256,
                network=name,
                bytes=programs[1].largest_row,
            )


SIZES = (1, 8, 16, 64, 256)


def through(program, name, images, size):
    parts = []
    for start in range(0, len(images), size):
        parts.append(program.run({name: images[start : start + size]}))
        program.views()
    return np.concatenate(parts)


def resizing(seconds):
    """Survivors of each batch through one file that is resized, or several that are not."""
    counts = np.random.default_rng(0).binomial(256, 0.06, BATCHES)
    with Exported(networks.b_lenet()) as manifest:
        call = manifest.stages[1].call
        name, shape = call.inputs[0].name, call.inputs[0].shape[1:]
        rows = made_up(shape, 256)
        one = open_program(manifest, call, "logits")
        fixed = {1 << bit: open_program(manifest, call, "logits") for bit in range(7)}

        def resized():
            return [one.run({name: rows[:count]}) for count in counts]

        def powers():
            return [in_powers(fixed, name, rows, int(count)) for count in counts]

        for a, b in zip(resized(), powers(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        yield contest(
            "a file for each power of two instead of one that is resized",
            {"resized": resized, "powers": powers},
            seconds,
            int(counts.sum()),
            network="b_lenet",
        )


def in_powers(programs, name, rows, count):
    parts, start = [], 0
    for size in sorted(programs, reverse=True):
        if count & size:
            parts.append(programs[size].run({name: rows[start : start + size]}))
            start += size
    return np.concatenate(parts)


# ---- Between two stages --------------------------------------------------------------
def steps(seconds):
    """The compiled step, against the same in NumPy, and for lone samples in Python."""
    images = made_up((28, 28, 1), 512)
    for name, batch_size, sizes in (
        ("b_lenet", None, (32, 256)),
        ("b_lenet_light", 1, (1,)),
    ):
        model = networks.b_lenet(light_exit=name == "b_lenet_light")
        yield from steps_of(model, name, batch_size, sizes, images, seconds)


def steps_of(model, name, batch_size, sizes, images, seconds):
    scores = entropies(model, images)
    with Exported(model, batch_size) as manifest:
        for size, share in product(sizes, (0.25, 0.95)):
            batches = [images[i : i + size] for i in range(0, len(images), size)]
            other = "Python" if size == 1 else "NumPy"
            runs = {
                way: partial(over, runner_with(switch, manifest, scores, share), batches)
                for way, switch in (("compiled", "on"), (other, "off"))
            }
            agreed(runs)
            yield contest(
                "the step between stages",
                runs,
                seconds,
                len(images),
                network=name,
                batch=size,
                share=share,
            )


def runner_with(switch, manifest, scores, share):
    runner = StageRunner(manifest.folder, thresholds=[float(np.quantile(scores, share))])
    first = np.zeros((1, 28, 28, 1), np.float32)
    # Its first call finds the step, and the others take the same.
    with mock.patch.dict(os.environ, KERAS_BRANCHY_CUSTOM_OPS=switch):
        runner.predict(first)
    return lambda x: runner.predict(x).exits


# ---- The gate in NumPy ---------------------------------------------------------------
def gates(seconds):
    for count in (8, 64):
        logits = np.random.default_rng(0).normal(size=(count, 10)).astype(np.float32) * 5
        fast = batch_gate("entropy")

        def plain(logits=logits):
            score, label = gate_scores(logits, "entropy")
            return score.astype(np.float32), label, softmax(logits)

        for a, b in zip(plain(), fast(logits), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        yield contest(
            "the gate in one pass, classes first",
            {"definition": plain, "one pass": partial(fast, logits)},
            seconds,
            count,
            batch=count,
        )


def many_classes(seconds):
    """A thousand: NumPy goes along those of a sample, or class by class through samples."""
    one, several = row_gate("entropy"), batch_gate("entropy")

    def by_class(logits):
        with mock.patch.object(gate_of_batches, "_FEW_CLASSES", 1000):
            return several(logits)

    def by_sample(logits):
        return tuple(zip(*(one(row[None]) for row in logits), strict=True))

    for count in (2, 16):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(count, 1000)).astype(np.float32) * 5
        runs = {"in Python": by_sample, "by class": by_class, "by sample": several}
        runs = {name: partial(run, logits) for name, run in runs.items()}
        first, *others = (run() for run in runs.values())
        for found in others:
            for a, b in zip(first, found, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5)
        yield contest(
            "the gate where classes are many",
            runs,
            seconds,
            count,
            network="1,000 classes",
            batch=count,
        )


# ---- Measuring -----------------------------------------------------------------------
def contest(trial, runs, seconds, images, **about):
    """The row of a trial: what it is about, and what each took for so many images."""
    return {"trial": trial, **about, **turns(runs, seconds), "images": images}


def agreed(runs):
    """Refuses contestants that give different arrays."""
    first, *others = (run() for run in runs.values())
    for other in others:
        np.testing.assert_array_equal(other, first)


def turns(runs, seconds):
    """Medians and quartiles in ms of each, all in turn."""
    for run in runs.values():
        run()
    taken = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while len(next(iter(taken.values()))) < FEWEST or time.perf_counter() < end:
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            taken[name].append((time.perf_counter() - begin) * 1e3)
    names = ("lower", "median", "upper")
    quartiles = {
        name: dict(zip(names, np.percentile(t, (25, 50, 75)).tolist(), strict=True))
        for name, t in taken.items()
    }
    return {"ms": quartiles, "rounds": len(next(iter(taken.values())))}


def made_up(shape, count):
    return np.random.default_rng(0).random((count, *shape), np.float32)


def entropies(model, images):
    p = model.predict(images, verbose=0)[model.exit_names[0]].astype(np.float64)
    return -(p * np.log(p)).sum(-1)


class Exported:
    """A folder with the stages for as long as it is wanted."""

    def __init__(self, model, batch_size=None):
        model.thresholds = [1.0] * (len(model.exit_names) - 1)
        self._model, self._batch_size = model, batch_size

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "stages"
        self._model.export_stages(
            path, format="litert", batch_size=self._batch_size, verbose=0
        )
        return Manifest.load(path)

    def __exit__(self, *raised):
        self._folder.cleanup()


TRIALS = (
    *(threads, choosing, sharing, calling, searching, pooling),
    *(chunks, resizing, steps, gates, many_classes),
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
