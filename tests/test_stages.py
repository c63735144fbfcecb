# SPDX-License-Identifier: Apache-2.0
"""Stages: the cut of a graph, against the whole model."""

import keras
import numpy as np
import pytest
from cases import exits, images, masked, nested, residual, shared, tokens, two_inputs
from keras import layers

from keras_branchy import BranchyModel, ExitBranch
from keras_branchy.masks import AttachMask
from keras_branchy.scoring import all_logits


def softmax(logits):
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def names(model):
    return [(s.input_names, s.output_names, list(s.live)) for s in model.stages()]


def test_a_stage_does_what_its_exit_needs_and_carries_what_is_left():
    model = BranchyModel(residual(), exits("inside", "late"))
    source = model.input.name if hasattr(model.input, "name") else None
    source = model.inputs[0]._keras_history.operation.name
    assert names(model) == [
        ([source], ["stem", "inside"], [source, "stem", "inside"]),
        (["inside", "stem"], ["late"], [source, "late"]),
        (["late", source], [], []),
    ]


def test_calls_of_a_shared_layer_have_names_of_their_own():
    model = BranchyModel(shared(), exits("block:0", "block:1"))
    assert [stage.output_names for stage in model.stages()] == [
        ["block_call_0"],
        ["block_call_1"],
        [],
    ]


def test_masks_are_carried_beside_their_tensors():
    model = BranchyModel(masked(), exits("lstm"))
    first, last = model.stages()
    assert first.output_names == ["lstm_mask", "lstm"]
    assert sorted(last.input_names) == ["lstm", "lstm_mask"]


def test_inputs_that_a_later_stage_reads_stay_with_the_driver():
    model = BranchyModel(two_inputs(), exits("conv", "mixed"))
    assert [stage.input_names for stage in model.stages()] == [
        ["image"],
        ["conv"],
        ["mixed", "vector"],
    ]
    assert model.stages()[0].live == ("vector", "conv")


def test_a_layer_called_logits_does_not_hide_the_logits():
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="logits")(inputs)
    x = layers.Dense(5, name="later")(x)
    backbone = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    model = BranchyModel(backbone, exits("logits"))
    assert model.stages()[0].output_names == ["logits_out"]


def test_heads_may_have_layers_named_like_the_trunks():
    backbone = residual()
    heads = {
        tap: ExitBranch(4, layers=[layers.Conv2D(2, 3, name="join"), layers.ReLU(name="x")])
        for tap in ("stem", "inside")
    }
    model = BranchyModel(backbone, heads)
    x = images(6, np.random.default_rng(0))
    logits, _ = all_logits(model, x, verbose=0)
    for values, output in zip(logits, model.predict(x, verbose=0).values(), strict=True):
        np.testing.assert_allclose(softmax(values), output, rtol=1e-5, atol=1e-6)


def test_stages_hold_stock_layers():
    for model in (
        BranchyModel(nested(), exits("first")),
        BranchyModel(masked(), exits("lstm")),
    ):
        for stage in model.stages():
            for layer in stage.model._flatten_layers(include_self=False):
                known = type(layer).__module__.startswith("keras.")
                assert known or type(layer).__name__ in ("AttachMask", "LinearCall")


def test_stages_follow_further_training(rng):
    model = BranchyModel(residual(), exits("inside", "late"))
    stages = model.stages()
    x, y = images(64, rng), rng.integers(0, 4, 64)
    before, _ = all_logits(model, x, verbose=0)
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=2, verbose=0)
    after, _ = all_logits(model, x, verbose=0)
    assert model.stages() is stages
    for old, new, output in zip(
        before, after, model.predict(x, verbose=0).values(), strict=True
    ):
        assert np.abs(old - new).max() > 0.01
        np.testing.assert_allclose(softmax(new), output, rtol=1e-4, atol=1e-6)


def test_a_model_of_tensors_that_does_not_end_in_a_softmax():
    inputs = keras.Input((4,))
    x = layers.Dense(3)(inputs)
    model = BranchyModel(
        inputs=inputs,
        outputs={
            "exit_1": ExitBranch(3, name="exit_1")(x),
            "exit_2": layers.Dense(3, activation="relu", name="odd")(x),
        },
    )
    with pytest.raises(
        ValueError, match=r"last output is not recognised.*BranchyModel\(back"
    ):
        model.stages()


def test_attach_mask_in_a_graph(rng):
    features = keras.Input((5, 3), name="features")
    valid = keras.Input((5,), dtype="bool", name="valid")
    pooled = layers.GlobalAveragePooling1D()(AttachMask()(features, valid))
    model = keras.Model({"features": features, "valid": valid}, pooled)
    x = rng.random((4, 5, 3), np.float32)
    keep = np.arange(5) < np.array([[1], [3], [5], [2]])
    got = model.predict({"features": x, "valid": keep}, verbose=0)
    want = (x * keep[..., None]).sum(1) / keep.sum(1, keepdims=True)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    "application, taps",
    [
        ("ResNet50", ["conv2_block2_1_relu", "conv3_block2_add", "conv4_block3_2_conv"]),
        ("DenseNet121", ["conv2_block3_1_conv", "pool3_relu", "conv4_block6_concat"]),
    ],
)
def test_published_backbones_with_exits_inside_blocks(application, taps, rng):
    backbone = getattr(keras.applications, application)(
        weights=None, input_shape=(32, 32, 3), classes=4
    )
    for layer in backbone.layers:  # untrained statistics leave activations tiny
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.8, 1.2, layer.gamma.shape))
    x = rng.random((6, 32, 32, 3), np.float32)
    plain = backbone.predict(x, verbose=0)
    model = BranchyModel(backbone, exits(*taps))
    logits, _ = all_logits(model, x, verbose=0)
    outputs = model.predict(x, verbose=0)
    np.testing.assert_array_equal(outputs["exit_4"], plain)
    for values, output in zip(logits, outputs.values(), strict=True):
        np.testing.assert_allclose(softmax(values), output, rtol=1e-5, atol=1e-6)
    assert max(len(stage.output_names) for stage in model.stages()) == 2


def test_a_masked_text_model_beside_its_rule(rng):
    model = BranchyModel(masked(), exits("lstm", "dense"))
    x = tokens(64, rng)
    outputs = model.predict(x, verbose=0)
    padded = np.concatenate([x, np.zeros((64, 3), np.int32)], axis=1)[:, :7]
    np.testing.assert_array_equal(padded, x)
    logits, _ = all_logits(model, x, verbose=0)
    for values, output in zip(logits, outputs.values(), strict=True):
        np.testing.assert_allclose(softmax(values), output, rtol=1e-5, atol=1e-6)
