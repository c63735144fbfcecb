# SPDX-License-Identifier: Apache-2.0
"""Masks are put on, taken off and observed without touching anybody else's tensors."""

import keras
import numpy as np
from cases import attention, exits, masked, tokens
from keras import layers

from keras_branchy import BranchyModel
from keras_branchy.masks import AttachMask, mask_of, masks_seen, without_mask
from keras_branchy.scoring import all_logits


def test_attaching_leaves_the_tensor_itself_unmasked(rng):
    x, mask = keras.ops.ones((2, 3, 4)), keras.ops.ones((2, 3), "bool")
    attached = AttachMask()(x, mask)
    assert mask_of(attached) is mask and mask_of(x) is None
    np.testing.assert_array_equal(attached, x)


def test_taking_off_leaves_the_tensor_itself_masked():
    x = layers.Embedding(5, 2, mask_zero=True)(np.array([[1, 0]]))
    bare = without_mask(x)
    assert mask_of(bare) is None and mask_of(x) is not None
    np.testing.assert_array_equal(bare, x)
    assert without_mask(bare) is bare


def found(model):
    """Names of (call, tensor it reads) for which a mask is found."""
    nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
    seen = masks_seen(model)
    return {
        (node.operation.name, tensor._keras_history.operation.name)
        for node in nodes
        for tensor in node.input_tensors
        if (id(node), id(tensor)) in seen
    }


def test_attention_takes_the_mask_off_for_later_readers():
    backbone = attention()
    names = {read for read in found(backbone) if read[0].startswith(("add", "attention"))}
    add = next(layer.name for layer in backbone.layers if layer.name.startswith("add"))
    # Add reads `lstm` after attention has, and finds no mask there.
    assert names == {("attention", "lstm"), (add, "attention")}


def test_lstm_passes_its_mask_on():
    assert ("dense", "lstm") in found(masked())


def test_stages_in_one_graph_do_not_leak_masks_to_each_other(rng):
    model = BranchyModel(attention(), exits("lstm", "attention", "norm"))
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    x = tokens(64, rng)
    logits, _ = all_logits(model, x, verbose=0)
    for values, output in zip(logits, model.predict(x, verbose=0).values(), strict=True):
        exponent = np.exp(values - values.max(-1, keepdims=True))
        np.testing.assert_allclose(
            exponent / exponent.sum(-1, keepdims=True), output, rtol=1e-5, atol=1e-6
        )
