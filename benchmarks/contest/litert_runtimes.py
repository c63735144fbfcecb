# SPDX-License-Identifier: Apache-2.0
"""The contestants of `litert.py`: functions from an image [1, …] to (label, exit)."""

import json

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from keras_branchy import StageRunner


def opened(path, signature=None):
    """An interpreter on one thread, and the indices of its inputs and outputs by name."""
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    (name,) = interpreter.get_signature_list()
    given, made = indices(interpreter, name)
    interpreter.allocate_tensors()
    return interpreter, given, made


def indices(interpreter, signature):
    # Gone when this returns: the interpreter allocates nothing while it is held.
    runner = interpreter.get_signature_runner(signature)
    details = runner.get_input_details(), runner.get_output_details()
    return [{name: row["index"] for name, row in part.items()} for part in details]


def plain_litert(path):
    interpreter, given, made = opened(path)
    (source,), (target,) = given.values(), made.values()

    def run(image):
        interpreter.set_tensor(source, image)
        interpreter.invoke()
        return interpreter.get_tensor(target).argmax(), 0

    return run


def plain_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda image: (session.run(None, {name: image})[0].argmax(), 0)


def plain_tensorflow(model):
    import tensorflow as tf

    shape = (1, *model.inputs[0].shape[1:])
    call = tf.function(
        lambda x: tf.argmax(model(x, training=False), -1),
        input_signature=[tf.TensorSpec(shape, tf.float32)],
    ).get_concrete_function()
    return lambda image: (call(tf.constant(image)).numpy()[0], 0)


def cascade(folder):
    """The cascade file by itself, as an application in another language runs it."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    interpreter, given, made = opened(folder / manifest["cascade"]["file"])
    source = given[manifest["inputs"][0]["name"]]
    limits = [row["threshold"] for row in manifest["exits"][:-1]]
    interpreter.set_tensor(given["thresholds"], np.array(limits, np.float32))
    label, taken = made["label"], made["exit"]

    def run(image):
        interpreter.set_tensor(source, image)
        interpreter.invoke()
        return interpreter.get_tensor(label)[0], interpreter.get_tensor(taken)[0]

    return run


def stage_runner(folder):
    runner = StageRunner(folder)

    def run(image):
        answer = runner.predict(image)
        return answer.labels[0], answer.exits[0]

    return run


def stage_calls(folder, images):
    """One function per stage: computes image number i, fed with what it would read."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    tensors = [{manifest["inputs"][0]["name"]: image[None]} for image in images]
    calls = []
    for stage in manifest["stages"]:
        interpreter, given, made = opened(folder / stage["call"]["file"])
        fed = [{name: row[name] for name in given} for row in tensors]
        for row, feed in zip(tensors, fed, strict=True):
            _invoke(interpreter, given, feed)
            for name, index in made.items():
                row[name] = interpreter.get_tensor(index)
        calls.append(_computing(interpreter, given, fed))
    return calls


def cascade_call(folder, images):
    """A function that computes image number i in the cascade file."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    interpreter, given, _ = opened(folder / manifest["cascade"]["file"])
    limits = [row["threshold"] for row in manifest["exits"][:-1]]
    interpreter.set_tensor(given.pop("thresholds"), np.array(limits, np.float32))
    (name,) = given
    return _computing(interpreter, given, [{name: image[None]} for image in images])


def _computing(interpreter, given, fed):
    return lambda index: _invoke(interpreter, given, fed[index])


def _invoke(interpreter, given, tensors):
    for name, index in given.items():
        interpreter.set_tensor(index, tensors[name])
    interpreter.invoke()
