# SPDX-License-Identifier: Apache-2.0
"""The cost model, against numbers worked out by hand, published ones, and TensorFlow's."""

import inspect
import time

import keras
import numpy as np
import pytest
from applications import macs_by_tensorflow, macs_in_groups
from keras import layers

from keras_branchy import BranchyModel, ExitBranch, cost, networks
from keras_branchy.cost import registry


def model_of(*steps, shape, dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype)
    x = inputs
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


# ---- Counts by hand: layers, the input's shape, MACs ---------------------------------
class Cell(layers.Layer):
    """A recurrent cell that Keras does not bring, without a product."""

    state_size = output_size = 3

    def call(self, inputs, states):
        return inputs[:, :3], states


BY_HAND = {
    "dense": (layers.Dense(7), (5,), 5 * 7),
    "dense on a sequence": (layers.Dense(7), (4, 5), 4 * 5 * 7),
    "conv1d": (layers.Conv1D(7, 3), (10, 5), 8 * 3 * 5 * 7),
    "conv2d": (layers.Conv2D(7, (3, 2), padding="same"), (6, 5, 4), 30 * 6 * 4 * 7),
    "conv2d with strides": (layers.Conv2D(7, 3, strides=2), (9, 9, 4), 16 * 9 * 4 * 7),
    "conv2d in groups": (layers.Conv2D(6, 3, groups=2), (5, 5, 4), 9 * 9 * 2 * 6),
    "conv2d dilated": (layers.Conv2D(6, 3, dilation_rate=2), (7, 7, 4), 9 * 9 * 4 * 6),
    "conv3d": (layers.Conv3D(2, 2), (3, 3, 3, 4), 8 * 8 * 4 * 2),
    "transposed conv": (layers.Conv2DTranspose(7, 3, strides=2), (5, 5, 4), 25 * 9 * 4 * 7),
    "depthwise conv": (
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        (5, 5, 4),
        9 * 9 * 4 * 2,
    ),
    "separable conv": (
        layers.SeparableConv2D(7, 3, strides=2, padding="same", depth_multiplier=2),
        (6, 6, 4),
        9 * (9 * 4 * 2 + 8 * 7),
    ),
    "einsum dense": (
        layers.EinsumDense("abc,cde->abde", output_shape=(None, 6, 7)),
        (4, 5),
        4 * 5 * 6 * 7,
    ),
    "einsum dense with dots": (
        layers.EinsumDense("...x,xy->...y", output_shape=7),
        (4, 3, 5),
        4 * 3 * 5 * 7,
    ),
    "what follows an open size of einsum dense": (
        lambda x: layers.Dense(3)(
            layers.EinsumDense("abc,cd->abd", output_shape=(None, 6))(x)
        ),
        (4, 5),
        4 * 5 * 6 + 4 * 6 * 3,
    ),
    "simple rnn": (layers.SimpleRNN(6), (9, 4), 9 * 6 * (4 + 6)),
    "lstm": (layers.LSTM(6), (9, 4), 9 * 4 * 6 * (4 + 6)),
    "lstm with sequences and states": (
        layers.LSTM(6, return_sequences=True),
        (9, 4),
        9 * 4 * 6 * (4 + 6),
    ),
    "gru": (layers.GRU(6), (9, 4), 9 * 3 * 6 * (4 + 6)),
    "bidirectional": (layers.Bidirectional(layers.GRU(6)), (9, 4), 2 * 9 * 3 * 6 * 10),
    "stacked cells": (
        layers.RNN([layers.LSTMCell(6), layers.GRUCell(5)]),
        (9, 4),
        9 * (4 * 6 * 10 + 3 * 5 * 11),
    ),
    "conv lstm": (
        layers.ConvLSTM2D(6, 3, padding="same"),
        (5, 4, 4, 2),
        5 * 16 * 9 * (2 + 6) * 24,
    ),
    "time distributed": (
        layers.TimeDistributed(layers.Conv2D(6, 3)),
        (5, 4, 4, 2),
        5 * 4 * 9 * 2 * 6,
    ),
    "spectral normalisation": (
        layers.SpectralNormalization(layers.Dense(7)),
        (5,),
        5 * 7,
    ),
    "exit branch": (
        ExitBranch(3, layers=[layers.Conv2D(4, 3), layers.MaxPooling2D()]),
        (6, 6, 2),
        16 * 9 * 2 * 4 + 16 * 3,
    ),
    "matrix product": (lambda x: keras.ops.matmul(x, np.ones((5, 7))), (4, 5), 4 * 5 * 7),
    "einsum": (lambda x: keras.ops.einsum("btc,bsc->bts", x, x), (4, 5), 4 * 4 * 5),
    "convolution as a function": (
        lambda x: keras.ops.conv(x, np.ones((3, 3, 4, 7)), padding="valid"),
        (5, 5, 4),
        9 * 9 * 4 * 7,
    ),
    "depthwise convolution as a function": (
        lambda x: keras.ops.depthwise_conv(x, np.ones((3, 3, 4, 2))),
        (5, 5, 4),
        9 * 9 * 4 * 2,
    ),
    "attention as a function": (
        lambda x: keras.ops.dot_product_attention(x, x, x),
        (4, 2, 5),
        2 * 2 * 4 * 4 * 5,
    ),
    "arithmetic": (lambda x: keras.ops.relu(x * 2 + x)[..., :2], (4, 5), 0),
    "what reshapes, pools, drops and normalises": (
        lambda x: layers.Flatten()(
            layers.Dropout(0.5)(
                layers.LayerNormalization()(layers.MaxPooling2D()(layers.ReLU()(x)))
            )
        ),
        (4, 4, 2),
        0,
    ),
}


