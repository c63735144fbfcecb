# SPDX-License-Identifier: Apache-2.0
"""What all tests share. The environment is set before anything imports TensorFlow."""

import os
import shutil

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "Agg")
# Figures in the tests hold for the CPU; a GPU run sets CUDA_VISIBLE_DEVICES itself.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

SWITCH = "KERAS_BRANCHY_CUSTOM_OPS"

# Tests run the gate's definition, with or without a compiler; those of the gate itself
# take the fixture `implementation`. KERAS_BRANCHY_CUSTOM_OPS=on runs all on the op.
os.environ.setdefault(SWITCH, "off")


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
    if request.param == "native":
        _need_native_op()
    return request.param


@pytest.fixture(params=["NumPy", "native"])
def step(request, monkeypatch):
    """Each implementation of the step between two stages in turn."""
    monkeypatch.setenv(SWITCH, {"NumPy": "off", "native": "auto"}[request.param])
    if request.param == "native":
        from keras_branchy import native_step

        _need(native_step.problem())
    return request.param


@pytest.fixture(scope="session")
def native_parts():
    """Fails or skips where it is given why a compiled part is not there."""
    return _need


@pytest.fixture(scope="module")
def native_op():
    """`keras_branchy.native`, with the op at hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "auto")
        yield _need_native_op()


def _need_native_op():
    from keras_branchy import native

    status = native.status()
    _need(None if status.native else status.cause)
    return native


def _need(problem):
    """Fails or skips where a compiled part is not there."""
    if problem is None:
        return
    names = (os.environ.get("CXX"), "g++", "c++")
    # Where there is a compiler, what fails to build or load is a failure.
    if any(name and shutil.which(name) for name in names):
        pytest.fail(f"it was not built or loaded: {problem}")
    pytest.skip(f"no C++ compiler to build it with: {problem}")
