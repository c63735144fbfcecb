# SPDX-License-Identifier: Apache-2.0
"""Random functional graphs: staged inference is the rule on the outputs of all exits."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_branchy import BranchyModel, ExitBranch

CLASSES = 4
NEAR = 1e-5  # scores this near a threshold may fall on either side in float32


class Builder:
    """Draws a graph; `log` tells how, for whoever has to reproduce a failure."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.log = [f"seed {seed}"]
        self.count = 0
        self.shared = layers.Conv2D(3, 3, padding="same", activation="tanh", name="shared")
        self.nested = self.nested_model()
        self.inputs = [
            keras.Input((6, 6, 3), name=f"in_{k}") for k in range(self.draw(1, 2))
        ]
        self.maps = list(self.inputs)
        self.taps = []

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

    def grow(self):
        kind = self.rng.choice(["conv", "conv", "add", "concat", "shared", "nested", "op"])
        x, name = self.pick(), f"{kind}_{self.count}"
        self.count += 1
        self.log.append(name)
        if kind == "conv":
            x = layers.Conv2D(3, 3, padding="same", activation="relu", name=name)(x)
        elif kind == "add":
            x = layers.Add(name=name)([x, self.pick()])
        elif kind == "concat":
            x = layers.Concatenate(name=name)([x, self.pick(), self.maps[-1]])
            x = layers.Conv2D(3, 1, name=f"{name}_squeeze")(x)
            name = f"{name}_squeeze"
        elif kind == "shared":
            x, name = self.shared(x), "shared"
        elif kind == "nested":
            x, name = self.nested(x), "nested"
        else:
            x, name = keras.ops.multiply(keras.ops.sin(x), 1.5), None
        self.maps.append(x)
        if name is not None and name not in ("shared", "nested"):
            self.taps.append(name)

    def model(self):
        for _ in range(self.draw(4, 12)):
            self.grow()
        tail = [layers.GlobalAveragePooling2D()(x) for x in (self.maps[-1], *self.inputs)]
        tail = layers.Concatenate(name="tail")([*tail, layers.Flatten()(self.pick())])
        scores = layers.Dense(CLASSES, activation="softmax", name="scores")(tail)
        backbone = keras.Model(self.inputs, scores)
        names = [layer.name for layer in backbone.layers]
        taps = [tap for tap in self.taps if tap in names] or ["tail"]
        chosen = self.rng.choice(len(taps), min(self.draw(1, 4), len(taps)), replace=False)
        return self.attach(backbone, [taps[k] for k in sorted(chosen)])

    def attach(self, backbone, taps):
        criteria = ["entropy", "max_probability", "margin"]
        exits = {
            tap: ExitBranch(CLASSES, criterion=criteria[self.draw(0, 2)]) for tap in taps
        }
        self.log.append(f"taps {taps}")
        model = BranchyModel(backbone, exits)
        for weight in model.trainable_weights:
            fan_in = max(np.prod(weight.shape[:-1]), 1)
            weight.assign(self.rng.normal(0, 1.2 / np.sqrt(fan_in), weight.shape))
        return model

    def samples(self, count):
        x = [self.rng.normal(size=(count, 6, 6, 3)).astype(np.float32) for _ in self.inputs]
        return x if len(x) > 1 else x[0]


def score(p, criterion):
    ordered = np.sort(p.astype(np.float64), -1)
    if criterion == "entropy":
        return -(ordered * np.log(np.maximum(ordered, 1e-300))).sum(-1)
    return ordered[:, -1] - (ordered[:, -2] if criterion == "margin" else 0.0)


def by_rule(model, outputs):
    """Exit of each sample and whether a score is too near a threshold to tell."""
    exits = np.full(len(outputs[0]), len(outputs) - 1)
    near = np.zeros(len(exits), bool)
    for index in reversed(range(len(model.criteria))):
        threshold, criterion = model.thresholds[index], model.criteria[index]
        if threshold is None:
            continue
        s = score(outputs[index], criterion)
        leaves = s < threshold if criterion == "entropy" else s >= threshold
        exits[leaves] = index
        near |= np.abs(s - threshold) <= NEAR
    return exits, near


def check(seed):
    keras.utils.clear_session()
    builder = Builder(seed)
    model = builder.model()
    x = builder.samples(24)
    outputs = [model.predict(x, verbose=0)[name] for name in model.exit_names]
    model.thresholds = [
        None if builder.rng.random() < 0.1 else float(np.quantile(s, builder.rng.random()))
        for s in map(score, outputs, model.criteria)
    ]
    exits, near = by_rule(model, outputs)
    answer = model.predict_early(x, verbose=0)
    log = "; ".join(builder.log)
    np.testing.assert_array_equal(answer.exits[~near], exits[~near], log)
    taken = np.stack(outputs)[answer.exits, np.arange(len(exits))]
    # float32 rounding of another order of operations
    np.testing.assert_allclose(
        answer.probabilities, taken, rtol=1e-4, atol=1e-5, err_msg=log
    )
    top = np.sort(taken, -1)
    clear = top[:, -1] - top[:, -2] > NEAR
    np.testing.assert_array_equal(answer.labels[clear], taken.argmax(-1)[clear], log)
    return near.sum(), len(near), len(set(exits.tolist()))


@pytest.mark.parametrize("seed", range(12))
def test_a_random_graph(seed):
    near, count, _ = check(seed)
    assert near <= 0.2 * count


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_two_hundred_random_graphs():
    found = np.array([check(seed) for seed in range(200)])
    near, count, exits = found.T
    print(f"{near.sum()} of {count.sum()} samples too near a threshold to tell")
    assert near.sum() <= 0.05 * count.sum()
    assert (exits > 1).mean() > 0.5  # most graphs had samples at several exits
