# SPDX-License-Identifier: Apache-2.0
"""The networks that are timed: one line each in `NETWORKS`.

Nothing here imports Keras until a network is loaded; the coordinator stays light.
"""

from dataclasses import dataclass
from pathlib import Path

SEED = 0  # of the training that is timed
REPRODUCE = f"benchmarks/reproduce.py {{}} --seeds {SEED}"
LIGHT = "benchmarks/exit_costs.py"


@dataclass(frozen=True)
class Network:
    """A network and where it comes from.

    Attributes:
        name: As in the rows.
        recipe: Name of its recipe in benchmarks/reproduction/networks.py, if it is trained.
        part: Which of the recipe's trainings has the exits.
        train: The arguments of python that train it.
        build: Function of this module that makes it, if it is not trained.
        heavy: True where a batch takes seconds: large batches on all threads only.
        compiled: True to time `torch.compile` too, which compiles others for minutes.
    """

    name: str
    recipe: str | None = None
    part: str = "branchy"
    train: str | None = None
    build: str | None = None
    heavy: bool = False
    compiled: bool = False

    @property
    def trained(self):
        return self.recipe is not None


NETWORKS = {
    network.name: network
    for network in (
        Network("b_lenet", "B_LENET", train=REPRODUCE.format("lenet"), compiled=True),
        Network("b_lenet_light", "B_LENET", "light", LIGHT),
        Network("b_alexnet", "B_ALEXNET", train=REPRODUCE.format("alexnet")),
        Network("b_alexnet_light", "B_ALEXNET", "light", LIGHT),
        Network("b_resnet20", "B_RESNET", train=REPRODUCE.format("resnet")),
        Network("b_resnet110", build="resnet110", heavy=True),
        Network("mobilenet_v2", build="mobilenet_v2", heavy=True),
    )
}


# For `make bench-check` where nothing is trained: ratios at swept shares do not need it.
UNTRAINED = Network("b_lenet_untrained", build="lenet")


def named(name):
    return UNTRAINED if name == UNTRAINED.name else NETWORKS[name]


class NotTrainedError(Exception):
    """A network that this benchmark loads and never trains is not in the store."""


def files(network, store):
    """The trained plain network and the one with exits, as files.

    Raises:
        NotTrainedError: If one is missing, with the command that trains them.
    """
    folder = Path(store) / f"{base_name(network)}-default-{SEED}"
    found = [folder / part / "model.keras" for part in ("plain", network.part)]
    missing = [path for path in found if not path.exists()]
    if missing:
        raise NotTrainedError(
            f"{network.name} is not trained: {' and '.join(map(str, missing))} not found. "
            f"Train it first: python {network.train}"
        )
    return found


def base_name(network):
    """The name of the recipe's trainings."""
    names = {"B_LENET": "b_lenet", "B_ALEXNET": "b_alexnet", "B_RESNET": "b_resnet20"}
    return names[network.recipe]


def load(network, store):
    """The plain network and the one with exits, in Keras."""
    import keras

    from keras_branchy import BranchyModel  # noqa: F401 (the files hold it)

    if network.trained:
        pair = files(network, store)
        return [keras.models.load_model(path, compile=False) for path in pair]
    keras.utils.set_random_seed(SEED)
    model = globals()[network.build]()
    return plain_of(model), model


def settle(model, images, passes=8):
    """Lets the normalizations of an untrained network see data, or values would explode."""
    import keras

    layers = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.5
    for index in range(passes if layers else 0):
        model(images[32 * index % len(images) :][:32], training=True)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum


def plain_of(model):
    """The backbone of a model with exits: from its inputs to its last exit."""
    import keras

    return keras.Model(model.inputs, model.output[model.exit_names[-1]], name="plain")


def data_name(network):
    return "mnist" if network.recipe == "B_LENET" else "cifar10"


def lenet():
    from keras_branchy import networks

    return networks.b_lenet()


def resnet110():
    from keras_branchy import networks

    return networks.b_resnet(110)


def mobilenet_v2():
    """MobileNetV2 at 96x96, 1000 classes, with exits at a half and three quarters."""
    import keras

    from keras_branchy import BranchyModel, ExitBranch

    backbone = keras.applications.MobileNetV2((96, 96, 3), weights=None)
    pooling = keras.layers.GlobalAveragePooling2D
    taps = ("block_6_expand_relu", "block_13_expand_relu")
    return BranchyModel(
        backbone, {tap: ExitBranch(1000, layers=[pooling()]) for tap in taps}
    )
