# SPDX-License-Identifier: Apache-2.0
"""B-AlexNet, against the published definition in NumPy, channels first."""

import re

import keras
import numpy as np
import pytest
from keras import ops
from published import conv, fully_connected, lrn, max_pool, relu

from keras_branchy import cost, networks
from keras_branchy.scoring import all_logits

WHOLE = 28_247_296  # MACs of the plain network

# Channels first, as kunglab/branchynet stores them: [out, in, rows, columns], [out, in].
TRUNK = {
    "conv1": (32, 3, 5, 5),
    "conv2": (64, 32, 5, 5),
    "conv3": (96, 64, 3, 3),
    "conv4": (96, 96, 3, 3),
    "conv5": (64, 96, 3, 3),
    "fc1": (256, 1024),
    "fc2": (128, 256),
    "fc3": (10, 128),
}
BRANCH_1 = [(32, 64, 3, 3), (32, 32, 3, 3), (10, 512)]
BRANCH_2 = [(32, 96, 3, 3), (10, 128)]


def drawn(shape, rng):
    return (
        2 * rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])),
        rng.normal(size=shape[0]) / 4,
    )


@pytest.fixture
def published(rng):
    """Weights so large in front that each normalization changes what it is given."""
    trunk = {name: drawn(shape, rng) for name, shape in TRUNK.items()}
    trunk["conv1"] = (200 * trunk["conv1"][0], trunk["conv1"][1])
    branches = [[drawn(shape, rng) for shape in branch] for branch in (BRANCH_1, BRANCH_2)]
    return trunk, *branches


def published_b_alexnet(x, trunk, branch_1, branch_2):
    """Logits of the three exits, in float64; dropout is off."""

    def relu_pool_norm(x):
        return lrn(max_pool(relu(x), 3, 2))

    x = relu_pool_norm(conv(x, trunk["conv1"], 2))
    tap_1 = conv(x, trunk["conv2"], 2)
    branch = relu_pool_norm(tap_1)
    branch = relu(conv(relu(conv(branch, branch_1[0], 1)), branch_1[1], 1))
    exit_1 = fully_connected(max_pool(branch, 3, 2), branch_1[2])
    tap_2 = conv(relu_pool_norm(tap_1), trunk["conv3"], 1)
    branch = relu(conv(relu_pool_norm(tap_2), branch_2[0], 1))
    exit_2 = fully_connected(max_pool(branch, 3, 2), branch_2[1])
    x = relu(conv(relu(tap_2), trunk["conv4"], 1))
    x = max_pool(relu(conv(x, trunk["conv5"], 1)), 3, 2)
    x = relu(fully_connected(relu(fully_connected(x, trunk["fc1"])), trunk["fc2"]))
    return exit_1, exit_2, fully_connected(x, trunk["fc3"])


def here(weights, grid=None):
    """In the layout of Keras; `grid` is [channels, rows, columns] that were flattened."""
    kernel, bias = weights
    if kernel.ndim == 4:
        return [kernel.transpose(2, 3, 1, 0), bias]
    if grid:
        kernel = kernel.reshape(-1, *grid).transpose(0, 2, 3, 1).reshape(len(kernel), -1)
    return [kernel.T, bias]


def test_published_weights_give_the_published_logits(published, rng):
    trunk, branch_1, branch_2 = published
    model = networks.b_alexnet()
    for name, weights in trunk.items():
        grid = (64, 4, 4) if name == "fc1" else None
        model.get_layer(name).set_weights(here(weights, grid))
    for name, branch, grid in (
        ("exit_1", branch_1, (32, 4, 4)),
        ("exit_2", branch_2, (32, 2, 2)),
    ):
        flat = [array for weights in branch for array in here(weights, grid)]
        model.get_layer(name).set_weights(flat)

    images = rng.random((4, 32, 32, 3), np.float32)
    logits, _ = all_logits(model, images, verbose=0)
    expected = published_b_alexnet(images.transpose(0, 3, 1, 2).astype(float), *published)
    for given, right in zip(logits, expected, strict=True):
        assert np.ptp(right) > 1  # logits that differ, or the comparison says nothing
        # float32 against float64 through seven layers of up to 1,600 terms.
        np.testing.assert_allclose(given, right, atol=1e-5 * np.abs(right).max())


def test_the_size_is_the_published_one():
    model = networks.b_alexnet()
    branches = [branch.count_params() for branch in model.branches]
    assert (model.count_params() - sum(branches), branches) == (544_074, [32_842, 28_970])
    assert networks.b_alexnet(backbone_only=True).count_params() == 544_074
    assert model.criteria == ["entropy", "entropy"]
    assert [stage.live for stage in model.stages()] == [("norm2",), ("relu3",), ()]


