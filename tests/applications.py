# SPDX-License-Identifier: Apache-2.0
"""Models that people have, with exits at eight taps each, and the laws held for them.

python tests/applications.py --write docs/models.md     runs every law, writes the table
"""

import argparse
import datetime
import json
import math
import os
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BRANCHY_CUSTOM_OPS", "off")

import keras
import numpy as np
from keras import layers

from keras_branchy import BranchyModel, ExitBranch, cost
from keras_branchy.scoring import all_logits

CLASSES = 10
SAMPLES = 6


def pictures(rng, size):
    """Noise on a color of each picture's own, since networks average noise away."""
    colors = rng.normal(size=(SAMPLES, 1, 1, 3))
    noise = rng.normal(size=(SAMPLES, size, size, 3)) * rng.random((SAMPLES, 1, 1, 1))
    return (colors + noise).astype(np.float32)


def application(name, size):
    def make():
        options = {"include_preprocessing": False} if "EfficientNetV2" in name else {}
        options |= {"include_preprocessing": False} if "ConvNeXt" in name else {}
        model = getattr(keras.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=CLASSES, **options
        )
        return model, lambda rng: pictures(rng, size)

    return make


def tokens(rng, length=12, words=30):
    ids = rng.integers(1, words, (SAMPLES, length))
    ids[np.arange(length) >= rng.integers(2, length + 1, SAMPLES)[:, None]] = 0
    return ids.astype(np.int32)


def text_lstm():
    inputs = keras.Input((12,), dtype="int32")
    x = layers.Embedding(30, 8, mask_zero=True, name="words")(inputs)
    for index in range(4):
        y = layers.LSTM(8, return_sequences=True, name=f"lstm_{index}")(x)
        y = layers.Dense(8, activation="tanh", name=f"dense_{index}")(y)
        x = layers.Add(name=f"add_{index}")([x, y])
    x = layers.LSTM(8, name="last")(x)
    return keras.Model(
        inputs, layers.Dense(CLASSES, activation="softmax", name="scores")(x)
    ), tokens


def transformer():
    inputs = keras.Input((12,), dtype="int32")
    x = layers.Embedding(30, 16, mask_zero=True, name="words")(inputs)
    for index in range(4):
        y = layers.LayerNormalization(name=f"norm_{index}")(x)
        y = layers.MultiHeadAttention(2, 8, name=f"attention_{index}")(y, y)
        x = layers.Add(name=f"add_{index}")([x, layers.Dropout(0.1)(y)])
        y = layers.Dense(32, activation="gelu", name=f"wide_{index}")(x)
        x = layers.Add(name=f"out_{index}")(
            [x, layers.Dense(16, name=f"narrow_{index}")(y)]
        )
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(
        inputs, layers.Dense(CLASSES, activation="softmax", name="scores")(x)
    ), tokens


