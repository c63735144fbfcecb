# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates of the published networks, in full.

Large networks take seconds to build: each is built once, here only.
"""

import functools
import operator
import re

import keras
import pytest
from project import ROOT

from keras_branchy import cost, networks

MAKERS = {
    "b_lenet()": networks.b_lenet,
    "b_lenet(light_exit=True)": lambda: networks.b_lenet(light_exit=True),
    "cdl_lenet()": networks.cdl_lenet,
    "b_alexnet()": networks.b_alexnet,
    "b_alexnet(light_exits=True)": lambda: networks.b_alexnet(light_exits=True),
    "b_resnet()": networks.b_resnet,
    'b_resnet(variant="chainer")': lambda: networks.b_resnet(variant="chainer"),
    "d_gate_resnet()": networks.d_gate_resnet,
    "d_gate_densenet()": networks.d_gate_densenet,
}


@functools.cache
def sizes(name):
    """Parameters and MACs: of the trunk, and of each exit."""
    model = MAKERS[name]()
    heads = [branch.count_params() for branch in model.branches]
    rows = cost.stage_costs(model)
    return (
        model.count_params() - sum(heads),
        heads,
        [row.trunk_macs for row in rows],
        [row.head_macs for row in rows[:-1]],
    )


def residual_macs(size):
    """Of ResNet-110 by hand, by group: 18 blocks of two convolutions in each."""
    halves = [size, -(-size // 2), -(-size // 4)]
    return [
        size**2 * (16 * 27 + 36 * 16 * 144),
        halves[1] ** 2 * 32 * (144 + 35 * 288),
        halves[2] ** 2 * 64 * (288 + 35 * 576) + 5760,
    ]


def test_b_resnet_110():
    trunk, heads, macs, head_macs = sizes("b_resnet()")
    stem = 30 * 30 * 16 * 27
    groups = residual_macs(30)
    assert macs == [stem, groups[0] - stem, groups[1] + groups[2]]
    assert head_macs == [
        30 * 30 * (64 * 400 + 32 * 576 + 32 * 288) + 288_000,
        2 * 30 * 30 * 16 * 144 + 144_000,
    ]
    assert (round(sum(macs) / 1e6, 1), round(head_macs[0] / 1e6, 1)) == (232.4, 48.2)
    assert round((macs[0] + head_macs[0]) / sum(macs), 3) == 0.209
    # At the published shares of exits, as REFERENCES' table has the gains.
    reach = [1, 1 - 0.415, 0.447]
    without = sum(map(operator.mul, reach, macs))
    counted = without + sum(map(operator.mul, reach, head_macs))
    assert round(sum(macs) / without, 2) == 2.03
    assert round(sum(macs) / counted, 2) == 1.41
    # Convolutions with biases, a gamma, beta, mean and variance for each channel, and FC.
    channels = [16, *[16] * 36, *[32] * 36, *[64] * 36]
    read = [3, *[16] * 36, 16, *[32] * 35, 32, *[64] * 35]
    convs = sum(o * (9 * i + 5) for i, o in zip(read, channels, strict=True))
    assert trunk == convs + 5770
    assert heads == [64 * 401 + 32 * 577 + 32 * 289 + 288_010, 148_778]


def test_b_resnet_110_of_the_chainer_version():
    trunk, heads, macs, head_macs = sizes('b_resnet(variant="chainer")')
    assert trunk == sizes("b_resnet()")[0]
    assert macs == residual_macs(32)
    assert head_macs == [
        2 * 32 * 32 * 16 * 144 + 163_840,
        16 * 16 * 32 * 288 + 81_920,
    ]
    assert heads == [2 * 16 * 149 + 163_850, 32 * 289 + 81_930]


def test_d_gate_resnet_101():
    trunk, heads, macs, head_macs = sizes("d_gate_resnet()")
    assert trunk == 42_618_314
    assert heads == [head + 10 for head in head_macs] == [40_970, 81_930]
    expected, channels = [32 * 32 * 64 * 27], 64
    for group, blocks in enumerate((3, 4, 23, 3)):
        width, pixels = 64 << group, (32 >> group) ** 2
        before = pixels if group == 0 else 4 * pixels  # the stride is in the 3x3
        macs_here = before * channels * width + pixels * (
            width * 9 * width + width * 4 * width + channels * 4 * width
        )
        channels = 4 * width
        macs_here += (blocks - 1) * pixels * (2 * channels * width + 9 * width * width)
        expected.append(macs_here)
    assert macs == [sum(expected[:2]), expected[2], sum(expected[3:]) + 20_480]
    # 5 GFLOPs, of which the published 1.95 are 39 %.
    assert round(2 * sum(macs) / 1e9, 2) == 5.02


def test_d_gate_densenet_201():
    trunk, heads, macs, head_macs = sizes("d_gate_densenet()")
    assert trunk == 18_333_514
    assert heads == [head + 10 for head in head_macs] == [40_970, 81_930]
    stages, channels = [32 * 32 * 64 * 27], 64
    for block, count in enumerate((6, 12, 48, 32)):
        pixels = (32 >> block) ** 2
        for _ in range(count):
            stages.append(pixels * (channels * 128 + 128 * 9 * 32))
            channels += 32
        if block < 3:
            stages.append(pixels * channels * channels // 2)
            channels //= 2
    cuts = [stages[:7], stages[7:20], [*stages[20:], channels * 10]]
    assert macs == [sum(cut) for cut in cuts]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_networks_are_those_of_keras_applications_for_small_images():
    options = {"weights": None, "classes": 10}
    resnet = keras.applications.ResNet101(**options)
    biases = sum(
        layer.bias.shape[0]
        for layer in resnet.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.use_bias
    )
    # A stem of 3x3 where theirs is 7x7, for 3 channels to 64.
    stems = 3 * 64 * (49 - 9)
    assert sizes("d_gate_resnet()")[0] == resnet.count_params() - biases - stems
    densenet = keras.applications.DenseNet201(**options)
    assert sizes("d_gate_densenet()")[0] == densenet.count_params() - stems


def test_cdl_lenet_costs_what_its_docstring_says():
    trunk, heads, macs, head_macs = sizes("cdl_lenet()")
    assert (trunk, heads) == (67_824, [11_260, 8_110])
    assert (sum(macs), head_macs) == (1_140_070, [15 * 15 * 5 * 10, 9 * 9 * 10 * 10])
    text = networks.cdl_lenet.__doc__
    assert "11,260 and 8,110 parameters, and cost 11,250 and 8,100" in text


def test_the_readme_says_how_large_they_are():
    """| `networks.b_lenet()` | data | parameters | MACs | exits cost | source |"""
    text = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `networks\.(.+?)` \| (.+) \|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(MAKERS)
    for name, cells in rows:
        _, parameters, macs, exits, _ = cells.split(" | ")
        trunk, _, trunk_macs, head_macs = sizes(name)
        assert parameters == short(trunk), name
        assert macs == short(sum(trunk_macs)), name
        paid = [sum(trunk_macs[: n + 1]) + sum(head_macs[: n + 1]) for n in (0, 1)]
        shares = [f"{100 * macs / sum(trunk_macs):.0f} %" for macs in paid]
        assert exits == ", ".join(shares[: len(head_macs)]), name


def short(count):
    """Three digits: 67.8 k, 2.51 G."""
    power, unit = next((p, u) for p, u in ((9, "G"), (6, "M"), (3, "k")) if count >= 10**p)
    digits = f"{count / 10**power:.3g}"
    return f"{digits} {unit}"
