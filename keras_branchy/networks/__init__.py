# SPDX-License-Identifier: Apache-2.0
"""The published early-exit networks, one file each, for float32 images in [0, 1]."""

from keras_branchy.networks.b_lenet import b_lenet

__all__ = ["b_lenet"]
