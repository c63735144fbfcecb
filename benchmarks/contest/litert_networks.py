# SPDX-License-Identifier: Apache-2.0
"""The networks of `litert.py`: the plain LeNet, B-LeNet, and other first exits for it."""

import keras
import mnist_b_lenet
import numpy as np
from keras import layers

from keras_branchy import BranchyModel, ExitBranch, networks

HEAD_EPOCHS = 12
CALIBRATION = 2000  # held-out images for int8 and for the thresholds of the files
QUANTIZATIONS = (None, "float16", "dynamic", "int8")
IN_FULL = ("b_lenet", "light_exit")  # in every layout and quantization


def first_exits():
    """Tap and head of each first exit under the trunk of LeNet that is not shipped."""
    return {
        # Behind the first pooling: four times fewer values to carry than at `conv1`.
        "pooled": (
            "relu1",
            [
                layers.Conv2D(10, 3, padding="same"),
                layers.MaxPooling2D(2, padding="same"),
                layers.ReLU(),
            ],
        ),
        "pooled_narrow": ("relu1", [layers.Conv2D(4, 3, strides=2, activation="relu")]),
        # In front of the trunk: nothing of it runs for a sample that leaves.
        "image_strided": ("image", [strided(8)]),
        "image_two_fine": (
            "image",
            [
                layers.Conv2D(8, 5, strides=2, padding="same", activation="relu"),
                layers.Conv2D(16, 3, strides=2, activation="relu"),
            ],
        ),
        "image_two": ("image", [strided(8), layers.Conv2D(16, 3, activation="relu")]),
    }


def strided(filters):
    return layers.Conv2D(filters, 6, strides=4, padding="same", activation="relu")


def load(work, data):
    """The plain LeNet, and networks with exits by name; trains those that lack."""
    if not (work / "plain.keras").exists() or not (work / "b_lenet.keras").exists():
        keras.utils.set_random_seed(0)
        plain, published = mnist_b_lenet.train(data, mnist_b_lenet.EPOCHS[data.name])
        calibrated(published, data).save(work / "b_lenet.keras")
        plain.save(work / "plain.keras")
    plain = keras.models.load_model(work / "plain.keras")
    found = {"b_lenet": keras.models.load_model(work / "b_lenet.keras")}
    for name in ("light_exit", *first_exits()):
        path = work / f"{name}.keras"
        if not path.exists():
            keras.utils.set_random_seed(0)
            model = light(plain) if name == "light_exit" else with_exit(plain, name)
            train_exit(model, name, data)
            calibrated(model, data).save(path)
        found[name] = keras.models.load_model(path)
    return plain, found


def light(plain):
    model = networks.b_lenet(light_exit=True)
    for layer in plain.layers:
        model.get_layer(layer.name).set_weights(layer.get_weights())
    return model


def with_exit(plain, name):
    tap, head = first_exits()[name]
    for layer in plain.layers:
        layer.trainable = False
    return BranchyModel(plain, {tap: ExitBranch(10, layers=head)})


def train_exit(model, name, data):
    """Trains the first exit alone, under a trunk that stays as it is."""
    # A model of its own: what comes behind the exit is not computed.
    alone = keras.Model(model.inputs, model.output["exit_1"])
    steps = HEAD_EPOCHS * -(-len(data.train[1]) // mnist_b_lenet.BATCH_SIZE)
    falling = keras.optimizers.schedules.CosineDecay(mnist_b_lenet.LEARNING_RATE, steps)
    mnist_b_lenet.fit(alone, name, data, HEAD_EPOCHS, falling)


def calibrated(model, data):
    report = model.calibrate(*data.valid, max_accuracy_drop=0.0, batch_size=500, verbose=0)
    print(report, flush=True)
    return model


def plain_files(plain, data, folder):
    """The plain network in LiteRT by quantization, and in ONNX, by Keras' own export."""
    import tensorflow as tf

    folder.mkdir(exist_ok=True)
    shape = (1, *plain.inputs[0].shape[1:])
    signature = [tf.TensorSpec(shape, tf.float32, name="image")]

    def samples():
        for image in data.valid[0][:500]:
            yield [image[None]]

    default = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    options = {
        None: {},
        "dynamic": default,
        "int8": {**default, "representative_dataset": samples},
    }
    files = {"litert": {}, "onnx": folder / "plain.onnx"}
    for quantization, given in options.items():
        path = folder / f"plain_{quantization}.tflite"
        files["litert"][quantization] = path
        if not path.exists():
            target = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
            plain.export(
                path,
                format="litert",
                input_signature=signature,
                verbose=False,
                target_spec=target,
                **given,
            )
    if not files["onnx"].exists():
        plain.export(files["onnx"], format="onnx", input_signature=signature, verbose=False)
    return files


def wanted(name):
    """Pairs of layout and quantization that are measured of a network."""
    if name not in IN_FULL:
        return [("cascade", None)]
    pairs = [(layout, q) for q in QUANTIZATIONS for layout in ("stages", "cascade")]
    return [pair for pair in pairs if pair != ("cascade", "int8")]


def export(model, data, folder, layout, quantization):
    """Exports into a folder, unless an earlier run has done it."""
    if (folder / "manifest.json").exists():
        return
    which = np.random.default_rng(0).permutation(len(data.valid[1]))[:CALIBRATION]
    model.export_stages(
        folder,
        layout=layout,
        quantization=quantization,
        representative_data=(data.valid[0][which], data.valid[1][which]),
        verbose=0,
    )