@pytest.mark.parametrize("layer, shape, macs", BY_HAND.values(), ids=BY_HAND)
def test_macs_by_hand(layer, shape, macs):
    assert cost.count_macs(model_of(layer, shape=shape)) == macs


def attention(layer, *shapes, **kwargs):
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs, layer(*inputs, **kwargs))


def test_macs_of_multi_head_attention():
    layer = layers.MultiHeadAttention(2, key_dim=3, value_dim=4)
    model = attention(layer, (5, 8), (7, 6))
    projections = 5 * 8 * 6 + 7 * 6 * 6 + 7 * 6 * 8 + 5 * 8 * 8
    assert cost.count_macs(model) == projections + 5 * 7 * 2 * (3 + 4)


def test_arguments_given_by_name_are_told_apart():
    query, value, key = (keras.Input(shape) for shape in ((5, 8), (7, 6), (7, 9)))
    layer = layers.MultiHeadAttention(2, key_dim=3, value_dim=4)
    model = keras.Model([query, value, key], layer(key=key, value=value, query=query))
    projections = 5 * 8 * 6 + 7 * 9 * 6 + 7 * 6 * 8 + 5 * 8 * 8
    assert cost.count_macs(model) == projections + 5 * 7 * 2 * (3 + 4)


def test_macs_of_attention_along_one_axis():
    layer = layers.MultiHeadAttention(1, key_dim=3, attention_axes=2)
    model = attention(layer, (5, 4, 6), (5, 4, 6))
    assert cost.count_macs(model) == 4 * 20 * 6 * 3 + 20 * 4 * (3 + 3)


def test_macs_of_grouped_attention():
    layer = layers.GroupQueryAttention(head_dim=3, num_query_heads=4, num_key_value_heads=2)
    projections = 2 * 5 * 8 * 12 + 2 * 7 * 8 * 6
    model = attention(layer, (5, 8), (7, 8))
    assert cost.count_macs(model) == projections + 2 * 5 * 7 * 12


@pytest.mark.parametrize("layer", [layers.Attention(), layers.AdditiveAttention()])
def test_macs_of_attention_without_heads(layer):
    inputs = [keras.Input((5, 8)), keras.Input((7, 8))]
    model = keras.Model(inputs, layer(inputs))
    assert cost.count_macs(model) == 5 * 7 * (8 + 8)


def test_macs_of_a_dot_product_and_of_a_tied_embedding():
    inputs = [keras.Input((5, 8)), keras.Input((5, 7))]
    model = keras.Model(inputs, layers.Dot(axes=1)(inputs))
    assert cost.count_macs(model) == 8 * 7 * 5
    tied = layers.ReversibleEmbedding(11, 6)
    tokens = keras.Input((4,), dtype="int32")
    model = keras.Model(tokens, tied(tied(tokens), reverse=True))
    assert cost.count_macs(model) == 4 * 6 * 11


# ---- Graphs --------------------------------------------------------------------------
def test_a_shared_layer_counts_at_every_call_with_the_shape_it_has_there():
    conv = layers.Conv2D(4, 3, padding="same")
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, conv(layers.MaxPooling2D()(conv(inputs))))
    assert cost.count_macs(model) == (64 + 16) * 9 * 4 * 4


