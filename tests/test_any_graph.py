# SPDX-License-Identifier: Apache-2.0
"""Masks across cuts, transfer learning, and other calls of the layers of a model."""

import keras
import numpy as np
import pytest
from cases import attention, exits, images
from graphs import conv, rows, scores, tanh, tokens
from keras import layers
from masked_graphs import MASKED, Hides, Shows, hidden_mask
from test_graph import BATCH, SAMPLES, check_stages, softmax, spread

from keras_branchy import BranchyModel
from keras_branchy.scoring import all_logits

pytestmark = pytest.mark.filterwarnings("ignore:.*mask attached to it")


def with_exits(make, taps, rng):
    backbone = make()
    model = BranchyModel(backbone, exits(*taps))
    spread(model, rng)
    return backbone, model


@pytest.mark.parametrize("name", list(MASKED))
def test_masks_across_cuts(name, rng):
    make, taps, samples = MASKED[name]
    backbone, model = with_exits(make, taps, rng)
    x = samples(SAMPLES, rng)
    outputs = model.predict(x, **BATCH)
    last = outputs[model.exit_names[-1]]
    np.testing.assert_allclose(last, backbone.predict(x, **BATCH), rtol=2e-5, atol=1e-6)
    check_stages(model, x, np.stack([outputs[name] for name in model.exit_names]))


def test_a_mask_that_the_graph_does_not_show_is_refused():
    for taps in (("words",), ("lstm",), ("words", "lstm")):
        model = BranchyModel(hidden_mask(Hides), exits(*taps))
        with pytest.raises(ValueError, match=r"'words' \(Hides\).*let its `compute_mask`"):
            model.stages()
    # All that reads the mask is in the first stage.
    assert len(BranchyModel(hidden_mask(Hides), exits("pool")).stages()) == 2
    shown = BranchyModel(hidden_mask(Shows), exits("words")).stages()
    assert shown[0].output_names == ["words", "words_mask"]


LOADED = {"attention": (attention, ("lstm", "norm"), tokens)} | {
    name: MASKED[name] for name in ("merged_masks", "mask_that_leaves_a_nested_model")
}


@pytest.mark.parametrize("name", list(LOADED))
def test_a_loaded_model_is_cut_beside_what_is_named_like_its_parts(name, rng, tmp_path):
    """A new process counts names from 0; a loaded model brings its own."""
    make, taps, samples = LOADED[name]
    make().save(tmp_path / "backbone.keras")
    keras.utils.clear_session()
    backbone = keras.models.load_model(tmp_path / "backbone.keras")
    model = BranchyModel(backbone, exits(*taps))
    spread(model, rng)
    x = samples(SAMPLES, rng)
    outputs = np.stack(list(model.predict(x, **BATCH).values()))
    model.save(tmp_path / "model.keras")
    keras.utils.clear_session()
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (loaded, model):
        check_stages(each, x, outputs)


def transfer(trainable):
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(conv("conv")(inputs))
    base = keras.Model(inputs, layers.Add()([x, inputs]), name="base")
    base.trainable = trainable
    inputs = keras.Input((8, 8, 2))
    x = base(layers.Conv2D(3, 1, name="adapt")(inputs), training=False)
    return keras.Model(inputs, scores(x))


def moved(model, variables, x, y):
    before = [variable.numpy() for variable in variables]
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=1, verbose=0)
    return [
        index
        for index, value in enumerate(before)
        if np.any(variables[index].numpy() != value)
    ]


@pytest.mark.parametrize("trainable", [False, True])
def test_transfer_learning_moves_what_it_moves_without_exits(trainable, rng):
    x, y = images(SAMPLES, rng), rng.integers(0, 4, SAMPLES)
    plain, backbone = transfer(trainable), transfer(trainable)
    model = BranchyModel(backbone, exits("base/conv", "base/norm"))
    model.stages()
    expected = moved(plain, plain.variables, x, y)
    assert moved(model, backbone.variables, x, y) == expected
    paths = " ".join(plain.variables[index].path for index in expected)
    assert "adapt/kernel" in paths
    assert ("conv/kernel" in paths) == ("norm/moving_mean" in paths) == trainable
    outputs = model.predict(x, **BATCH)
    logits, _ = all_logits(model, x, **BATCH)
    for values, output in zip(logits, outputs.values(), strict=True):
        np.testing.assert_allclose(softmax(values), output, rtol=1e-4, atol=1e-6)