def test_the_cost_is_the_published_one():
    rows = cost.stage_costs(networks.b_alexnet())
    trunk = [
        32 * 32 * 32 * 75 + 16 * 16 * 64 * 800,
        8 * 8 * 96 * 576,
        8 * 8 * (96 * 864 + 64 * 864) + 1024 * 256 + 256 * 128 + 1280,
    ]
    heads = [8 * 8 * 32 * (576 + 288) + 5120, 4 * 4 * 32 * 864 + 1280, 0]
    assert [row.trunk_macs for row in rows] == trunk
    assert [row.head_macs for row in rows] == heads
    whole = sum(trunk)
    assert round(whole / 1e6, 2) == 28.25
    assert round((trunk[0] + heads[0]) / whole, 3) == 0.614
    # At the published shares of exits, as REFERENCES' table has the gains.
    shares = np.array([0.656, 0.252, 0.092])
    without = shares @ np.cumsum(trunk)
    counted = without + shares @ np.cumsum(heads)
    assert (round(whole / without, 2), round(whole / counted, 2)) == (1.60, 1.44)


@pytest.mark.parametrize("convs, features", [(0, 1024), (1, 512), (3, 512), (4, 512)])
def test_branch_1_takes_up_to_four_convolutions(convs, features):
    branch, other = networks.b_alexnet(branch1_convs=convs).branches
    kernels = [w for w in branch.weights if w.path.endswith("kernel")]
    assert len(kernels) == convs + 1 and tuple(kernels[-1].shape) == (features, 10)
    assert other.count_params() == 28_970
    # The first reads 64 channels, the others 32.
    macs = cost.stage_costs(networks.b_alexnet(branch1_convs=convs))[0].head_macs
    assert macs == (convs > 0) * 8 * 8 * 32 * (576 + 288 * (convs - 1)) + features * 10


@pytest.mark.parametrize("convs", [-1, 5, None, "2"])
def test_other_numbers_of_convolutions_are_refused(convs):
    with pytest.raises(ValueError, match=rf"0, 1, 2, 3 or 4 .* branch1_convs={convs!r}"):
        networks.b_alexnet(branch1_convs=convs)


def test_the_light_exits_stand_on_the_same_trunk(rng):
    model = networks.b_alexnet(light_exits=True)
    plain = networks.b_alexnet(backbone_only=True)
    assert [stage.live for stage in model.stages()] == [("pool1",), ("norm2",), ()]
    for layer in plain.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    images = rng.random((3, 32, 32, 3), np.float32)
    given = model.predict_on_batch(images)
    np.testing.assert_array_equal(plain.predict_on_batch(images), given["exit_3"])
    tensors = {"image": images}
    for stage in model.stages():
        tensors |= stage(tensors)
        # Rounding of another order of sums.
        np.testing.assert_allclose(
            ops.softmax(tensors["logits"]), given[stage.exit_name], atol=1e-6
        )


def test_the_light_exits_cost_what_the_docstring_says():
    model = networks.b_alexnet(light_exits=True)
    rows = cost.stage_costs(model)
    assert [row.trunk_macs for row in rows] == [
        32 * 32 * 32 * 75,
        16 * 16 * 64 * 800,
        WHOLE - 32 * 32 * 32 * 75 - 16 * 16 * 64 * 800,
    ]
    # Convolutions of 32 and of 64 channels on 8x8 and on 4x4; a dense layer of 4,096.
    heads = [8 * 8 * 64 * 288 + 4 * 4 * 64 * 576 + 10_240, 4096 * 64 + 640, 0]
    assert [row.head_macs for row in rows] == heads
    params = [branch.count_params() for branch in model.branches]
    assert params == [64 * 289 + 64 * 577 + 10_250, 4097 * 64 + 650]
    row = r"^ *\| \d \| .* \| ([\d,]+) \| (\d+) % \|$"
    table = re.findall(row, networks.b_alexnet.__doc__, re.MULTILINE)
    shares = [f"{100 * cells.macs_to_leave / WHOLE:.0f}" for cells in rows[:2]]
    assert table == [(f"{n:,}", share) for n, share in zip(params, shares, strict=True)]


def test_the_light_exits_answer_alike_from_a_file(tmp_path, rng):
    model = networks.b_alexnet(4, light_exits=True)
    model.save(tmp_path / "light.keras")
    loaded = keras.models.load_model(tmp_path / "light.keras")
    assert [stage.live for stage in loaded.stages()] == [("pool1",), ("norm2",), ()]
    images = rng.random((2, 32, 32, 3), np.float32)
    given, expected = loaded.predict_on_batch(images), model.predict_on_batch(images)
    for name in model.exit_names:
        np.testing.assert_array_equal(given[name], expected[name])


def test_convolutions_of_a_branch_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match=r"branch1_convs=3 with light_exits=True"):
        networks.b_alexnet(branch1_convs=3, light_exits=True)


def test_classes_and_a_name_are_taken():
    model = networks.b_alexnet(4, name="four")
    assert model.name == "four" and model.num_classes == 4
    plain = networks.b_alexnet(4, backbone_only=True, name="plain")
    assert plain.name == "plain" and plain.output.shape == (None, 4)


def test_the_backbone_is_the_main_path(rng):
    model, plain = networks.b_alexnet(), networks.b_alexnet(backbone_only=True)
    for layer in plain.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    images = rng.random((3, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(
        plain.predict_on_batch(images), model.predict_on_batch(images)["exit_3"]
    )
