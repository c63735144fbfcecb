# SPDX-License-Identifier: Apache-2.0
"""The layers that the published networks need and Keras lacks; files may hold them."""

from keras_branchy.layers.local_response_normalization import LocalResponseNormalization
from keras_branchy.layers.residual_block import ResidualBlock
from keras_branchy.layers.stochastic_depth import StochasticDepth
from keras_branchy.layers.zero_padded_shortcut import ZeroPaddedShortcut

__all__ = [
    "LocalResponseNormalization",
    "ResidualBlock",
    "StochasticDepth",
    "ZeroPaddedShortcut",
]