def test_a_nested_model_is_counted_at_the_size_it_is_called_with():
    inner = model_of(layers.Conv2D(4, 3), shape=(None, None, 2))
    outer = model_of(inner, layers.Flatten(), layers.Dense(3), shape=(6, 6, 2))
    assert cost.count_macs(outer) == 16 * 9 * 2 * 4 + 64 * 3


def test_a_model_inside_a_wrapper_is_counted():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.Dense(2)])
    model = model_of(layers.TimeDistributed(inner), shape=(4, 6))
    assert cost.count_macs(model) == 4 * (6 * 5 + 5 * 2)


def test_counting_leaves_the_graph_as_it_was():
    conv = layers.Conv2D(4, 3, padding="same")
    model = model_of(conv, conv, shape=(8, 8, 4))
    nodes = len(conv._inbound_nodes)
    cost.count_macs(model)
    assert len(conv._inbound_nodes) == nodes


def test_open_sizes_are_given():
    model = model_of(layers.Conv2D(4, 3), shape=(None, None, 2))
    assert cost.count_macs(model, input_shape=(6, 7, 2)) == 20 * 9 * 2 * 4
    with pytest.raises(ValueError, match=r"sizes that are not known.*Pass `input_shape=`"):
        cost.count_macs(model)


def test_open_sizes_of_several_inputs_are_given_by_name_or_in_order():
    left, right = keras.Input((None, 3), name="left"), keras.Input((5,), name="right")
    joined = layers.Add()([layers.LSTM(5)(left), right])
    model = keras.Model([left, right], joined)
    macs = 7 * 4 * 5 * 8
    assert cost.count_macs(model, input_shape={"left": (7, 3)}) == macs
    assert cost.count_macs(model, input_shape=[(7, 3), (5,)]) == macs


@pytest.mark.parametrize(
    "given", [(6, 6), (6, 6, 3), {"image": (6, 6, 2)}, [(6, 6, 2)] * 2]
)
def test_shapes_that_do_not_fit_are_refused(given):
    model = model_of(layers.Conv2D(4, 3), shape=(None, None, 2))
    with pytest.raises(ValueError, match=r"does not fit the model.*\(None, None, 2\)"):
        cost.count_macs(model, input_shape=given)


def test_a_model_without_a_graph_is_refused():
    with pytest.raises(ValueError, match="which has none. Rebuild it from keras.Input"):
        cost.count_macs(keras.Sequential([layers.Dense(2)]))


# ---- Types that Keras does not bring -------------------------------------------------
class Doubled(layers.Dense):
    """Another computation than that of its base class."""

    def call(self, inputs):
        return super().call(inputs) * 2


class Renamed(layers.Dense):
    """The computation of its base class."""


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


def test_a_type_that_is_not_known_is_an_error_that_says_how_to_mend_it(own_registry):
    model = model_of(Doubled(3, name="twice"), shape=(5,))
    with pytest.raises(
        ValueError, match=r"'twice' cannot.*Doubled.*cost.register\(Doubled,"
    ):
        cost.count_macs(model)
    seen = []
    cost.register(Doubled, lambda layer, ins, outs: seen.append((ins, outs)) or 21)
    assert cost.count_macs(model) == 21
    assert seen == [([(1, 5)], [(1, 3)])]


def test_a_subclass_with_the_call_of_its_base_is_known(own_registry):
    assert cost.count_macs(model_of(Renamed(3), shape=(5,))) == 15
    cost.register(Renamed, lambda layer, ins, outs: 1)
    assert cost.count_macs(model_of(Renamed(3), shape=(5,))) == 1


def test_a_counter_of_ones_own_replaces_that_of_keras(own_registry):
    cost.register(layers.Dense, lambda layer, ins, outs: 1)
    assert cost.count_macs(model_of(layers.Dense(3), shape=(5,))) == 1


def test_a_cell_that_is_not_known_is_named(own_registry):
    model = model_of(layers.RNN(Cell()), shape=(4, 3))
    with pytest.raises(ValueError, match=r"nothing is known of its type.*Cell"):
        cost.count_macs(model)
    cost.register(Cell, lambda layer, ins, outs: 2)
    assert cost.count_macs(model) == 4 * 2


def test_rare_functions_that_multiply_are_not_taken_for_free():
    model = model_of(lambda x: keras.ops.outer(x, x), shape=(4,))
    with pytest.raises(ValueError, match="Outer"):
        cost.count_macs(model)


