# SPDX-License-Identifier: Apache-2.0
"""The published early-exit networks, one file each, for float32 images in [0, 1]."""

from keras_branchy.layers import (
    LocalResponseNormalization,
    ResidualBlock,
    StochasticDepth,
    ZeroPaddedShortcut,
)
from keras_branchy.networks.b_alexnet import b_alexnet
from keras_branchy.networks.b_lenet import b_lenet
from keras_branchy.networks.b_resnet import b_resnet
from keras_branchy.networks.cdl_lenet import cdl_lenet
from keras_branchy.networks.d_gate_densenet import d_gate_densenet
from keras_branchy.networks.d_gate_resnet import d_gate_resnet

__all__ = [
    "LocalResponseNormalization",
    "ResidualBlock",
    "StochasticDepth",
    "ZeroPaddedShortcut",
    "b_alexnet",
    "b_lenet",
    "b_resnet",
    "cdl_lenet",
    "d_gate_densenet",
    "d_gate_resnet",
]
