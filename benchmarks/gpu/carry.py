# SPDX-License-Identifier: Apache-2.0
"""Writes the folder that a GPU machine without a network needs: images, weights, the op.

    python benchmarks/gpu/carry.py FOLDER [--weights FOLDER_OF_KERAS_FILES] [--no-op]

Run it where TensorFlow Datasets has MNIST and CIFAR-10, and nvcc for the op's CUDA kernel.
There, `check.py --carried FOLDER`. Weights are NETWORK.keras for the networks of the check;
each is also written as NETWORK.npz, which the PyTorch parts read without Keras.
"""

import argparse
import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gpu_plan
from gpu_rows import ROOT, read_json, write_json

# Held-out images choose thresholds; the test set only judges.
SPLITS = {
    "mnist": ("train[50000:]", "test"),
    "cifar10": ("train[45000:]", "test"),
}


def main():
    args = parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    # TensorFlow must not take the files of this folder for modules of its own.
    sys.path[0] = str(ROOT)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in SPLITS:
        print(images(name, args.folder / f"{name}.npz"))
    for network in gpu_plan.NETWORKS if args.weights else ():
        print(weights(network, args.weights / f"{network}.keras", args.folder))
    if not args.no_op:
        build = [sys.executable, str(ROOT / "custom_ops" / "build.py")]
        folder = args.folder / "keras_branchy"
        subprocess.run([*build, "--directory", str(folder)], check=True)
    before = read_json(args.folder / "carried.json") or {}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(args.folder / "carried.json", {**before, "made": now})


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, help="a folder of NETWORK.keras")
    parser.add_argument("--no-op", action="store_true", help="do not build the op")
    return parser.parse_args()


def images(name, path):
    if path.exists():
        return f"{path.name}: is there"
    import numpy as np
    import tensorflow_datasets as tfds

    builder = tfds.builder(name)
    if not builder.is_prepared():
        return f"{name}: TensorFlow Datasets has not prepared it; left out"
    valid, test = builder.as_dataset(
        split=list(SPLITS[name]), batch_size=-1, as_supervised=True
    )
    (x_valid, y_valid), (x_test, y_test) = (map(np.asarray, part) for part in (valid, test))
    np.savez(path, x_valid=x_valid, y_valid=y_valid, x_test=x_test, y_test=y_test)
    return f"{path.name}: {len(y_valid):,} held-out and {len(y_test):,} test images"


def weights(network, path, folder):
    """Copies a .keras file, and writes its arrays by name, thresholds among them."""
    if not path.exists():
        return f"{network}: there is no {path.name}; it will run untrained"
    import keras
    import numpy as np

    from keras_branchy import BranchyModel  # noqa: F401, registers what the file needs

    model = keras.models.load_model(path, compile=False)
    arrays = {
        variable.path: keras.ops.convert_to_numpy(variable) for variable in model.variables
    }
    thresholds = [np.nan if t is None else t for t in model.thresholds or []]
    np.savez(folder / f"{network}.npz", thresholds=np.asarray(thresholds, float), **arrays)
    if path.resolve() != (folder / path.name).resolve():
        shutil.copy(path, folder / path.name)
    return f"{network}: {len(arrays)} arrays, thresholds {thresholds}"


if __name__ == "__main__":
    main()