@pytest.mark.parametrize(
    "layer_type, counter, message",
    [
        ("Dense", len, "`layer_type` must be a class"),
        (int, len, "`layer_type` must be a class"),
        (Doubled, 3, "`counter` must be a function"),
    ],
)
def test_what_cannot_be_registered_is_refused(layer_type, counter, message):
    with pytest.raises(TypeError, match=message):
        cost.register(layer_type, counter)


# Base classes, bridges to other frameworks, and transforms of signals and of pixels.
NOT_COUNTED = {
    *("Layer", "Wrapper", "Lambda", "Pipeline", "InputSpec"),
    *("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    *("MelSpectrogram", "STFTSpectrogram", "MaxNumBoundingBoxes"),
    *("ContrastLimitedAdaptiveHistogramEqualization", "Equalization", "Solarization"),
}


def test_every_layer_of_keras_is_counted_or_known_not_to_be():
    found = [getattr(layers, name) for name in dir(layers)]
    names = {value.__name__ for value in found if inspect.isclass(value)}
    assert names - set(registry.LAYERS) == NOT_COUNTED


# ---- Published figures, and TensorFlow's own count -----------------------------------
@pytest.mark.parametrize(
    "name, low, high",
    [
        ("ResNet50", 3.8e9, 3.9e9),
        ("MobileNetV2", 0.295e9, 0.305e9),
        ("DenseNet121", 2.8e9, 2.9e9),
    ],
)
def test_macs_of_known_networks(name, low, high):
    model = getattr(keras.applications, name)(weights=None)
    assert low <= cost.count_macs(model) <= high


def dense_transformer():
    """A block of attention in plain products, which TensorFlow's profiler can count."""
    inputs = keras.Input((12, 16))
    query, key = layers.Dense(16)(inputs), layers.Dense(16)(inputs)
    weights = layers.Softmax()(layers.Dot(axes=2)([query, key]))
    x = layers.Add()([layers.Dot(axes=(2, 1))([weights, inputs]), inputs])
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def application(name):
    return getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3))


def grouped():
    """TensorFlow runs convolutions in groups where its profiler does not look."""
    inputs = keras.Input((8, 8, 6))
    x = layers.Conv2D(9, 3, groups=3)(layers.Conv2D(6, 3, padding="same")(inputs))
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))


@pytest.mark.parametrize("build", [networks.b_lenet, dense_transformer, grouped])
def test_tensorflow_counts_the_same(build):
    model = build()
    counted = cost.count_macs(model)
    assert counted == macs_by_tensorflow(model) + macs_in_groups(model)
    assert (macs_in_groups(model) > 0) == (build is grouped)


# The networks of `keras.applications` are in test_applications.
def test_tensorflow_counts_the_same_of_a_network_of_keras():
    model = application("MobileNetV2")
    assert cost.count_macs(model) == macs_by_tensorflow(model)


