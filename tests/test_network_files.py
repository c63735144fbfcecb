# SPDX-License-Identifier: Apache-2.0
"""Files of the published networks, read where only BranchyModel was imported."""

import json

import numpy as np
import pytest
from project import fresh_python

from keras_branchy import OneVsRestHinge, networks

READ = """
import json, sys
from keras_branchy import BranchyModel
import keras, numpy as np
found = {}
for path in %r:
    model = keras.models.load_model(path)
    shape = model.input_shape[1:]
    x = np.linspace(0, 1, 2 * np.prod(shape), dtype="float32").reshape(2, *shape)
    outputs = keras.tree.flatten(model(x))
    found[model.name] = [type(model).__name__, [float(y[1, 3]) for y in outputs]]
    if model.compiled:
        losses = {name: type(loss).__name__ for name, loss in model.loss.items()}
        found[model.name].append(losses)
found["imported"] = sorted(name for name in sys.modules if "branchy.networks" in name)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def models():
    hinge = OneVsRestHinge()
    gates = networks.d_gate_resnet(blocks=(1, 1, 1, 1), width=2, name="gates")
    gates.compile("adam", {"exit_1": hinge, "exit_2": hinge})
    gates.optimizer.build(gates.trainable_variables)  # as training does
    return [
        networks.b_alexnet(name="alexnet"),
        networks.b_resnet(8, name="resnet"),
        networks.b_resnet(8, stochastic_depth=0.5, backbone_only=True, name="plain"),
        gates,
    ]


def test_importing_branchy_model_is_enough(models, tmp_path):
    paths = []
    for model in models:
        paths.append(str(tmp_path / f"{model.name}.keras"))
        model.save(paths[-1])
    found = json.loads(fresh_python(READ % paths).splitlines()[-1])
    assert found.pop("imported") == []  # else it would be no test
    assert list(found) == ["alexnet", "resnet", "plain", "gates"]
    kinds = [kind for kind, *_ in found.values()]
    assert kinds == ["BranchyModel", "BranchyModel", "Functional", "BranchyModel"]
    losses = {"exit_1": "OneVsRestHinge", "exit_2": "OneVsRestHinge"}
    assert found["gates"][2] == losses
    for model in models:
        shape = model.input_shape[1:]
        x = np.linspace(0, 1, 2 * np.prod(shape), dtype="float32").reshape(2, *shape)
        outputs = model(x)
        outputs = outputs.values() if isinstance(outputs, dict) else [outputs]
        expected = [float(output[1, 3]) for output in outputs]
        # Another process, whose threads may split sums in another way.
        assert found[model.name][1] == pytest.approx(expected, rel=1e-4, abs=1e-6)