def two_inputs():
    image, vector = keras.Input((16, 16, 3), name="image"), keras.Input((5,), name="vector")
    x = image
    for index in range(6):
        y = layers.Conv2D(6, 3, padding="same", activation="relu", name=f"conv_{index}")(x)
        gate = layers.Dense(6, activation="sigmoid", name=f"gate_{index}")(vector)
        y = layers.Multiply(name=f"gated_{index}")([y, layers.Reshape((1, 1, 6))(gate)])
        x = layers.Concatenate(name=f"join_{index}")([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(
        [image, vector], layers.Dense(CLASSES, activation="softmax", name="scores")(x)
    )

    def samples(rng):
        return [
            rng.random((SAMPLES, 16, 16, 3), np.float32),
            rng.normal(size=(SAMPLES, 5)).astype(np.float32),
        ]

    return model, samples


MODELS = {
    "text LSTM with masks": text_lstm,
    "transformer with masks": transformer,
    "two inputs": two_inputs,
    "MobileNetV2": application("MobileNetV2", 32),
    "ResNet50": application("ResNet50", 32),
    "DenseNet121": application("DenseNet121", 32),
    "EfficientNetV2B0": application("EfficientNetV2B0", 32),
    "ConvNeXtTiny": application("ConvNeXtTiny", 32),
    "InceptionV3": application("InceptionV3", 75),
    "NASNetMobile": application("NASNetMobile", 32),
}


def spread(model, x, rng):
    """Weights at which the answers of an untrained network differ from sample to sample.

    Keras' own would hide faults: ConvNeXt scales what its blocks add by 1e-6, and without
    statistics of its features MobileNetV2 gives one answer to all pictures.
    """
    for weight in model.weights:
        if weight.name == "beta":
            weight.assign(rng.normal(0, 0.5, weight.shape))
        elif weight.name == "gamma":
            weight.assign(rng.uniform(0.6, 1.4, weight.shape))
        elif weight.name == "embeddings":
            weight.assign(rng.normal(0, 1, weight.shape))
    for layer in model.layers:
        if type(layer).__name__ == "LayerScale":
            layer.gamma.assign(rng.uniform(0.6, 1.4, layer.gamma.shape))
    norms = [y for y in model.layers if isinstance(y, layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(x, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        mean, variance = layer.moving_mean, layer.moving_variance
        # The size of the features, not their differences, which would raise rounding too.
        variance.assign(variance + mean * mean)
        mean.assign(keras.ops.zeros_like(mean))


def spread_scores(model, backbone, x, rng):
    """Scores that are neither alike nor beyond doubt, whatever the size of the features."""
    ends = [*model.branches, backbone.layers[-1]]
    kernels = [next(w for w in end.weights if w.name == "kernel") for end in ends]
    for kernel in kernels:
        kernel.assign(rng.normal(0, 1e-3, kernel.shape) / np.sqrt(kernel.shape[0]))
    outputs = model(x)
    for kernel, name in zip(kernels, model.exit_names, strict=True):
        logits = np.log(outputs[name])
        kernel.assign(kernel * (2 / (logits - logits.mean(-1, keepdims=True)).std()))


def taps_of(model, count=8):
    """`count` taps over the whole depth, as inside blocks as anywhere else."""
    usable = [
        layer
        for layer in model.layers[1:-2]
        if len(layer._inbound_nodes) == 1
        and len(layer.output.shape) in (2, 3, 4)
        and not isinstance(layer, (layers.InputLayer, layers.Reshape, layers.Flatten))
        and None not in layer.output.shape[1:]
        and keras.backend.is_float_dtype(layer.output.dtype)
    ]
    places = np.linspace(0, len(usable) - 1, count + 2).round().astype(int)[1:-1]
    return [usable[place].name for place in places]


def with_exits(name):
    """A model of the table with eight exits, its backbone, and samples."""
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    backbone, samples = MODELS[name]()
    x = samples(rng)
    spread(backbone, x, rng)
    taps = in_order(backbone, taps_of(backbone))
    model = BranchyModel(backbone, {tap: ExitBranch(CLASSES) for tap in taps})
    spread_scores(model, backbone, x, rng)
    return model, backbone, x


def in_order(backbone, taps):
    """Taps in an order of the graph, which lists parallel branches one after another."""
    names = [layer.name for layer in backbone.layers]
    return sorted(dict.fromkeys(taps), key=names.index)


def softmax(logits):
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def close(got, wanted):
    """The largest difference of two sets of probabilities, which is no more than rounding.

    1e-5 of a probability is rounding through some hundred layers in float32.
    """
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got.argmax(-1), wanted.argmax(-1))
    return np.abs(got - wanted).max()


class Laws:
    """Each law returns what it measured; it raises AssertionError where it is broken."""

    def __init__(self, name):
        self.model, self.backbone, self.x = with_exits(name)
        self.file_before = self._file()
        self.outputs = self._outputs()

    def _outputs(self):
        """Probabilities of every exit, [exits, samples, classes], from Keras' `predict`."""
        outputs = self.model.predict(self.x, verbose=0)
        return np.stack([outputs[name] for name in self.model.exit_names])

    def _file(self):
        """What the model's file holds, by name, but for the date."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            self.model.save(path)
            with zipfile.ZipFile(path) as archive:
                held = {name: archive.read(name) for name in archive.namelist()}
        held["metadata.json"] = json.loads(held["metadata.json"])
        del held["metadata.json"]["date_saved"]
        return held

    def exits(self):
        """Eight exits; how many of them are inside a block, where features of several
        layers cross the cut (masks and the model's inputs do not count)."""
        stages = self.model.stages()
        read = {}
        for stage in stages:
            read |= stage.model.input
        own = {tensor.name for tensor in self.model.inputs}
        crossing = [
            [x for x in stage.live if x not in own and read[x].dtype != "bool"]
            for stage in stages
        ]
        inside = sum(len(names) > 1 for names in crossing)
        assert len(stages) == 9 and inside >= 2
        return f"{len(stages) - 1}, {inside} inside"

    def last_exit(self):
        """The last exit gives what the backbone alone gives, bit for bit, where both run
        call by call (in a graph, TensorFlow fuses other calls around exits)."""
        got = self.model(self.x)[self.model.exit_names[-1]]
        np.testing.assert_array_equal(got, self.backbone(self.x))
        return "equal"

    def stages(self):
        """The stages, one after another, give what the model gives at every exit."""
        return f"{self._difference():.0e}"

    def _difference(self):
        logits, _ = all_logits(self.model, self.x, verbose=0)
        pairs = zip(map(softmax, logits), self.outputs, strict=True)
        return max(close(got, wanted) for got, wanted in pairs)

    def early(self):
        """`predict_early` takes the exits that the rule takes on the outputs of all, and
        gives their labels and probabilities; how many exits samples leave at."""
        outputs = self.outputs
        entropy = -(outputs * np.log(np.maximum(outputs, 1e-30))).sum(-1)
        self.model.thresholds = [widest_gap(row) for row in entropy[:-1]]
        leaves = entropy[:-1] < np.array(self.model.thresholds)[:, None]
        exits = np.vstack([leaves, np.ones((1, SAMPLES), bool)]).argmax(0)
        answer = self.model.predict_early(self.x, verbose=0)
        np.testing.assert_array_equal(answer.exits, exits)
        taken = outputs[exits, np.arange(SAMPLES)]
        close(answer.probabilities, taken)
        np.testing.assert_array_equal(answer.labels, taken.argmax(-1))
        assert len(set(exits)) > 1
        return f"{len(set(exits))} exits"

    def variables(self):
        """The stages hold the model's variables, by identity, and no others."""
        own = {id(variable) for variable in self.model.variables}
        held = {id(v) for stage in self.model.stages() for v in stage.model.variables}
        assert held == own
        return f"{len(own)}"

    def file(self):
        """Building stages leaves the contents of the `.keras` file as they were, bit for
        bit."""
        self.model.stages()
        self.model.thresholds = None  # as when it was saved before
        assert self._file() == self.file_before
        return "equal"

    def training(self):
        """Stages that were built before the model trains on follow it."""
        stages, before = self.model.stages(), self.outputs
        optimizer = keras.optimizers.SGD(0.1, global_clipnorm=1.0)  # a step of 0.1 in all
        self.model.compile(optimizer, "sparse_categorical_crossentropy")
        self.model.train_on_batch(self.x, np.arange(SAMPLES) % CLASSES)
        self.outputs = self._outputs()
        assert (np.abs(self.outputs - before).max((1, 2)) > 1e-4).all()
        assert self.model.stages() is stages
        return f"{self._difference():.0e}"

    ALL = ("exits", "last_exit", "stages", "early", "variables", "file", "training")


def widest_gap(scores):
    """The middle of the widest gap between scores."""
    ordered = np.sort(scores)
    gaps = np.diff(ordered)
    place = gaps.argmax()
    assert gaps[place] > 1e-4  # else rounding decides who leaves
    return float(ordered[place : place + 2].mean())


def laws_table(names):
    for name in names:
        laws = Laws(name)
        yield [name, *(getattr(laws, law)() for law in Laws.ALL)]
        keras.utils.clear_session()


# ---- Multiply-accumulates ------------------------------------------------------------
# In 1e9 for one image of 224 × 224: as it is given, and what that may be rounded from.
PUBLISHED = {
    "MobileNetV2": ("0.30", 0.295, 0.305),
    "ResNet50": ("3.8 to 3.9", 3.8, 3.9),
    "DenseNet121": ("2.8 to 2.9", 2.8, 2.9),
}
APPLICATIONS = list(MODELS)[3:]


def macs_by_tensorflow(model):
    """Half the floating-point operations that its profiler finds in products."""
    import tensorflow as tf

    specs = [tf.TensorSpec((1, *x.shape[1:]), x.dtype) for x in model.inputs]
    graph = tf.function(lambda *x: model(x if len(x) > 1 else x[0], training=False))
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    found = tf.compat.v1.profiler.profile(
        graph.get_concrete_function(*specs).graph,
        cmd="op",
        options={**options, "output": "none"},
    )
    products = {"Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2"}
    operations = 0
    while found.children:  # a chain of operation types, each with its own count
        (found,) = found.children
        operations += found.float_ops if found.name in products else 0
    return operations // 2


def macs_in_groups(model):
    """Those of convolutions in groups, by hand: TensorFlow's profiler does not see them."""
    convolutions = [
        layer for layer in model.layers if getattr(layer, "groups", None) not in (None, 1)
    ]
    return sum(
        math.prod(layer.output.shape[1:]) * math.prod(layer.kernel.shape[:-1])
        for layer in convolutions
    )


def macs_row(name):
    """A row under MACS_HEADER; raises AssertionError where the figures disagree."""
    model = getattr(keras.applications, name)(weights=None)
    counted, profiled = cost.count_macs(model), macs_by_tensorflow(model)
    published, low, high = PUBLISHED.get(name, ("", 0, math.inf))
    assert low <= counted / 1e9 <= high
    assert abs(profiled / counted - 1) <= 0.05
    assert counted == profiled + macs_in_groups(model)
    return [
        name,
        " × ".join(map(str, model.input_shape[1:])),
        published,
        f"{counted / 1e9:.3f}",
        f"{profiled / 1e9:.3f}",
        f"{profiled / counted - 1:.1%}",
    ]


def macs_table(names):
    for name in names:
        yield macs_row(name)
        keras.utils.clear_session()


# ---- The page ------------------------------------------------------------------------
INTRODUCTION = """# Models and laws

What holds when exits are added to a model, measured on networks of `keras.applications`
and on three small models with masks, attention and two inputs. Each has eight exits, spread
evenly over its layers and therefore as often inside a block as between two. Weights are
random, inputs the smallest that the network takes: the laws are about the graph, not about
accuracy.
"""

MACS = """## Multiply-accumulates

In billions for one image at the network's own size, `cost.count_macs` beside what is
published and beside TensorFlow's profiler. The two agree to the last one, except for
ConvNeXt: Keras runs its convolutions in groups inside a compiled function on the CPU, where
the profiler does not look. They are all of the difference.
"""

MACS_HEADER = ["model", "input", "published", "counted", "profiler", "difference"]


def as_table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(laws, macs):
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("keras-branchy", "keras", "tensorflow")
    )
    meaning = "".join(
        f"- **{law}**: {' '.join(getattr(Laws, law).__doc__.split())}\n" for law in Laws.ALL
    )
    return "\n".join(
        [
            INTRODUCTION,
            meaning,
            "A number as `3e-08` is the largest difference of a probability that was "
            "measured;\nmore than float32 rounding, 1e-5, is a failure, and so is another "
            "label.\n",
            as_table(["model", *Laws.ALL], laws),
            MACS,
            as_table(MACS_HEADER, macs),
            f"{datetime.date.today()}, {versions}, on the CPU. Written by `python "
            "tests/applications.py\n--write docs/models.md`, which takes some minutes; "
            "`make test-long` holds all of it.\n",
        ]
    )


def told(rows):
    for row in rows:
        print(" | ".join(row), flush=True)
        yield row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=Path, help="the page to write")
    args = parser.parse_args()
    made = page(list(told(laws_table(MODELS))), list(told(macs_table(APPLICATIONS))))
    if args.write:
        args.write.write_text(made, "utf-8")
