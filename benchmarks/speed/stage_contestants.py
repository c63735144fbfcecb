# SPDX-License-Identifier: Apache-2.0
"""Each stage alone, at a number of samples: what the efficiency is measured against.

From what an engine holds to the logits in NumPy: head included, gate and selection not. The
first stage reads other images at each call, as an engine does, and not from the caches.
"""

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.speed.contestants import Contestant, _TensorFlow

WARMED = 0.05  # seconds, below which a call to warm up comes first
SHORT, MOST = 1e-3, 30  # seconds, and calls that are averaged where one is shorter
BATCHES = 16  # of different images


class _Stages:
    def open(self, batch):
        self.batch, self.calls, self.last = batch, {}, {}
        self.tensors = self.features(self.images[:batch])

    def close(self):
        self.calls, self.tensors = {}, {}

    def reads(self, stage, count):
        """What the stage is given, call after call, by name."""
        if stage:
            return itertools.repeat({n: rows[:count] for n, rows in self.tensors.items()})
        (name,), last = self.inputs, len(self.images) - count
        starts = range(0, min(last, (BATCHES - 1) * count) + 1, count)
        return itertools.cycle([{name: self.images[at : at + count]} for at in starts])

    def measure(self, stage, count, way):
        """Seconds of stage `stage` for `count` samples, the `way` that is named."""
        key = stage, count, way
        if key not in self.calls:
            self.calls[key] = self.call(stage, count, way)
            self.last[key] = 0.0
        call, taken = self.calls[key], []
        if self.last[key] < WARMED:  # other processes have had the caches
            call()
        while not taken or (sum(taken) < SHORT and len(taken) < MOST):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
        self.last[key] = sum(taken) / len(taken)
        return self.last[key]


class StagesInTensorFlow(_Stages, _TensorFlow):
    """Traced functions with a free batch, called as `predict_early` calls its own.

    Features stay tensors between stages.
    """

    def load(self):
        super().load()
        self.steps = None

    def features(self, images):
        from keras_branchy.direct_call import direct_call

        tf = self.tf
        self.inputs = [x._keras_history.operation.name for x in self.model.inputs]
        tensors, self.steps = {self.inputs[0]: tf.constant(images)}, []
        for stage in self.model.stages():
            read = {name: tensors[name] for name in stage.input_names}
            spec = {
                name: tf.TensorSpec([None, *x.shape[1:]], x.dtype)
                for name, x in read.items()
            }
            traced = tf.function(stage, autograph=False)
            run = direct_call(traced.get_concrete_function(spec))
            tensors.update(run(read))
            self.steps.append((run, list(read)))
        return tensors

    def call(self, stage, count, way):
        run, names = self.steps[stage]
        given, as_tensor = self.reads(stage, count), self.tf.convert_to_tensor

        def call():
            rows = next(given)
            return run({name: as_tensor(rows[name]) for name in names})["logits"].numpy()

        return call


class StagesInLiteRT(_Stages, Contestant):
    """Interpreters of exactly the size, with all threads, with one, or one each."""

    def load(self):
        path = self.folder / "stages" / "manifest.json"
        manifest = json.loads(path.read_text("utf-8"))
        self.inputs = [row["name"] for row in manifest["inputs"]]
        self.stages = [row["call"]["file"] for row in manifest["stages"]]
        self.pool = ThreadPoolExecutor(self.threads)

    def features(self, images):
        tensors = {self.inputs[0]: images}
        for stage in range(len(self.stages)):
            run, made = self.opened(stage, itertools.repeat(tensors), self.threads)
            run()
            tensors.update({name: get() for name, get in made.items()})
        return tensors

    def opened(self, stage, reads, threads):
        """A call that computes a stage on what comes next, and readers of its outputs."""
        from ai_edge_litert.interpreter import Interpreter

        path = str(self.folder / "stages" / self.stages[stage])
        interpreter = Interpreter(model_path=path, num_threads=threads)
        given, made = indices(interpreter)
        first = next(reads)
        for name, index in given.items():
            interpreter.resize_tensor_input(index, first[name].shape)
        interpreter.allocate_tensors()
        logits = made["logits"]

        def run():
            rows = next(reads)
            for name, index in given.items():
                interpreter.set_tensor(index, rows[name])
            interpreter.invoke()
            return interpreter.get_tensor(logits)

        def reader(index):
            return lambda: interpreter.get_tensor(index)

        return run, {name: reader(index) for name, index in made.items()}

    def call(self, stage, count, way):
        if way == "serial":
            return self.opened(stage, self.reads(stage, count), 1)[0]
        if way == "whole":
            return self.opened(stage, self.reads(stage, count), self.threads)[0]
        edges = [count * part // self.threads for part in range(self.threads + 1)]
        calls = [
            self.opened(stage, between(self.reads(stage, count), a, b), 1)[0]
            for a, b in itertools.pairwise(edges)
        ]
        return lambda: list(self.pool.map(lambda call: call(), calls))


def between(reads, a, b):
    """Some rows of what comes next."""
    return ({name: rows[a:b] for name, rows in given.items()} for given in reads)


def indices(interpreter):
    """Indices of inputs and outputs by name; the runner is gone when this returns."""
    (name,) = interpreter.get_signature_list()
    runner = interpreter.get_signature_runner(name)
    details = runner.get_input_details(), runner.get_output_details()
    return [{name: row["index"] for name, row in part.items()} for part in details]


KINDS = {
    "stages in tensorflow": StagesInTensorFlow,
    "stages in litert": StagesInLiteRT,
}


def ways(kind, count, threads):
    """How a stage is computed for `count` samples."""
    if kind == "stages in tensorflow":
        return ["whole"]
    if threads == 1:
        return ["whole"]
    few = ["serial"] if count <= 8 else []
    return ["whole", *few, *(["split"] if count >= threads else [])]
