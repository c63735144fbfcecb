# SPDX-License-Identifier: Apache-2.0
"""Which exits can pay, against arithmetic by hand and against the cost of the cut model."""

import keras
import pytest
from keras import layers

from keras_branchy import BranchyModel, ExitBranch, cost, networks

# B-ResNet-110 of BranchyNet, layer by layer: pixels x kernel x channels in x out.
STEM = 30 * 30 * 9 * 3 * 16
GROUP_1 = 18 * 2 * 30 * 30 * 9 * 16 * 16
GROUP_2 = 15 * 15 * 9 * (16 * 32 + 35 * 32 * 32)
GROUP_3 = 8 * 8 * 9 * (32 * 64 + 35 * 64 * 64)
WHOLE = STEM + GROUP_1 + GROUP_2 + GROUP_3 + 576 * 10
BRANCH_1 = 30 * 30 * (25 * 16 * 64 + 9 * 64 * 32 + 9 * 32 * 32) + 28_800 * 10
BRANCH_2 = 30 * 30 * 9 * 2 * 16 * 16 + 14_400 * 10


def test_the_published_first_branch_of_b_resnet_110():
    first, second = cost.judge_exits(networks.b_resnet(110))
    assert (first.exit_name, first.tap) == ("exit_1", "relu1")
    assert (first.trunk_macs, first.head_macs) == (STEM, BRANCH_1) == (388_800, 48_211_200)
    assert first.saved_macs == WHOLE - STEM
    assert first.break_even_share == pytest.approx(BRANCH_1 / (WHOLE - STEM))
    assert str(first) == (
        "exit_1 pays if more than 20.8 % of all samples leave there: its head takes "
        "48,211,200 MACs of every sample, and spares 232,023,168 to each that leaves. The "
        "head of exit_1 costs 124 times the trunk before it (388,800 MACs): try a smaller "
        "one, or a later tap."
    )
    assert (second.trunk_macs, second.head_macs) == (STEM + GROUP_1, BRANCH_2)
    assert second.break_even_share == pytest.approx(BRANCH_2 / (WHOLE - STEM - GROUP_1))
    assert second.pays and second.remark == "" and str(second).endswith("leaves.")


def test_a_head_that_reads_an_input_has_no_trunk_to_be_compared_with():
    backbone = networks.b_lenet(backbone_only=True)
    (image,) = cost.judge_exits(BranchyModel(backbone, {"image": ExitBranch(10)}))
    assert (image.tap, image.trunk_macs, image.head_macs) == ("image", 0, 160)
    assert image.saved_macs == 1_140_070 and image.remark == ""


def test_its_published_head_is_priced_before_it_is_put_anywhere():
    head = ExitBranch(
        10,
        layers=[
            layers.Conv2D(64, 5, padding="same"),
            layers.Conv2D(32, 3, padding="same"),
            layers.Conv2D(32, 3, padding="same"),
        ],
    )
    backbone = networks.b_resnet(110, backbone_only=True)
    places = cost.suggest_exits(backbone, head=head, places=None)
    place = next(place for place in places if place.tap == "relu1")
    assert (place.macs, place.head_macs) == (STEM, BRANCH_1) and not head.built
    assert place.saved_macs == WHOLE - STEM
    assert str(place).startswith("relu1 pays if more than 20.8 % of all samples leave")
    late = next(place for place in places if place.tap == "group3_block18_out")
    there = 8 * 8 * (25 * 64 * 64 + 9 * 64 * 32 + 9 * 32 * 32) + 64 * 32 * 10
    assert late.head_macs == there and late.pays is False and late.saved_macs == 5760
    assert str(late) == (
        "group3_block18_out costs more than it can save: its head takes 8,343,552 MACs of "
        "every sample, and 5,760 are left to save."
    )


def small_backbone(name="small"):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, activation="relu", name="early")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", name="late")(x)
    x = layers.Flatten(name="flat")(x)
    outputs = layers.Dense(3, activation="softmax")(layers.Dense(6, name="hidden")(x))
    return keras.Model(inputs, outputs, name=name)


@pytest.mark.parametrize("tap", ["early", "late", "flat"])
def test_at_the_break_even_share_a_sample_costs_what_it_did(tap):
    places = {p.tap: p for p in cost.suggest_exits(small_backbone(), places=None)}
    share = places[tap].break_even_share
    model = BranchyModel(small_backbone(), {tap: ExitBranch(3)})
    rows = cost.stage_costs(model)
    assert 0 < share < 1 and places[tap].pays
    macs = cost.expected_macs(rows, [share, 1 - share])
    assert macs == pytest.approx(cost.count_macs(small_backbone()))
    (judged,) = cost.judge_exits(model)
    assert judged.break_even_share == share and judged.tap == tap
    assert judged.head_macs == places[tap].head_macs == rows[0].head_macs


def losing_backbone():
    """2 x 50 MACs, then 50 x 2: an exit between has nothing to save but its own cost."""
    inputs = keras.Input((2,))
    x = layers.Dense(50, name="wide")(inputs)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


def test_a_model_whose_every_place_is_a_loss_says_so():
    places = cost.suggest_exits(losing_backbone(), places=None)
    (place,) = places
    assert (place.macs, place.head_macs, place.saved_macs) == (100, 100, 100)
    assert place.break_even_share is None and place.pays is False
    assert places.advice.startswith(
        "No exit with such a head can save anything here, whoever leaves: every head "
        "costs more than what is left behind its place. Nearest: wide costs more than it "
        "can save: its head takes 100 MACs of every sample, and 100 are left to save. Take "
    )
    assert str(places) == f"{place}\n{places.advice}"
    (judged,) = cost.judge_exits(BranchyModel(losing_backbone(), {"wide": ExitBranch(2)}))
    assert not judged.pays and "costs more than it can save" in str(judged)


def test_where_to_begin():
    places = cost.suggest_exits(small_backbone(), places=None)
    good = [place.tap for place in places if place.pays]
    assert good == ["early", "late", "flat"]
    assert places.advice == (
        f"3 of {len(places)} places can pay. Try 'early' and 'late'; only training tells "
        "how many samples leave there."
    )


def test_a_head_that_does_not_fit_is_told():
    head = ExitBranch(3, layers=[layers.Conv2D(2, 5)])
    found = cost.suggest_exits(small_backbone(), head=head, places=None)
    places = {place.tap: place for place in found}
    assert places["early"].head_macs == 2 * 2 * 25 * 4 * 2 + 2 * 2 * 2 * 3
    flat = places["flat"]
    assert flat.head_macs is flat.pays is flat.break_even_share is None
    assert str(flat) == "flat needs other `layers`: the head does not fit 128."
    inputs = keras.Input((4,))
    x = layers.Dense(4)(inputs)
    plain = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    found = cost.suggest_exits(plain, head=head, places=None)
    assert "No place fits this head. Pass head=ExitBranch(classes, layers=" in found.advice


def test_a_head_is_an_exit_branch():
    with pytest.raises(ValueError, match="`head` is an ExitBranch.*Received: <Dense"):
        cost.suggest_exits(small_backbone(), head=layers.Dense(3))
