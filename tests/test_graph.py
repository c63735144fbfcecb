# SPDX-License-Identifier: Apache-2.0
"""Every kind of graph in `graphs`, cut at its taps, against the plain model."""

import keras
import numpy as np
import pytest
from cases import exits
from graphs import KINDS, positioned
from keras import layers

from keras_branchy import BranchyModel
from keras_branchy.graph import inline
from keras_branchy.scoring import all_logits

SAMPLES = 32
BATCH = {"batch_size": 8, "verbose": 0}

pytestmark = pytest.mark.filterwarnings("ignore:.*does not support masking")


def softmax(logits):
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def spread(model, rng):
    """Wide weights, so that the scores of an untrained model differ."""
    for weight in model.trainable_weights:
        fan_in = max(np.prod(weight.shape[:-1]), 1)
        weight.assign(rng.normal(0, 1.2 / np.sqrt(fan_in), weight.shape))


@pytest.mark.parametrize("name", list(KINDS))
def test_a_kind_of_graph(name, rng):
    make, taps, samples = KINDS[name]
    backbone, x = make(), samples(SAMPLES, rng)
    model = BranchyModel(backbone, exits(*taps))
    spread(model, rng)
    plain, outputs = backbone.predict(x, **BATCH), model.predict(x, **BATCH)
    # Another graph around it, so TensorFlow may fuse and round otherwise.
    last = outputs[model.exit_names[-1]]
    np.testing.assert_allclose(last, plain, rtol=2e-5, atol=1e-6)
    held = {id(v) for stage in model.stages() for v in stage.model.variables}
    assert {id(variable) for variable in backbone.variables} <= held
    check_stages(model, x, np.stack([outputs[name] for name in model.exit_names]))


def check_stages(model, x, outputs):
    logits, _ = all_logits(model, x, **BATCH)
    for values, output in zip(logits, outputs, strict=True):
        np.testing.assert_allclose(softmax(values), output, rtol=1e-4, atol=2e-6)
    entropy = -(outputs * np.log(np.maximum(outputs, 1e-30))).sum(-1)
    middle = np.sort(entropy)[:, SAMPLES // 2 - 1 : SAMPLES // 2 + 1].mean(-1)
    model.thresholds = middle[:-1].tolist()
    leaves = np.vstack([entropy[:-1] < middle[:-1, None], np.ones((1, SAMPLES), bool)])
    answer = model.predict_early(x, **BATCH)
    np.testing.assert_array_equal(answer.exits, leaves.argmax(0))
    taken = outputs[answer.exits, np.arange(SAMPLES)]
    np.testing.assert_allclose(answer.probabilities, taken, rtol=1e-4, atol=2e-6)


def test_what_has_no_batch_is_made_again_and_not_carried():
    for leading in ((), (1,)):
        model = BranchyModel(positioned(leading), exits("d1", "d2"))
        assert [stage.output_names for stage in model.stages()] == [["d1"], ["d2"], []]
        # The positions are read off the shape of `d1`, which therefore stays.
        assert model.stages()[1].live == ("d1", "d2")


def test_a_tap_without_a_batch_is_refused():
    backbone = positioned((1,))
    (name,) = [
        layer.name for layer in backbone.layers if layer.name.startswith("positions")
    ]
    with pytest.raises(ValueError, match=rf"tap '{name}', of shape \(1, 7, 5\).*joins it"):
        BranchyModel(backbone, exits(name))


def test_lengths_that_do_not_suit_the_graph_are_no_error():
    """A free axis is tried with one length; a graph for others is cut all the same."""
    inputs = keras.Input((None, 3))
    x = layers.Reshape((7, 3))(inputs)
    x = layers.Dense(5, name="d")(keras.ops.tanh(x))
    model = BranchyModel(
        keras.Model(inputs, layers.Dense(4, "softmax")(layers.Flatten()(x))), exits("d")
    )
    assert [stage.output_names for stage in model.stages()] == [["d"], []]


def test_addresses():
    make, *_ = KINDS["nested_called_twice"]
    calls = list(inline(make()).calls)
    assert [name for name in calls if "inner" in name] == [
        *("inner:0/a", "inner:0/" + calls[2].split("/")[1], "inner:0"),
        *("inner:1/a", "inner:1/" + calls[2].split("/")[1], "inner:1"),
    ]
