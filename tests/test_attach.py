# SPDX-License-Identifier: Apache-2.0
"""Where exits can be attached, and what is said where they cannot."""

import keras
import numpy as np
import pytest
from cases import exits, nested, residual, shared, two_inputs
from keras import layers

from keras_branchy import BranchyModel, ExitBranch


def small(ending=None, name="small", units=4, **conv):
    """Convolution, pooling and an ending, called on [B, 3]."""
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(3, 3, name="conv", **conv)(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = (ending or layers.Dense(units, activation="softmax", name="scores"))(x)
    return keras.Model(inputs, x, name=name)


def chain(length):
    inputs = x = keras.Input((4,))
    for index in range(length):
        x = layers.Dense(4, name=f"layer_{index}")(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    "backbone, message",
    [
        ("small", r"`backbone` must be a Keras model\. Received: 'small' of type str"),
        (Subclassed(), r"'subclassed', Subclassed, which is subclassed or not built"),
        (
            keras.Sequential([layers.Dense(4)], name="unbuilt"),
            r"'unbuilt', Sequential.*Build it first: put keras.Input",
        ),
        (small(layers.Dense(4, "sigmoid", name="tags")), r"ends in a sigmoid, 'tags'"),
        (small(layers.Activation("sigmoid")), r"ends in a sigmoid"),
        (small(units=1), r"an output of one unit, shape \(None, 1\).*Dense\(2"),
        (small(layers.RepeatVector(5)), r"not for each place of a sequence"),
        (
            keras.Model(i := keras.Input((8, 8, 2)), layers.Conv2D(4, 1, name="conv")(i)),
            r"not for each place of a spatial map: end the backbone with a pooling",
        ),
        (small(layers.ReLU()), r"ends in 're_lu.*from_logits=True"),
    ],
)
def test_backbones_that_are_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        BranchyModel(backbone, exits("conv"))


def test_a_backbone_with_several_outputs_is_refused():
    one = small()
    two = keras.Model(one.input, [one.output, one.get_layer("pool").output], name="two")
    message = r"'two' with 2 outputs \['[a-z_0-9]*', 'pool'\]. Pass keras.Model\(backbone"
    with pytest.raises(ValueError, match=message):
        BranchyModel(two, exits("conv"))


@pytest.mark.parametrize("given", [None, {}, [], ["conv"], "conv"])
def test_exits_must_be_a_dict_with_an_exit(given):
    with pytest.raises(ValueError, match=r"`exits` must be a dict with at least one exit"):
        BranchyModel(small(), given)


def test_an_exit_must_be_an_exit_branch():
    with pytest.raises(ValueError, match=r"Received: 10 at tap 'conv'. Pass ExitBranch"):
        BranchyModel(small(), {"conv": 10})


def test_one_branch_at_two_taps():
    branch = ExitBranch(4)
    with pytest.raises(ValueError, match=r"one ExitBranch at several of the taps \['conv'"):
        BranchyModel(small(), {"conv": branch, "pool": branch})


def test_a_branch_of_another_model():
    branch = ExitBranch(4)
    BranchyModel(small(), {"conv": branch})
    with pytest.raises(ValueError, match=r"\['conv'\] is already part of a model"):
        BranchyModel(small(), {"conv": branch})


def test_an_unknown_tap_names_the_closest():
    with pytest.raises(ValueError, match=r"no layer 'convv'.*closest names are: 'conv'"):
        BranchyModel(small(), exits("convv"))


def test_a_tap_inside_a_nested_model_needs_its_address():
    with pytest.raises(ValueError, match=r"no layer 'second'.*'inner/second'"):
        BranchyModel(nested(), exits("second"))


def test_a_layer_that_is_called_twice_needs_the_call():
    with pytest.raises(ValueError, match=r"Name the call: one of \['block:0', 'block:1'"):
        BranchyModel(shared(), exits("block"))


def test_a_layer_with_several_outputs():
    inputs = keras.Input((7, 3))
    x, *_ = layers.LSTM(5, return_state=True, name="lstm")(inputs)
    backbone = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    with pytest.raises(ValueError, match=r"'lstm' has 3 outputs.*keras.layers.Identity"):
        BranchyModel(backbone, exits("lstm"))


def test_two_names_of_one_place():
    inner_in = keras.Input((8, 8, 2))
    inner = keras.Model(inner_in, layers.Conv2D(3, 3, name="end")(inner_in), name="inner")
    inputs = keras.Input((8, 8, 2))
    x = layers.Flatten()(inner(inputs))
    backbone = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    with pytest.raises(ValueError, match=r"'inner/end' and 'inner', which are one tensor"):
        BranchyModel(backbone, exits("inner/end", "inner"))


@pytest.mark.parametrize("ending", ["softmax", None])
def test_an_exit_at_the_last_layer(ending):
    backbone = small(layers.Dense(4, activation=ending, name="scores"))
    with pytest.raises(ValueError, match=r"An exit at the last layer saves nothing"):
        BranchyModel(backbone, exits("scores"))


def test_exits_out_of_order():
    with pytest.raises(
        ValueError, match=r"order of the graph.*Expected: \['stem', 'join'\]"
    ):
        BranchyModel(residual(), exits("join", "stem"))


def test_an_exit_at_an_input_leaves_the_trunk_alone(rng):
    model = BranchyModel(two_inputs(), exits("image", "conv"))
    first, second, _ = model.stages()
    assert (first.input_names, first.output_names) == (["image"], [])
    assert first.live == ("image", "vector") and second.input_names == ["image"]
    images = rng.normal(size=(5, 8, 8, 2)).astype(np.float32)
    given = model.predict_on_batch({"image": images, "vector": np.ones((5, 3))})
    # The default head: 2x2 windows of 8x8x2, then the logits.
    pooled = images.reshape(5, 4, 2, 4, 2, 2).max((2, 4)).reshape(5, 32)
    kernel, bias = model.branches[0].get_weights()
    scores = np.exp(pooled.astype(np.float64) @ kernel + bias)
    np.testing.assert_allclose(
        given["exit_1"], scores / scores.sum(-1, keepdims=True), rtol=1e-5
    )


def test_an_exit_at_an_input_comes_first():
    with pytest.raises(ValueError, match=r"Expected: \['image', 'conv'\]"):
        BranchyModel(two_inputs(), exits("conv", "image"))


def test_a_layer_with_the_name_of_an_exit():
    backbone = small(layers.Dense(4, activation="softmax", name="exit_1"))
    with pytest.raises(ValueError, match=r"layers or inputs named \['exit_1'\]. Rename"):
        BranchyModel(backbone, exits("conv"))


def test_an_input_with_the_name_of_an_exit_or_of_the_logits():
    for name, message in (
        ("exit_2", r"inputs named \['exit_2'\]. Rename"),
        ("logits", r"under the name 'logits'.*Rename the input"),
    ):
        inputs = keras.Input((4,), name=name)
        x = layers.Dense(4, name="first")(inputs)
        backbone = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
        with pytest.raises(ValueError, match=message):
            BranchyModel(backbone, exits("first"))


class Halves(keras.Model):
    """Functional, but with a `call` that does more than its graph."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs / 2, training=training)


def test_a_functional_model_with_a_call_of_its_own():
    one = small()
    backbone = Halves(one.input, one.output, name="halves")
    with pytest.raises(ValueError, match=r"'halves' of type Halves, which has a `call`"):
        BranchyModel(backbone, exits("conv"))


def test_scores_of_every_step_folded_into_the_batch():
    inputs = keras.Input((7, 3))
    x = keras.ops.reshape(layers.Dense(5, name="steps")(inputs), (-1, 5))
    backbone = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    with pytest.raises(ValueError, match=r"one row of class scores per sample.*first axis"):
        BranchyModel(backbone, exits("steps"))


def test_unequal_numbers_of_classes():
    with pytest.raises(
        ValueError, match=r"4 classes and exits with other units, {'conv': 5}"
    ):
        BranchyModel(small(), {"conv": ExitBranch(5)})


def test_unknown_keywords():
    with pytest.raises(TypeError, match=r"does not know the arguments \['loss_wieghts'\]"):
        BranchyModel(small(), exits("conv"), loss_wieghts=3)


def test_positional_options():
    with pytest.raises(TypeError, match=r"others? arguments are given by name"):
        BranchyModel(small(), exits("conv"), [0.5])


@pytest.mark.parametrize("ending, given", [("softmax", True), (None, False)])
def test_from_logits_against_what_is_seen(ending, given):
    backbone = small(layers.Dense(4, activation=ending))
    with pytest.raises(ValueError, match=rf"Received: from_logits={given}. Leave"):
        BranchyModel(backbone, exits("conv"), from_logits=given)


def test_an_unknown_ending_as_logits_or_as_probabilities(rng):
    inputs = keras.Input((8, 8, 2))
    x = layers.Flatten()(layers.Conv2D(3, 3, name="conv")(inputs))
    both = [layers.Dense(4, activation="softmax")(x) for _ in range(2)]
    backbone = keras.Model(inputs, layers.Average()(both))
    x = 3 * rng.normal(size=(16, 8, 8, 2)).astype(np.float32)
    given = backbone.predict(x, verbose=0)
    for from_logits in (True, False):
        model = BranchyModel(backbone, exits("conv"), from_logits=from_logits)
        got = model.predict(x, verbose=0)["exit_2"]
        want = (
            np.exp(given) / np.exp(given).sum(-1, keepdims=True) if from_logits else given
        )
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
        model.thresholds = [None]
        answer = model.predict_early(x, verbose=0)
        np.testing.assert_allclose(answer.probabilities, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "ending",
    [
        lambda x: layers.Dense(4, activation="softmax")(x),
        lambda x: layers.Softmax()(layers.Dense(4)(x)),
        lambda x: layers.Activation("softmax", dtype="float32")(layers.Dense(4)(x)),
        lambda x: keras.ops.softmax(layers.Dense(4)(x)),
        lambda x: layers.EinsumDense("ab,bc->ac", 4, activation="softmax")(x),
        lambda x: layers.Activation("linear")(layers.Dense(4, activation="softmax")(x)),
        lambda x: layers.Identity()(layers.Dense(4)(x)),
    ],
)
def test_endings_that_are_recognised(ending, rng):
    inputs = keras.Input((8, 8, 2))
    x = layers.Flatten()(layers.Conv2D(3, 3, name="conv")(inputs))
    backbone = keras.Model(inputs, ending(x))
    model = BranchyModel(backbone, exits("conv"))
    x = 40 * rng.normal(size=(32, 8, 8, 2)).astype(np.float32)
    raw = backbone.predict(x, verbose=0)
    is_distribution = np.allclose(raw.sum(-1), 1, atol=1e-4)
    want = raw if is_distribution else np.exp(raw - raw.max(-1, keepdims=True))
    want = want / want.sum(-1, keepdims=True)
    np.testing.assert_allclose(model.predict(x, verbose=0)["exit_2"], want, atol=1e-6)
    model.thresholds = [None]
    answer = model.predict_early(x, verbose=0)
    np.testing.assert_allclose(answer.probabilities, want, atol=1e-6)


def test_a_peeled_softmax_keeps_near_ties(rng):
    """log(p) of a saturated softmax ties classes that its logits keep apart."""
    scores = layers.Dense(3, activation="softmax", name="scores")
    backbone = small(scores)
    scores.set_weights([np.zeros((3, 3)), np.array([200.0, 1.0, 0.5])])
    model = BranchyModel(backbone, {"conv": ExitBranch(3)})
    tensors = {"conv": np.zeros((1, 6, 6, 3), np.float32)}
    logits = model.stages()[1](tensors)["logits"].numpy()
    np.testing.assert_array_equal(logits, [[200.0, 1.0, 0.5]])
    assert backbone.get_layer("scores").activation is keras.activations.softmax


def test_more_than_nine_exits_keep_their_order():
    backbone = chain(12)
    model = BranchyModel(backbone, exits(*[f"layer_{index}" for index in range(11)]))
    assert model.exit_names == [f"exit_{index:02d}" for index in range(1, 13)]
    model.compile("sgd", "categorical_crossentropy", loss_weights=list(range(12)))
    x = np.ones((4, 4), np.float32)
    losses = model.evaluate(x, np.eye(4), return_dict=True, verbose=0)
    weighted = sum(w * losses[f"{name}_loss"] for w, name in enumerate(model.exit_names))
    assert losses["loss"] == pytest.approx(weighted, rel=1e-5)


def test_inlining_shares_layers_and_renames_only_where_names_meet():
    backbone = nested()
    inner = backbone.get_layer("inner")
    model = BranchyModel(backbone, exits("first", "inner/first"))
    names = [layer.name for layer in model.layers]
    assert "inner" not in names
    assert [layer.name for layer in inner.layers[1:]] == [
        "inner_first",
        inner.layers[2].name,
        "second",
    ]
    assert model.get_layer("second") is inner.get_layer("second")
    again = BranchyModel(backbone, exits("first", "inner/inner_first"))
    assert again.get_layer("inner_first") is inner.get_layer("inner_first")
