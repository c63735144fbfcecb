# SPDX-License-Identifier: Apache-2.0
"""B-ResNet in both variants, against the published definition in NumPy."""

import numpy as np
import pytest
from published import (
    Weights,
    average_pool,
    batch_norm,
    conv,
    fully_connected,
    lrn,
    randomize,
    relu,
    shortcut,
)

from keras_branchy import networks
from keras_branchy.scoring import all_logits

GROUPS = [(16, 1), (32, 2), (64, 2)]


def block(x, w, names, stride=1, survival=1.0):
    """Convolution, norm, ReLU, convolution, norm, + shortcut, ReLU."""
    conv1, bn1, conv2, bn2 = names
    filters = len(w.conv(conv1)[1])
    y = relu(batch_norm(conv(x, w.conv(conv1), 1, stride), w.norm(bn1)))
    y = batch_norm(conv(y, w.conv(conv2), 1), w.norm(bn2))
    return relu(survival * y + shortcut(x, filters, stride))


def trunk(x, w, pad, blocks, survivals):
    """The first activation, what each group gives, and the logits."""
    x = relu(batch_norm(conv(x, w.conv("conv1"), pad), w.norm("bn1")))
    made = [x]
    for group, (_, stride) in enumerate(GROUPS, 1):
        for number in range(1, blocks + 1):
            name = f"group{group}_block{number}"
            names = [f"{name}_{part}" for part in ("conv1", "bn1", "conv2", "bn2")]
            first = stride if number == 1 else 1
            x = block(x, w, names, first, survivals.pop(0) if survivals else 1.0)
        made.append(x)
    x = average_pool(x, 6, 1)
    assert x.shape[1:] == (64, 3, 3)
    return made, fully_connected(x, w.dense("fc", (3, 3, 64)))


def convolutions(x, w, names):
    for name, pad in names:
        x = relu(conv(x, w.conv(name), pad))
    return x


def linear(x, w):
    _, channels, rows, columns = x.shape
    return fully_connected(x, w.dense("exit_logits", (rows, columns, channels)))


def authors(made, first, second):
    x = lrn(convolutions(made[0], first, [("branch1_conv1", 2)]))
    x = convolutions(x, first, [("branch1_conv2", 1), ("branch1_conv3", 1)])
    parts = ("conv1", "bn1", "conv2", "bn2")
    return linear(x, first), linear(block(made[1], second, parts), second)


def chainer(made, first, second):
    x = block(made[1], first, ("conv1", "bn1", "conv2", "bn2"))
    y = convolutions(made[2], second, [("branch2_conv", 1)])
    return linear(x, first), linear(y, second)


@pytest.mark.parametrize(
    "depth, options, pad, exits, survivals",
    [
        (8, {}, 0, authors, []),
        (8, {"variant": "chainer"}, 1, chainer, []),
        # Huang et al.: 1 - l / L (1 - p), here L = 6 and p = 0.4.
        (14, {"stochastic_depth": 0.4}, 0, authors, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]),
    ],
    ids=["branchynet", "chainer", "stochastic depth"],
)
def test_logits_are_those_of_the_definition(depth, options, pad, exits, survivals, rng):
    model = networks.b_resnet(depth, **options)
    randomize(model, rng)
    images = rng.random((3, 32, 32, 3), np.float32)
    logits, _ = all_logits(model, images, verbose=0)

    x = images.transpose(0, 3, 1, 2).astype(float)
    made, last = trunk(x, Weights(model), pad, (depth - 2) // 6, survivals)
    branches = [Weights(branch) for branch in model.branches]
    for given, right in zip(logits, [*exits(made, *branches), last], strict=True):
        assert np.ptp(right) > 1  # logits that differ, or the comparison says nothing
        # float32 against float64 through up to 14 layers and normalizations.
        np.testing.assert_allclose(given, right, atol=2e-5 * np.abs(right).max())


def test_the_authors_exits_sit_in_the_stem_and_behind_the_first_group():
    model = networks.b_resnet(20)
    assert [stage.live for stage in model.stages()] == [
        ("relu1",),
        ("group1_block3_out",),
        (),
    ]
    assert model.criteria == ["entropy", "entropy"]
    assert model.name == "b_resnet20"
    shapes = [tuple(branch.classifier.kernel.shape) for branch in model.branches]
    assert shapes == [(28_800, 10), (14_400, 10)]


def test_chainers_exits_sit_behind_two_groups():
    model = networks.b_resnet(14, 4, variant="chainer", name="four")
    assert [stage.live for stage in model.stages()] == [
        ("group1_block2_out",),
        ("group2_block2_out",),
        (),
    ]
    assert model.name == "four" and model.num_classes == 4
    shapes = [tuple(branch.classifier.kernel.shape) for branch in model.branches]
    assert shapes == [(16 * 32 * 32, 4), (32 * 16 * 16, 4)]


@pytest.mark.parametrize("variant", ["branchynet", "chainer"])
def test_the_backbone_is_the_main_path(variant, rng):
    model = networks.b_resnet(8, variant=variant)
    plain = networks.b_resnet(8, variant=variant, backbone_only=True)
    assert plain.name == "resnet8"
    for layer in plain.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    images = rng.random((3, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(
        plain.predict_on_batch(images), model.predict_on_batch(images)["exit_3"]
    )


# 110 stands in test_network_sizes.
@pytest.mark.parametrize(
    "depth", [20, *(pytest.param(depth, marks=pytest.mark.long) for depth in (32, 44, 56))]
)
def test_a_network_has_the_layers_of_its_depth(depth):
    layers = networks.b_resnet(depth, backbone_only=True).layers
    weighted = [x for x in layers if type(x).__name__ in ("Conv2D", "Dense")]
    assert len(weighted) == depth


def test_every_block_has_its_survival():
    model = networks.b_resnet(20, stochastic_depth=0.5, backbone_only=True)
    rates = [
        layer.survival_rate for layer in model.layers if hasattr(layer, "survival_rate")
    ]
    np.testing.assert_allclose(rates, 1 - np.arange(1, 10) / 9 * 0.5, rtol=1e-12)


@pytest.mark.parametrize("depth", [2, 7, 21, 20.0, "20"])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"`depth` must be 6n \+ 2 .* depth={depth!r}"):
        networks.b_resnet(depth)


def test_other_variants_are_refused():
    with pytest.raises(ValueError, match="'branchynet', the authors'.*variant='torch'"):
        networks.b_resnet(8, variant="torch")


@pytest.mark.parametrize("rate", [0, -0.5, 1.5, float("nan")])
def test_survivals_that_are_no_probability_are_refused(rate):
    with pytest.raises(ValueError, match=rf"probability of survival.*_depth={rate!r}"):
        networks.b_resnet(8, stochastic_depth=rate)
