# SPDX-License-Identifier: Apache-2.0
"""Networks with decision gates, and conditional deep learning, against NumPy."""

import functools

import keras
import numpy as np
import pytest
from published import (
    Weights,
    average_pool,
    batch_norm,
    conv,
    fully_connected,
    randomize,
    relu,
)

from keras_branchy import OneVsRestHinge, networks
from keras_branchy.scoring import all_logits

CROSSENTROPY = "sparse_categorical_crossentropy"
MAKERS = {"resnet": networks.d_gate_resnet, "densenet": networks.d_gate_densenet}
SMALL = {"resnet": {"width": 4}, "densenet": {"growth": 3}}
every_network = pytest.mark.parametrize("name", list(MAKERS))


def small(network, **options):
    return MAKERS[network](**{"blocks": (1, 2, 1, 1), **SMALL[network], **options})


@functools.cache
def drawn(name):
    model = small(name)
    randomize(model, np.random.default_rng(5), gain=1.5)
    return model


def norm(x, w, name):
    return batch_norm(x, w.norm(name), epsilon=1e-5)


def same(x, kernel, stride):
    """Keras' "same": what is lacking is padded, the odd row and column at the end."""
    size = kernel[0].shape[-1]
    pads = []
    for length in x.shape[2:]:
        lacking = max((-(-length // stride) - 1) * stride + size - length, 0)
        pads.append((lacking // 2, lacking - lacking // 2))
    return conv(np.pad(x, [(0, 0), (0, 0), *pads]), kernel, 0, stride)


def resnet(x, w):
    """What the first two groups give, and the logits."""

    def conv_norm(x, name, stride=1):
        return norm(same(x, w.conv(f"{name}_conv"), stride), w, f"{name}_bn")

    made, x = [], relu(conv_norm(x, "stem"))
    for group, blocks in enumerate((1, 2, 1, 1), 1):
        for number in range(1, blocks + 1):
            name, stride = f"group{group}_block{number}", 1 + (group > 1 and number == 1)
            y = relu(conv_norm(x, f"{name}_1"))
            y = conv_norm(relu(conv_norm(y, f"{name}_2", stride)), f"{name}_3")
            skip = conv_norm(x, f"{name}_shortcut", stride) if number == 1 else x
            x = relu(y + skip)
        made.append(x)
    logits = fully_connected(x.mean((2, 3)), w.dense("fc", (1, 1, x.shape[1])))
    return [*made[:2], logits]


def densenet(x, w):
    """What the first two blocks give, and the logits."""

    def norm_conv(x, name, conv_name):
        return same(relu(norm(x, w, f"{name}_bn")), w.conv(conv_name), 1)

    made = []
    x = relu(norm(same(x, w.conv("stem_conv"), 1), w, "stem_bn"))
    for block, count in enumerate((1, 2, 1, 1), 1):
        for number in range(1, count + 1):
            name = f"block{block}_layer{number}"
            new = norm_conv(x, f"{name}_1", f"{name}_conv1")
            new = norm_conv(new, f"{name}_2", f"{name}_conv2")
            x = np.concatenate([x, new], 1)
        made.append(x)
        if block < 4:
            name = f"transition{block}"
            x = average_pool(norm_conv(x, name, f"{name}_conv"), 2, 2)
    x = relu(norm(x, w, "last_bn")).mean((2, 3))
    return [*made[:2], fully_connected(x, w.dense("fc", (1, 1, x.shape[1])))]


def gate(x, branch):
    """One linear layer on a grid of 4x4 averages."""
    x = average_pool(x, x.shape[2] // 4, x.shape[2] // 4)
    weights = Weights(branch).dense("exit_logits", (4, 4, x.shape[1]))
    return fully_connected(x, weights)


@every_network
def test_logits_and_decision_values_are_those_of_the_definition(name, rng):
    model = drawn(name)
    images = rng.random((3, 32, 32, 3), np.float32)
    logits, _ = all_logits(model, images, verbose=0)
    x = images.transpose(0, 3, 1, 2).astype(float)
    *taps, last = {"resnet": resnet, "densenet": densenet}[name](x, Weights(model))
    assert [tap.shape[2:] for tap in taps] == [(32, 32), (16, 16)]
    expected = [gate(*pair) for pair in zip(taps, model.branches, strict=True)]
    for given, right in zip(logits, [*expected, last], strict=True):
        assert np.ptp(right) > 0.5  # logits that differ, or the comparison says nothing
        # float32 against float64 through up to 22 layers and normalizations.
        np.testing.assert_allclose(given, right, atol=2e-5 * np.abs(right).max())


@every_network
def test_gates_stand_behind_two_blocks(name):
    model = drawn(name)
    assert model.criteria == ["distance", "distance"]
    assert [branch.activation for branch in model.branches] == [None, None]
    taps = {
        "resnet": [("group1_block1_out",), ("group2_block2_out",), ()],
        "densenet": [("block1_layer1",), ("block2_layer2",), ()],
    }
    assert [stage.live for stage in model.stages()] == taps[name]


@every_network
def test_crossentropy_gates_are_the_same_layers_with_a_softmax(name):
    hinge, other = drawn(name), small(name, gates="crossentropy", num_classes=10)
    assert other.criteria == ["max_probability", "max_probability"]
    assert [branch.activation for branch in other.branches] == ["softmax", "softmax"]
    shapes = [[tuple(w.shape) for w in model.weights] for model in (hinge, other)]
    assert shapes[0] == shapes[1]


@every_network
def test_the_backbone_is_the_network_without_gates(name, rng):
    model, plain = drawn(name), small(name, backbone_only=True)
    assert not hasattr(plain, "branches")
    for layer in plain.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    images = rng.random((3, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(
        plain.predict_on_batch(images), model.predict_on_batch(images)["exit_3"]
    )


@every_network
def test_names_and_classes_are_taken(name):
    model = small(name, num_classes=4, name="four")
    assert model.name == "four" and model.num_classes == 4
    depth = {"resnet": 17, "densenet": 15}[name]
    assert drawn(name).name == f"d_gate_{name}{depth}"
    assert small(name, backbone_only=True).name == f"{name}{depth}"


def test_gates_alone_learn_on_a_frozen_network(rng):
    """The steps of `d_gate_resnet`'s docstring."""
    model = small("resnet")
    for layer in model.layers:
        layer.trainable = layer in model.branches
    hinge = OneVsRestHinge()
    model.compile(keras.optimizers.Adam(0.01), loss={"exit_1": hinge, "exit_2": hinge})
    assert_only_these_move(model, model.branches, rng, (32, 32, 3))


def test_conditional_deep_learning_trains_one_exit_after_another(rng):
    """The steps of `cdl_lenet`'s docstring."""
    model = networks.cdl_lenet()
    for branch in model.branches:
        for layer in model.layers:
            layer.trainable = layer is branch
        model.compile("adam", {branch.name: CROSSENTROPY})
        assert_only_these_move(model, [branch], rng, (28, 28, 1))


def assert_only_these_move(model, layers, rng, shape):
    moving = {id(weight) for layer in layers for weight in layer.weights}
    before = model.get_weights()
    x, y = rng.random((32, *shape), np.float32), rng.integers(0, 10, 32)
    model.fit(x, y, epochs=1, verbose=0)
    for weight, old in zip(model.weights, before, strict=True):
        assert np.any(weight.numpy() != old) == (id(weight) in moving), weight.path


def test_conditional_deep_learning_is_linear_on_the_first_two_poolings(rng):
    model, plain = networks.cdl_lenet(name="cdl"), networks.b_lenet(backbone_only=True)
    assert (model.name, model.criteria) == ("cdl", ["max_probability"] * 2)
    images = rng.random((5, 28, 28, 1), np.float32)
    taps = [model.get_layer(name).output for name in ("relu1", "relu2")]
    features = keras.Model(model.input, taps).predict(images, verbose=0)
    logits, _ = all_logits(model, images, verbose=0)
    for given, x, branch in zip(logits, features, model.branches, strict=False):
        kernel, bias = branch.get_weights()
        expected = x.reshape(5, -1).astype(float) @ kernel + bias
        np.testing.assert_allclose(given, expected, atol=1e-5)  # float32, 1,125 terms
    for layer in plain.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    np.testing.assert_array_equal(
        plain.predict_on_batch(images), model.predict_on_batch(images)["exit_3"]
    )


@pytest.mark.parametrize("blocks", [(3, 4, 23), (1, 0, 1, 1), ()])
def test_other_numbers_of_blocks_are_refused(blocks):
    with pytest.raises(ValueError, match=r"how many each of four groups.*is ResNet-101"):
        networks.d_gate_resnet(blocks=blocks)
    with pytest.raises(ValueError, match=r"how many each of four groups.*is DenseNet-201"):
        networks.d_gate_densenet(blocks=blocks)


@every_network
def test_other_gates_are_refused(name):
    with pytest.raises(ValueError, match=r"'hinge', decision values.*gates='softmax'"):
        small(name, gates="softmax")
