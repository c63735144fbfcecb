# SPDX-License-Identifier: Apache-2.0
"""The networks of the check with their weights and images, in Keras.

`--carried FOLDER` may hold NETWORK.keras, trained, with or without thresholds, and
mnist.npz and cifar10.npz, as carry.py writes them. Without weights, networks are untrained,
and thresholds are swept over shares; time does not depend on weights.
"""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
from gpu_rows import ROOT, CouldNotRunError, need, short

DATA = {"b_lenet": "mnist", "b_alexnet": "cifar10", "b_resnet_110": "cifar10"}
MAX_DROP = 0.01  # what a model without thresholds is calibrated for
preloaded = None  # the library that was opened for TensorFlow, or why it was not


def prepare(args, native="on"):
    """TensorFlow, once the environment is set; the package of this checkout."""
    global preloaded
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("KERAS_BRANCHY_CUSTOM_OPS", native)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, str(ROOT))
    if args.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    preloaded = preload_cusolver()
    tf = need("tensorflow")
    need("keras")
    return tf


def preload_cusolver():
    """Opens the library that TensorFlow's own search leaves out, if pip has brought it."""
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations if spec else []:
        library = os.path.join(place, "cusolver", "lib", "libcusolver.so.11")
        if os.path.exists(library):
            try:
                ctypes.CDLL(library)
            except OSError as error:
                return short(error)
            return "libcusolver.so.11"
    return None


def need_tensorflow_gpu(tf, args):
    if not args.rehearse and not tf.config.list_physical_devices("GPU"):
        raise CouldNotRunError(
            f"TensorFlow {tf.__version__} registers no GPU; the part `tensorflow` says why"
        )


def make(network, carried, rehearse=False):
    """The model, and whether it is trained."""
    import keras

    from keras_branchy import networks

    path = carried and Path(carried) / f"{network}.keras"
    if path and path.exists():
        return keras.models.load_model(path), True
    if rehearse and network == "resnet50":
        return _small_resnet(), False
    name, options = {
        "b_lenet": ("b_lenet", {}),
        "b_alexnet": ("b_alexnet", {}),
        "b_resnet_110": ("b_resnet", {"depth": 20 if rehearse else 110}),
        "resnet50": ("resnet50", {}),
    }[network]
    keras.utils.set_random_seed(0)
    if network == "resnet50":
        return _resnet50(), False
    builder = getattr(networks, name, None)
    if builder is None:
        raise CouldNotRunError(f"this version of keras_branchy has no networks.{name}")
    return builder(**options), False


def _resnet50():
    """ResNet-50 for 224x224 images with exits after its second and third group."""
    import keras

    from keras_branchy import BranchyModel, ExitBranch

    backbone = keras.applications.ResNet50(weights=None)
    taps = ("conv3_block4_out", "conv4_block6_out")
    return BranchyModel(backbone, {tap: ExitBranch(1000) for tap in taps})


def _small_resnet():
    import keras

    from keras_branchy import BranchyModel, ExitBranch

    backbone = keras.applications.ResNet50(
        weights=None, input_shape=(32, 32, 3), classes=10
    )
    taps = ("conv3_block4_out", "conv4_block6_out")
    return BranchyModel(backbone, {tap: ExitBranch(10) for tap in taps})


def backbone_of(model):
    """The plain network: the model's graph from its inputs to its last exit."""
    import keras

    return keras.Model(model.inputs, model.output[model.exit_names[-1]], name="plain")


# ---- Images --------------------------------------------------------------------------
def images(network, carried, split):
    """Images float32 [n, …] in [0, 1] and labels, or None where there are none."""
    name = DATA.get(network)
    path = carried and name and Path(carried) / f"{name}.npz"
    if not path or not path.exists():
        return None
    with np.load(path) as data:
        return data[f"x_{split}"].astype(np.float32) / 255, data[f"y_{split}"]


def some_images(model, network, carried, count, seed=0):
    """`count` images in the model's shape, and what they are."""
    found = images(network, carried, "test")
    if found is None:
        shape = (count, *model.inputs[0].shape[1:])
        made = np.random.default_rng(seed).random(shape, np.float32)
        return made, "noise"
    order = np.random.default_rng(seed).permutation(len(found[0]))
    return found[0][np.resize(order, count)], DATA[network]


# ---- Thresholds ----------------------------------------------------------------------
def calibrated(model, network, carried):
    """Sets thresholds from validation images where the file brought none."""
    if all(value is not None for value in model.thresholds or [None]):
        return "of the file"
    valid = images(network, carried, "valid")
    if valid is None:
        raise CouldNotRunError(
            f"{network}.keras has no thresholds, and {DATA[network]}.npz is not there"
        )
    model.calibrate(*valid, max_accuracy_drop=MAX_DROP, batch_size=500, verbose=0)
    return f"calibrated for a drop of {MAX_DROP:g}"
