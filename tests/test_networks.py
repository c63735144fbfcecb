# SPDX-License-Identifier: Apache-2.0
"""The published networks, against the published definition in NumPy, channels first."""

import re

import numpy as np
import pytest

from keras_branchy import cost, networks
from keras_branchy.scoring import all_logits

# Channels first, as kunglab/branchynet stores them: [out, in, rows, columns], [out, in].
PUBLISHED = {
    "conv1": (5, 1, 5, 5),
    "conv2": (10, 5, 5, 5),
    "conv3": (20, 10, 5, 5),
    "fc1": (84, 720),
    "fc2": (10, 84),
    "branch conv": (10, 5, 3, 3),
    "branch fc": (10, 640),
}


@pytest.fixture
def published(rng):
    """Weights of the published shapes, scaled so that logits spread over a few units."""
    return {
        name: (
            2 * rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])),
            rng.normal(size=shape[0]) / 4,
        )
        for name, shape in PUBLISHED.items()
    }


def conv(x, weights, pad):
    """[B, C, H, W] with kernels [O, C, h, w], stride 1."""
    kernel, bias = weights
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))
    return np.einsum("bcyxhw,ochw->boyx", windows, kernel) + bias[:, None, None]


def pool_and_relu(x):
    """2x2 with stride 2; a row or column that is left over is pooled too (cover_all)."""
    rows, columns = (size + size % 2 for size in x.shape[2:])
    spare = [(0, 0), (0, 0), (0, rows - x.shape[2]), (0, columns - x.shape[3])]
    x = np.pad(x, spare, constant_values=-np.inf)
    x = x.reshape(*x.shape[:2], rows // 2, 2, columns // 2, 2).max((3, 5))
    return np.maximum(x, 0)


def fully_connected(x, weights):
    return x.reshape(len(x), -1) @ weights[0].T + weights[1]


def published_b_lenet(x, w):
    """Logits of both exits, in float64."""
    tap = conv(x, w["conv1"], 3)
    branch = pool_and_relu(conv(pool_and_relu(tap), w["branch conv"], 1))
    x = pool_and_relu(conv(pool_and_relu(tap), w["conv2"], 3))
    x = pool_and_relu(conv(x, w["conv3"], 3))
    x = fully_connected(fully_connected(x, w["fc1"]), w["fc2"])
    return fully_connected(branch, w["branch fc"]), x


def documented_transpositions():
    """The expressions in the table of `b_lenet`'s docstring, in the order of PUBLISHED."""
    rows = re.findall(r'^ *\| `"(\w+)"`.*\| `(W.+?)` \|$', networks.b_lenet.__doc__, re.M)
    assert [layer for layer, _ in rows] == [
        *("conv1", "conv2", "conv3", "fc1", "fc2"),
        *("exit_1", "exit_1"),
    ]
    return dict(zip(PUBLISHED, [expression for _, expression in rows], strict=True))


def test_b_lenet_with_published_weights_gives_the_published_logits(published, rng):
    model = networks.b_lenet()
    here = {
        name: [eval(expression, {"W": published[name][0]}), published[name][1]]
        for name, expression in documented_transpositions().items()
    }
    for name in ("conv1", "conv2", "conv3", "fc1", "fc2"):
        model.get_layer(name).set_weights(here[name])
    model.get_layer("exit_1").set_weights([*here["branch conv"], *here["branch fc"]])

    images = rng.random((6, 28, 28, 1), np.float32)
    logits, _ = all_logits(model, images, verbose=0)
    expected = published_b_lenet(images.transpose(0, 3, 1, 2).astype(float), published)
    for given, right in zip(logits, expected, strict=True):
        assert np.ptp(right) > 1  # logits that differ, or the comparison says nothing
        # float32 against float64: logits of size 1 to 10, sums of up to 720 terms.
        np.testing.assert_allclose(given, right, atol=1e-4)


def test_b_lenet_has_the_published_size():
    model = networks.b_lenet()
    branch = model.get_layer("exit_1").count_params()
    assert (model.count_params() - branch, branch) == (67_824, 6_870)
    assert networks.b_lenet(backbone_only=True).count_params() == 67_824


def test_b_lenet_documents_its_layers():
    model = networks.b_lenet()
    for name, shapes in re.findall(
        r'^ *\| `"(\w+)"`[^|]*\| (\([^|]*\)) \|', networks.b_lenet.__doc__, re.M
    ):
        weights = [tuple(weight.shape) for weight in model.get_layer(name).weights]
        for shape in eval(shapes):
            assert shape in weights, name


def test_b_lenet_taps_the_first_convolution_before_its_pooling():
    model = networks.b_lenet()
    first, second = model.stages()
    assert first.live == ("relu1",)
    assert tuple(second.model.input["relu1"].shape) == (None, 15, 15, 5)
    assert model.criteria == ["entropy"]


def test_the_light_exit_computes_nothing_of_the_trunk(rng):
    model, plain = networks.b_lenet(light_exit=True), networks.b_lenet(backbone_only=True)
    first, second = model.stages()
    assert (first.live, first.output_names) == (("image",), [])
    assert first.model.count_params() == 592 + 4640 + 8010
    rows = cost.stage_costs(model)
    # By hand: 49 places of 6·6·16, 25 of 3·3·16·32, and 800·10.
    assert (rows[0].trunk_macs, rows[0].head_macs) == (0, 28_224 + 115_200 + 8_000)
    assert rows[1].trunk_macs == 1_140_070
    for layer in plain.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    images = rng.random((3, 28, 28, 1), np.float32)
    np.testing.assert_array_equal(
        plain.predict_on_batch(images), model.predict_on_batch(images)["exit_2"]
    )


def test_b_lenet_takes_a_number_of_classes_and_a_name():
    model = networks.b_lenet(4, name="four")
    assert model.name == "four" and model.num_classes == 4
    plain = networks.b_lenet(4, backbone_only=True, name="plain")
    assert plain.name == "plain" and plain.output.shape == (None, 4)


def test_the_backbone_is_the_main_path(rng):
    model, plain = networks.b_lenet(), networks.b_lenet(backbone_only=True)
    for layer in plain.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    images = rng.random((3, 28, 28, 1), np.float32)
    np.testing.assert_array_equal(
        plain.predict_on_batch(images), model.predict_on_batch(images)["exit_2"]
    )
