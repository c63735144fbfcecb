# SPDX-License-Identifier: Apache-2.0
"""Random functional graphs: staged inference is the rule on the outputs of all exits."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_branchy import BranchyModel, ExitBranch
from keras_branchy.graph import inline

CLASSES = 4
SAMPLES = 24
GAP = 1e-4  # a threshold lies at least half of this from every score: 5e-5 is no rounding


class Builder:
    """Draws a graph; `log` tells how, for whoever has to reproduce a failure."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.log = [f"seed {seed}"]
        self.shared = layers.Conv2D(3, 3, padding="same", activation="tanh", name="shared")
        self.nested = self.nested_model()
        self.inputs = [
            keras.Input((6, 6, 3), name=f"in_{k}") for k in range(self.draw(1, 2))
        ]
        self.maps = list(self.inputs)

    def draw(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def pick(self):
        """A feature map, an early one as likely as a late one: long skips."""
        return self.maps[self.draw(0, len(self.maps) - 1)]

    def nested_model(self):
        inputs = keras.Input((6, 6, 3))
        x = layers.Conv2D(3, 3, padding="same", name="inner_conv")(inputs)
        x = layers.Add(name="inner_add")([layers.ReLU(name="inner_relu")(x), inputs])
        return keras.Model(inputs, x, name="nested")

    def grow(self, kind, name):
        places = [self.draw(0, len(self.maps) - 1) for _ in range(2)]
        self.log.append(f"{name} of {places}")
        x, y = (self.maps[place] for place in places)
        if kind == "conv":
            x = layers.Conv2D(3, 3, padding="same", activation="relu", name=name)(x)
        elif kind == "add":
            x = layers.Add(name=name)([x, y])
        elif kind == "concat":
            x = layers.Concatenate(name=name)([x, y, self.maps[-1]])
            x = layers.Conv2D(3, 1, name=f"{name}_squeeze")(x)
        elif kind == "shared":
            x = self.shared(x)
        elif kind == "nested":
            x = self.nested(x)
        else:
            x = keras.ops.multiply(keras.ops.sin(x), 1.5)
        self.maps.append(x)

    def backbone(self):
        kinds = ["conv", "conv", "add", "concat", "shared", "nested", "sine"]
        for count in range(self.draw(4, 12)):
            kind = str(self.rng.choice(kinds))
            self.grow(kind, f"{kind}_{count}")
        tail = [layers.GlobalAveragePooling2D()(x) for x in (self.maps[-1], *self.inputs)]
        tail = layers.Concatenate(name="tail")([*tail, layers.Flatten()(self.pick())])
        scores = layers.Dense(CLASSES, activation="softmax", name="scores")(tail)
        return keras.Model(self.inputs, scores)

    def model(self):
        backbone = self.backbone()
        # Everywhere but at the scores; a nested model's output is its last layer's.
        calls = {id(made[0]): name for name, made in inline(backbone).calls.items()}
        taps = list(dict.fromkeys(calls.values()))[:-1]
        chosen = self.rng.choice(len(taps), min(self.draw(1, 4), len(taps)), replace=False)
        chosen = [taps[place] for place in sorted(chosen)]
        self.log.append(f"taps {chosen}")
        criteria = ["entropy", "max_probability", "margin"]
        model = BranchyModel(
            backbone,
            {
                tap: ExitBranch(CLASSES, criterion=criteria[self.draw(0, 2)])
                for tap in chosen
            },
        )
        for weight in model.trainable_weights:
            fan_in = max(np.prod(weight.shape[:-1]), 1)
            weight.assign(self.rng.normal(0, 1.2 / np.sqrt(fan_in), weight.shape))
        return model

    def samples(self):
        shape = (SAMPLES, 6, 6, 3)
        x = [self.rng.normal(size=shape).astype(np.float32) for _ in self.inputs]
        return x if len(x) > 1 else x[0]

    def threshold(self, scores):
        """In a random one of the gaps between the scores; now and then None."""
        ordered = np.sort(scores)
        ordered = np.concatenate([[ordered[0] - 0.1], ordered, [ordered[-1] + 0.1]])
        gaps = np.flatnonzero(np.diff(ordered) >= GAP)
        place = self.rng.choice(gaps)
        return None if self.rng.random() < 0.1 else float(ordered[place : place + 2].mean())


def score(p, criterion):
    ordered = np.sort(p.astype(np.float64), -1)
    if criterion == "entropy":
        return -(ordered * np.log(np.maximum(ordered, 1e-300))).sum(-1)
    return ordered[:, -1] - (ordered[:, -2] if criterion == "margin" else 0.0)


def by_rule(model, scores):
    """The exit of each sample: the first whose score is on the sure side."""
    exits = np.full(len(scores[0]), len(model.criteria))
    for index in reversed(range(len(model.criteria))):
        threshold = model.thresholds[index]
        if threshold is not None:
            below = scores[index] < threshold
            exits[below if model.criteria[index] == "entropy" else ~below] = index
    return exits


def check(seed):
    """Compares one graph; returns at how many exits samples left."""
    keras.utils.clear_session()
    builder = Builder(seed)
    model = builder.model()
    x = builder.samples()
    predicted = model.predict(x, verbose=0)
    outputs = np.stack([predicted[name] for name in model.exit_names])
    scores = list(map(score, outputs, model.criteria))
    model.thresholds = list(map(builder.threshold, scores))
    log = "; ".join([*builder.log, f"thresholds {model.thresholds}"])
    exits = by_rule(model, scores)
    answer = model.predict_early(x, verbose=0)
    np.testing.assert_array_equal(answer.exits, exits, log)
    taken = outputs[exits, np.arange(SAMPLES)]
    # float32 rounding of another order of operations
    np.testing.assert_allclose(
        answer.probabilities, taken, rtol=1e-4, atol=1e-5, err_msg=log
    )
    top = np.sort(taken, -1)
    clear = top[:, -1] - top[:, -2] > 1e-5  # two classes that tie are either
    np.testing.assert_array_equal(answer.labels[clear], taken.argmax(-1)[clear], log)
    return len(set(exits.tolist())), builder.log


@pytest.mark.parametrize("seed", range(12))
def test_a_random_graph(seed):
    check(seed)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_two_hundred_random_graphs():
    found, logs = zip(*map(check, range(200)), strict=True)
    counts = np.bincount(found)
    print(f"graphs by the number of exits at which samples left: {counts[1:].tolist()}")
    assert (np.array(found) > 1).mean() > 0.5
    drawn = " ".join(line for log in logs for line in log)
    for kind in ("conv", "add", "concat", "shared", "nested", "sine"):
        assert f"{kind}_" in drawn
    taps = [log[-1] for log in logs]
    assert sum("/" in line for line in taps) > 10  # inside a nested model
    assert sum("shared" in line for line in taps) > 10
