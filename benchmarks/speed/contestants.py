# SPDX-License-Identifier: Apache-2.0
"""The runtimes: each loads a network from its folder and answers batches of NumPy arrays.

A contestant has `open(batch)`, called before a batch size is met, `set_thresholds(list)`,
and `run(x)`, which is what is timed: images in NumPy in, labels and exits (None for plain
backbones) in NumPy out. It knows nothing of shares.
"""

import time
from pathlib import Path

import numpy as np

TRIALS, FEW = 3, 8  # calls to choose by, more of them at few samples


class Contestant:
    def __init__(self, folder, threads):
        self.folder, self.threads = Path(folder), threads
        self.load()

    def load(self):
        pass

    def open(self, batch):
        self.batch = batch

    def set_thresholds(self, thresholds):
        self.thresholds = thresholds

    def close(self):
        """Drops what was kept for a batch size."""


# ---- TensorFlow ----------------------------------------------------------------------
class _TensorFlow(Contestant):
    name = "branchy.keras"

    def load(self):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(self.threads)
        tf.config.threading.set_inter_op_parallelism_threads(self.threads)
        import keras

        from keras_branchy import BranchyModel  # noqa: F401 (the file holds it)

        self.tf = tf
        self.model = keras.models.load_model(self.folder / self.name, compile=False)
        self.shape = self.model.inputs[0].shape[1:]


class TensorFlowPlain(_TensorFlow):
    """The plain backbone as a concrete function of one batch size."""

    name = "plain.keras"

    def open(self, batch):
        tf, model = self.tf, self.model
        traced = tf.function(lambda x: tf.argmax(model(x, training=False), -1))
        self.call = traced.get_concrete_function(tf.TensorSpec((batch, *self.shape)))

    def run(self, x):
        return self.call(self.tf.constant(x)).numpy(), None


class PredictEarly(_TensorFlow):
    """`predict_early` with its defaults."""

    def set_thresholds(self, thresholds):
        self.model.thresholds = thresholds

    def open(self, batch):
        self.batch = batch

    def run(self, x):
        answer = self.model.predict_early(x, batch_size=self.batch, verbose=0)
        return answer.labels, answer.exits


class EarlyExit(_TensorFlow):
    """`model.early_exit` as a concrete function of one batch size."""

    def open(self, batch):
        tf, staged = self.tf, self.model.early_exit
        limits = tf.TensorSpec([len(self.model.criteria)], tf.float32)
        traced = tf.function(lambda x, limits: staged(x, limits))
        image = tf.TensorSpec((batch, *self.shape))
        self.call = traced.get_concrete_function(image, limits)

    def set_thresholds(self, thresholds):
        from keras_branchy.thresholds import gate_thresholds

        self.limits = self.tf.constant(gate_thresholds(thresholds, self.model.criteria))

    def run(self, x):
        answer = self.call(self.tf.constant(x), self.limits)
        return answer["labels"].numpy(), answer["exits"].numpy()


# ---- LiteRT --------------------------------------------------------------------------
class _ThreadsToChoose(Contestant):
    """With all threads or with one, whichever is faster at this batch size."""

    def open(self, batch):
        super().open(batch)
        self.call = min(
            (self.opened(batch, threads) for threads in {1, self.threads}), key=self.time_of
        )

    def time_of(self, call):
        if self.threads == 1:
            return 0.0
        x = self.images[: self.batch]
        call(x)
        begin = time.perf_counter()
        for _ in range(TRIALS if self.batch > FEW else FEW * TRIALS):
            call(x)
        return time.perf_counter() - begin

    def run(self, x):
        return self.call(x).argmax(-1), None


class LiteRTPlain(_ThreadsToChoose):
    """The plain backbone in LiteRT, its input resized beforehand."""

    def opened(self, batch, threads):
        from ai_edge_litert.interpreter import Interpreter

        name = "plain_1.tflite" if batch == 1 else "plain.tflite"
        path = str(self.folder / name)
        interpreter = Interpreter(model_path=path, num_threads=threads)
        (given,), (made,) = (
            interpreter.get_input_details(),
            interpreter.get_output_details(),
        )
        if batch != 1:
            size = (batch, *given["shape"][1:])
            interpreter.resize_tensor_input(given["index"], size)
        interpreter.allocate_tensors()
        source, target = given["index"], made["index"]

        def call(x):
            interpreter.set_tensor(source, x)
            interpreter.invoke()
            return interpreter.get_tensor(target)

        return call


class OnnxPlain(_ThreadsToChoose):
    """The plain backbone in onnxruntime."""

    def opened(self, batch, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(
            (self.folder / "plain.onnx").read_bytes(),
            options,
            providers=["CPUExecutionProvider"],
        )
        name = session.get_inputs()[0].name
        return lambda x: session.run(None, {name: x})[0]


# ---- Ours, without TensorFlow --------------------------------------------------------
class Runner(Contestant):
    """`StageRunner` on an export with a free batch."""

    export = "stages"

    def load(self):
        from keras_branchy import StageRunner

        self.runner = StageRunner(self.folder / self.export, threads=self.threads)

    def set_thresholds(self, thresholds):
        self.runner.thresholds = thresholds

    def run(self, x):
        answer = self.runner.predict(x)
        return answer.labels, answer.exits


class RunnerStream(Runner):
    """`StageRunner.stream`, given many batches one by one."""

    def run(self, x):
        batches = (x[at : at + self.batch] for at in range(0, len(x), self.batch))
        answers = list(self.runner.stream(batches))
        labels, exits = ([getattr(a, n) for a in answers] for n in ("labels", "exits"))
        return np.concatenate(labels), np.concatenate(exits)


class RunnerOfOne(Runner):
    """`StageRunner` on an export for one sample at a time."""

    export = "stages_1"


def kinds():
    """Class by the name of a runtime in the rows; PyTorch's are imported when asked for."""
    return {
        "tensorflow": TensorFlowPlain,
        "litert": LiteRTPlain,
        "onnxruntime": OnnxPlain,
        "predict_early": PredictEarly,
        "early_exit": EarlyExit,
        "stage_runner": Runner,
        "stage_runner, stream": RunnerStream,
        "stage_runner, one": RunnerOfOne,
    }


def make(name, folder, threads):
    """The contestant of a name."""
    if name.startswith("stages in "):
        from benchmarks.speed import stage_contestants

        return stage_contestants.KINDS[name](folder, threads)
    if name.startswith("torch"):
        from benchmarks.speed import torch_contestants

        return torch_contestants.KINDS[name](folder, threads)
    return kinds()[name](folder, threads)
