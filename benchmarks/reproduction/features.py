# SPDX-License-Identifier: Apache-2.0
"""What the gates of a network that stays as it is read, computed once for all epochs."""

from dataclasses import dataclass, replace
from functools import cached_property

import keras
from keras.layers import Dense, Flatten

from benchmarks.reproduction.data import Data

BATCH = 500


@dataclass(frozen=True)
class Features:
    """Stands where a `Data` does in a training; its inputs are a network's outputs.

    Inputs are a dict as `classifiers` take it, labels one with the names of the gates.

    Attributes:
        network: Gives a dict of arrays for images; `readings` makes one.
        split: The images.
        source: How the network was trained.
    """

    network: keras.Model
    split: Data
    source: str

    def describe(self):
        return f"{self.split.describe()}, through {self.network.name}, {self.source}"

    def first(self, count):
        if count is None:
            return self  # with what is computed already
        return replace(self, split=self.split.first(count))

    @property
    def count(self):
        return self.split.count

    @cached_property
    def train(self):
        return self._through(self.split.train)

    @cached_property
    def valid(self):
        return self._through(self.split.valid)

    def _through(self, part):
        images, labels = part
        print(f"{self.network.name} of {len(images):,} images", flush=True)
        read = self.network.predict(images, batch_size=BATCH, verbose=0)
        inputs = {features_of(name): value for name, value in read.items()}
        return inputs, dict.fromkeys(read, labels)


def features_of(name):
    return f"{name}_features"


def readings(model):
    """The network from a model's images to what its gates' classifiers read.

    Its outputs are named like the exits and are flat: [B, features].
    """
    read = {}
    for branch in model.branches:
        x = branch.input
        for layer in branch.head:
            x = layer(x)
        read[branch.name] = Flatten()(x)
    return keras.Model(model.inputs, read, name=f"features_{model.name}")


def classifiers(model):
    """A model's gates alone, on its `readings`; names and weights are theirs."""
    inputs, outputs = {}, {}
    for branch in model.branches:
        size = branch.classifier.kernel.shape[0]
        name = features_of(branch.name)
        inputs[name] = keras.Input((size,), name=name)
        outputs[branch.name] = Dense(
            branch.units, activation=branch.activation, dtype="float32", name=branch.name
        )(inputs[name])
    return keras.Model(inputs, outputs, name=f"{model.name}_gates")
