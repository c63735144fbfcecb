# SPDX-License-Identifier: Apache-2.0
"""Once for each network: files of every runtime, images, and the answers that are right.

It runs in a process of its own and leaves a folder; `info.json` in it names what it was
made from, and where that has changed the folder is made anew.
"""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np

from benchmarks.speed import networks

ROOT = Path(__file__).resolve().parents[2]
MADE_UP = 1024  # images for networks that are not trained
MAX_DROP = 0.001  # a tenth of a point
RULE = (
    "Thresholds with the least multiplications whose accuracy on the validation images is "
    "at most 0.1 points below the plain network's, or below the last exit's where that is "
    "worse; no test image is looked at."
)


def ready(network, store, work):
    """The folder of a network if it is whole and of the files that are there now."""
    folder = Path(work) / network.name
    path = folder / "info.json"
    if not path.exists():
        return None
    info = json.loads(path.read_text("utf-8"))
    return folder if info["source"] == source(network, store) else None


def source(network, store):
    """What the folder depends on: trained files, and the code that makes files of them."""
    digest = hashlib.sha256()
    paths = networks.files(network, store) if network.trained else []
    code = [*(ROOT / "keras_branchy").glob("export/*.py"), *Path(__file__).parent.glob("*")]
    made_by = {"prepare.py", "networks.py", "graph_spec.py"}
    code = [path for path in code if path.parent.name == "export" or path.name in made_by]
    for path in [*paths, *sorted(code)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def prepare(name, store, work):
    """Makes the folder of a network. Slow: it converts, exports and predicts."""
    network = networks.named(name)
    folder = Path(work) / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plain, model = networks.load(network, store)
    info = {"network": name, "trained": network.trained, "rule": None}
    images, labels = pool(network, model, folder, info, plain)
    plain.save(folder / "plain.keras")
    model.save(folder / "branchy.keras")
    answers(plain, model, images, folder)
    exported(plain, model, images, folder)
    specifications(plain, model, folder)
    info |= described(model)
    info["source"] = source(network, store)
    (folder / "info.json").write_text(json.dumps(info, indent=1) + "\n", "utf-8")


# ---- Images and thresholds -----------------------------------------------------------
def pool(network, model, folder, info, plain):
    if network.trained:
        images, labels = on_real_data(network, model, info, plain)
    else:
        images, labels = made_up(model.inputs[0].shape[1:]), None
        networks.settle(model, images)
        spread_out(model, images)
        info |= {"data": "made-up images", "thresholds": None}
    np.save(folder / "images.npy", np.ascontiguousarray(images, np.float32))
    if labels is not None:
        np.save(folder / "labels.npy", labels)
    return images, labels


def on_real_data(network, model, info, plain):
    """Test images; thresholds by RULE go into `info` and into the model."""
    from benchmarks.reproduction import data, measurement

    split = data.load(networks.data_name(network))
    last = measurement.Answers(model, split.valid).accuracies()[-1]
    alone = measurement.plain_accuracy(plain, split.valid)
    floor = max(min(alone, last) - MAX_DROP, 0.0)
    thresholds = measurement.thresholds_for(model, split.valid, min_accuracy=floor)
    found = measurement.Answers(model, split.test)
    info |= {
        "data": split.describe(),
        "rule": RULE,
        "thresholds": [None if t is None else float(t) for t in thresholds],
        "valid_accuracy": {"plain": alone, "last_exit": last},
        "test_accuracy": {
            "plain": measurement.plain_accuracy(plain, split.test),
            "early": found.at(thresholds)["accuracy"],
            "exits": found.accuracies(),
        },
        "shares": found.at(thresholds)["shares"],
    }
    return split.test


def made_up(shape, count=MADE_UP):
    """Images of patches that differ in contrast, so that exits are not all as sure."""
    rng = np.random.default_rng(networks.SEED)
    rows, columns, channels = shape
    patches = rng.random((count, 4, 4, channels), np.float32)
    images = patches.repeat(-(-rows // 4), 1)[:, :rows].repeat(-(-columns // 4), 2)
    contrast = rng.random((count, 1, 1, 1), np.float32)
    noise = 0.2 * rng.random((count, *shape), np.float32)
    return (0.8 * contrast * images[:, :, :columns] + noise).astype(np.float32)


def spread_out(model, images):
    """Scales the last layer of each exit, so that untrained exits are not all unsure."""
    from keras_branchy.scoring import all_logits

    logits = all_logits(model, images[:256], batch_size=64, verbose=0)[0]
    for branch, values in zip(model.branches, logits, strict=False):
        kernel, bias = branch.trainable_weights[-2:]
        times = 3.0 / max(float(values.std(0).mean()), 1e-6)
        kernel.assign(kernel * times)
        bias.assign((bias - values.mean(0)) * times)


# ---- Answers -------------------------------------------------------------------------
def answers(plain, model, images, folder):
    """The logits of every exit, and of the plain network its probabilities, by Keras."""
    from keras_branchy.scoring import all_logits

    logits = np.stack(all_logits(model, images, batch_size=256, verbose=0)[0])
    np.save(folder / "logits.npy", logits)
    given = plain.predict(images, batch_size=256, verbose=0)
    np.save(folder / "plain.npy", given)


def described(model):
    from keras_branchy import cost

    stages = cost.stage_costs(model)
    names = list(model.exit_names)
    return {
        "criteria": list(model.criteria),
        "exit_names": names,
        "macs_to_leave": [row.macs_to_leave for row in stages],
        "plain_macs": stages[-1].trunk_macs_to_leave,
        "params": int(model.count_params()),
    }


# ---- Files ---------------------------------------------------------------------------
def exported(plain, model, images, folder):
    """LiteRT and ONNX files of the plain network, and the stages as ours exports them."""
    model.thresholds = model.thresholds or [0.0] * len(model.criteria)
    some = images[:64]
    for size, name in ((None, "stages"), (1, "stages_1")):
        model.export_stages(
            folder / name, batch_size=size, representative_data=some, verbose=0
        )
    for size, name in ((None, "plain.tflite"), (1, "plain_1.tflite")):
        plain_litert(plain, folder / name, size)
    plain_onnx(plain, folder / "plain.onnx")


def plain_litert(plain, path, size):
    import tensorflow as tf

    plain.export(
        path,
        format="litert",
        input_signature=[tf.TensorSpec((size, *plain.inputs[0].shape[1:]), tf.float32)],
        verbose=False,
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
    )


def plain_onnx(plain, path):
    import tensorflow as tf

    shape = (None, *plain.inputs[0].shape[1:])
    signature = [tf.TensorSpec(shape, tf.float32, name="image")]
    plain.export(path, format="onnx", input_signature=signature, verbose=False)


def specifications(plain, model, folder):
    """What PyTorch's twins are made from."""
    from benchmarks.speed.graph_spec import spec_of

    stages = [
        {"spec": spec_of(stage.model), "live": list(stage.live)} for stage in model.stages()
    ]
    shape = tuple(plain.inputs[0].shape[1:])
    found = {"plain": spec_of(plain), "stages": stages, "shape": shape}
    (folder / "specs.pickle").write_bytes(pickle.dumps(found))
