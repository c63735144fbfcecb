# SPDX-License-Identifier: Apache-2.0
"""What all tests share. The environment is set before anything imports TensorFlow."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "Agg")
# Figures in the tests hold for the CPU; a GPU run sets CUDA_VISIBLE_DEVICES itself.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pytest

SWITCH = "KERAS_BRANCHY_CUSTOM_OPS"


@pytest.fixture(autouse=True)
def seeded():
    """Python's, NumPy's and the backend's random numbers start alike in each test."""
    import keras

    keras.utils.set_random_seed(20170906)


@pytest.fixture
def rng():
    return np.random.default_rng(20170906)


@pytest.fixture
def fresh_names():
    """For tests that look at the names Keras generates (`dense`, `dense_1`, …)."""
    import keras

    keras.utils.clear_session()
    yield
    keras.utils.clear_session()


@pytest.fixture(params=["reference", "native"])
def implementation(request, monkeypatch):
    """Each implementation of the exit gate in turn, chosen as a user chooses it."""
    monkeypatch.setenv(SWITCH, {"reference": "off", "native": "on"}[request.param])
    return request.param
