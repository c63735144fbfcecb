# SPDX-License-Identifier: Apache-2.0
"""The published networks as LiteRT files: builtin operations, and Keras' answers."""

import numpy as np
import pytest
from cases import NETWORKS
from exports import exported

from keras_branchy import StageRunner
from keras_branchy.export.conversion import operations_in

OTHERS = [case.name for case in NETWORKS if case.name != "b_alexnet"]


def check(name, layout):
    export = exported(name, layout=layout)
    for row in export.manifest["files"]:
        found = operations_in((export.folder / row["name"]).read_bytes())
        assert not any(op.startswith(("CUSTOM", "FLEX")) for op in found)
        # LiteRT's own would run outside its fast kernels.
        assert "LOCAL_RESPONSE_NORMALIZATION" not in found
    answer = StageRunner(export.folder).predict(export.x)
    np.testing.assert_array_equal(answer.exits, export.answer.exits)
    np.testing.assert_array_equal(answer.labels, export.answer.labels)
    assert len(set(answer.exits)) > 1  # some leave early, or it says nothing
    np.testing.assert_allclose(answer.probabilities, export.answer.probabilities, atol=1e-5)


def test_b_alexnet_in_one_file_answers_as_keras():
    check("b_alexnet", "cascade")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("layout", ["stages", "cascade"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_network_answers_as_keras(name, layout):
    check(name, layout)