def test_calls_of_the_same_layers_in_other_models(rng):
    """`layer.output` is the first call's; the tap is this model's."""
    first, second = tanh("first"), tanh("second")
    second(first(keras.Input((6,))))
    inputs = keras.Input((6,))
    a = first(inputs)
    b = second(a)
    keras.Model(inputs, second(b))
    backbone = keras.Model(inputs, scores(layers.Add()([a, b])))
    model = BranchyModel(backbone, exits("first", "second"))
    spread(model, rng)
    x = rows(SAMPLES, rng)
    outputs = np.stack(list(model.predict(x, **BATCH).values()))
    np.testing.assert_allclose(outputs[-1], backbone.predict(x, **BATCH), atol=1e-6)
    check_stages(model, x, outputs)


def test_a_backbone_can_be_given_exits_twice(rng):
    backbone = transfer(True)
    models = [BranchyModel(backbone, exits(tap)) for tap in ("base/conv", "base/norm")]
    for model in models:
        spread(model, rng)
    x = images(SAMPLES, rng)
    for model in models:
        outputs = np.stack(list(model.predict(x, **BATCH).values()))
        np.testing.assert_allclose(outputs[-1], backbone.predict(x, **BATCH), atol=1e-6)
        check_stages(model, x, outputs)


def test_a_nested_layer_named_like_an_input(rng):
    inputs = keras.Input((8, 8, 2))
    inner = keras.Model(inputs, conv("image")(inputs), name="inner")
    inputs = keras.Input((8, 8, 2), name="image")
    model = BranchyModel(keras.Model(inputs, scores(inner(inputs))), exits("inner/image"))
    assert model.stages()[0].input_names == ["image"]
    assert model.stages()[1].input_names == ["inner_image"]
    x = images(SAMPLES, rng)
    spread(model, rng)
    check_stages(model, x, np.stack(list(model.predict(x, **BATCH).values())))


def test_an_input_that_nothing_reads(rng):
    used, unused = keras.Input((6,), name="used"), keras.Input((7,), name="unused")
    backbone = keras.Model([used, unused], scores(tanh("d")(used)))
    model = BranchyModel(backbone, exits("d"))
    spread(model, rng)
    x = [rows(SAMPLES, rng), tokens(SAMPLES, rng)]
    assert [stage.input_names for stage in model.stages()] == [["used"], ["d"]]
    check_stages(model, x, np.stack(list(model.predict(x, **BATCH).values())))


def test_text_that_is_turned_into_words_inside_the_model(rng):
    """Strings are no numbers: inputs, masks and cuts have to do without zeros."""
    import tensorflow as tf

    words = layers.TextVectorization(output_sequence_length=4, vocabulary=["a", "b", "c"])
    inputs = keras.Input((1,), dtype="string")
    x = layers.Embedding(6, 5, mask_zero=True)(words(inputs))
    x = layers.LSTM(4, return_sequences=True, name="lstm")(x)
    backbone = keras.Model(inputs, scores(layers.LSTM(4, name="last")(x)))
    model = BranchyModel(backbone, exits("lstm"))
    spread(model, rng)
    text = [" ".join(rng.choice(list("abc"), rng.integers(1, 5))) for _ in range(SAMPLES)]
    x = tf.data.Dataset.from_tensor_slices(np.array(text)[:, None]).batch(8)
    outputs = np.stack(list(model.predict(x, verbose=0).values()))
    logits, _ = all_logits(model, x, verbose=0)
    for values, output in zip(logits, outputs, strict=True):
        np.testing.assert_allclose(softmax(values), output, rtol=1e-4, atol=2e-6)
    model.thresholds = [None]
    np.testing.assert_allclose(
        model.predict_early(x, verbose=0).probabilities, outputs[-1], rtol=1e-4
    )