# ---- Stages --------------------------------------------------------------------------
def residual_backbone():
    """A join over a skip, so that an exit inside the block carries two tensors."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="inside")(x)
    y = layers.Conv2D(4, 3, padding="same", name="second")(y)
    x = layers.Add(name="join")([x, y])
    x = layers.Conv2D(6, 3, strides=2, name="after")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


def test_the_published_cost_of_b_lenet():
    first, last = cost.stage_costs(networks.b_lenet())
    assert (first.exit_name, last.exit_name) == ("exit_1", "exit_2")
    assert (first.trunk_macs, first.head_macs) == (112_500, 107_650)
    assert last.trunk_macs_to_leave == 1_140_070 and last.head_macs == 0
    assert first.macs_to_leave / last.trunk_macs_to_leave == pytest.approx(0.193, abs=5e-4)
    assert last.macs_to_leave == 1_140_070 + 107_650
    assert (first.trunk_params, first.head_params) == (130, 6_870)
    assert first.trunk_params + last.trunk_params == 67_824
    assert first.live == ("relu1",) and first.bytes_carried == 15 * 15 * 5 * 4
    assert last.live == () and last.bytes_carried == 0


def test_stages_cost_together_what_the_model_costs():
    backbone = residual_backbone()
    whole = cost.count_macs(backbone)
    heads = [ExitBranch(5, layers=[layers.Conv2D(2, 3)]), ExitBranch(5)]
    model = BranchyModel(backbone, dict(zip(("inside", "join"), heads, strict=True)))
    rows = cost.stage_costs(model)
    assert sum(row.trunk_macs for row in rows) == whole
    assert rows[-1].trunk_macs_to_leave == whole
    assert rows[0].head_macs == 36 * 9 * 4 * 2 + 72 * 5
    assert rows[-1].macs_to_leave == cost.count_macs(model)
    params = sum(row.trunk_params + row.head_params for row in rows)
    assert params == model.count_params()
    assert rows[0].live == ("stem", "inside")
    assert rows[0].bytes_carried == 2 * 8 * 8 * 4 * 4


def test_bytes_follow_the_dtype():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = BranchyModel(residual_backbone(), {"join": ExitBranch(5)})
    finally:
        keras.config.set_dtype_policy("float32")
    assert cost.stage_costs(model)[0].bytes_carried == 8 * 8 * 4 * 2


def test_a_mask_that_crosses_a_cut_is_carried_too():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 4, mask_zero=True, name="embedding")(tokens)
    x = layers.LSTM(4, return_sequences=True, name="first")(x)
    x = layers.LSTM(4)(x)
    backbone = keras.Model(tokens, layers.Dense(3, activation="softmax")(x))
    whole = cost.count_macs(backbone)
    rows = cost.stage_costs(BranchyModel(backbone, {"first": ExitBranch(3)}))
    assert rows[0].bytes_carried == 6 * 4 * 4 + 6  # features, and a byte per step
    assert rows[-1].trunk_macs_to_leave == whole == 2 * 6 * 4 * 4 * 8 + 12


def test_open_sizes_go_through_the_stages():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, padding="same")(x))
    backbone = keras.Model(inputs, layers.Dense(5, activation="softmax")(x))
    head = ExitBranch(5, layers=[layers.GlobalAveragePooling2D()])
    model = BranchyModel(backbone, {"stem": head})
    with pytest.raises(ValueError, match="Pass `input_shape=`"):
        cost.stage_costs(model)
    first, last = cost.stage_costs(model, input_shape=(10, 10, 3))
    assert (first.trunk_macs, first.head_macs) == (100 * 9 * 3 * 4, 4 * 5)
    assert last.trunk_macs == 100 * 9 * 4 * 4 + 4 * 5
    assert first.bytes_carried == 100 * 4 * 4


def test_unknown_bytes_ask_for_the_shape():
    inputs = keras.Input((None, 4))
    x = layers.Masking(name="seen")(inputs)
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(3)(x)))
    with pytest.raises(ValueError, match=r"The size of .* is not known.*input_shape="):
        spec = cost.calls.input_specs(model)
        cost.calls.bytes_of(next(iter(spec.values())))


@pytest.mark.parametrize("heads", [True, False])
def test_expected_macs_are_the_mean_over_samples(rng, heads):
    branches = {"stem": ExitBranch(5), "join": ExitBranch(5)}
    rows = cost.stage_costs(BranchyModel(residual_backbone(), branches))
    exits = rng.integers(0, 3, 1000)
    paid = 0
    for leaves in exits:
        for row in rows[: leaves + 1]:
            paid += row.trunk_macs + (row.head_macs if heads else 0)
    shares = np.bincount(exits, minlength=3) / 1000
    assert cost.expected_macs(rows, shares, heads=heads) == pytest.approx(paid / 1000)


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.6], [1.5, -0.5]])
def test_shares_that_are_no_distribution_are_refused(shares):
    rows = cost.stage_costs(networks.b_lenet())
    with pytest.raises(ValueError, match="2 numbers of at least 0 that add up to 1"):
        cost.expected_macs(rows, shares)


# ---- Where exits could go ------------------------------------------------------------
def attending_backbone():
    """Attention takes the mask off the tensor: no edge of the graph shows that."""
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 4, mask_zero=True, name="embedding")(tokens)
    x = layers.Dense(4, name="first")(x)
    x = layers.MultiHeadAttention(2, 2, name="attention")(x, x)
    x = layers.Dense(4, name="second")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(tokens, layers.Dense(5, activation="softmax")(x))


@pytest.mark.parametrize(
    "build, taps",
    [
        (residual_backbone, {"stem", "inside", "join", "after"}),
        (attending_backbone, {"first", "attention", "second"}),
    ],
)
def test_every_place_is_a_tap_and_costs_what_the_cut_model_costs(build, taps):
    places = cost.suggest_exits(build(), places=None)
    assert taps <= {place.tap for place in places}
    for place in places:
        model = BranchyModel(build(), {place.tap: ExitBranch(5)})
        first, last = cost.stage_costs(model)
        assert place.macs == first.trunk_macs
        assert place.share == first.trunk_macs / last.trunk_macs_to_leave
        assert place.live_tensors == len(first.live)
        assert place.bytes_carried == first.bytes_carried
        assert (None, *place.shape) == tuple(
            model.stages()[0].model.output[place.tap].shape
        )


@pytest.mark.parametrize("name", ["ResNet50", "DenseNet121"])
def test_places_are_spread_over_the_cost_and_between_blocks(name):
    backbone = application(name)
    places = cost.suggest_exits(backbone, places=10)
    marks = [int(place.share * 10) for place in places]
    assert marks == sorted(set(marks)) and 7 <= len(marks) <= 10
    assert all(place.live_tensors == 1 and place.share <= 0.95 for place in places)
    branches = {place.tap: ExitBranch(1000) for place in places}
    assert len(BranchyModel(backbone, branches).exit_names) == len(places) + 1


def test_one_tensor_is_better_to_carry_on_than_two_smaller_ones():
    inputs = keras.Input((8, 8, 1))
    narrow = [layers.Conv2D(1, 1, name=f"narrow_{x}")(inputs) for x in "ab"]
    wide = [layers.Conv2D(8, 1)(x) for x in narrow]
    x = layers.Flatten(name="joined")(layers.Add()(wide))
    backbone = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    every = {place.tap: place for place in cost.suggest_exits(backbone, places=None)}
    assert every["narrow_a"].bytes_carried == 2 * 64 * 4  # the image is read once more
    assert every["joined"].bytes_carried == 512 * 4
    assert [place.tap for place in cost.suggest_exits(backbone, places=1)] == ["joined"]


def test_places_inside_a_nested_model_and_of_shared_calls_have_addresses():
    conv = layers.Conv2D(3, 3, padding="same", name="conv")
    inner = model_of(layers.Conv2D(3, 3, name="deep"), shape=(8, 8, 3))
    inner.name = "inner"
    outer = model_of(
        *(conv, conv, inner, layers.Flatten(), layers.Dense(4, activation="softmax")),
        shape=(8, 8, 3),
    )
    taps = [place.tap for place in cost.suggest_exits(outer, places=None)]
    assert taps[:3] == ["conv:0", "conv:1", "inner/deep"]
    BranchyModel(outer, {tap: ExitBranch(4) for tap in taps[:3]})


def test_a_model_with_exits_is_no_backbone():
    with pytest.raises(ValueError, match="one output, its class scores.*2 outputs"):
        cost.suggest_exits(networks.b_lenet())


# ---- Time ----------------------------------------------------------------------------
class Slow(layers.Layer):
    """Waits while it runs."""

    def call(self, inputs):
        import tensorflow as tf

        def wait(x):
            time.sleep(0.02)
            return x

        outputs = tf.numpy_function(wait, [inputs], inputs.dtype)
        outputs.set_shape(inputs.shape)
        return outputs

    def compute_output_shape(self, input_shape):
        return input_shape


def test_profile_measures_each_stage(rng):
    inputs = keras.Input((16,))
    x = layers.Dense(8, name="quick")(inputs)
    outputs = layers.Dense(3, activation="softmax")(Slow()(x))
    model = BranchyModel(keras.Model(inputs, outputs), {"quick": ExitBranch(3)})
    quick, slow = cost.profile(model, batch_size=3, repeats=7)
    assert (quick.exit_name, slow.exit_name) == ("exit_1", "exit_2")
    assert 0 < quick.milliseconds < 15 and 20 <= slow.milliseconds < 200
    for row in (quick, slow):
        assert row.batch_size == 3 and row.lower <= row.milliseconds <= row.upper


def test_profile_takes_tokens_and_masks():
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(20, 4, mask_zero=True)(tokens)
    x = layers.LSTM(4, return_sequences=True, name="first")(x)
    backbone = keras.Model(tokens, layers.Dense(3, activation="softmax")(layers.LSTM(4)(x)))
    model = BranchyModel(backbone, {"first": ExitBranch(3)})
    rows = cost.profile(model, batch_size=2, repeats=1, input_shape=(6,))
    assert all(row.milliseconds > 0 for row in rows)
    with pytest.raises(ValueError, match="Pass `input_shape=`"):
        cost.profile(model, repeats=1)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"repeats": 0}])
def test_profile_needs_something_to_measure(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        cost.profile(networks.b_lenet(), **arguments)


def test_profile_needs_tensorflow(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="Keras backend 'jax'"):
        cost.profile(networks.b_lenet())
