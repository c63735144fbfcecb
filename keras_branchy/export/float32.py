# SPDX-License-Identifier: Apache-2.0
"""The same model in float32: what mixed precision trains, files hold in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["in_float32"]

_LOW = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64")


def in_float32(model: BranchyModel) -> BranchyModel:
    """`model` if it computes in float32, else a copy that does, with its values.

    Half-precision graphs become files with TensorFlow operations, which LiteRT does not
    run; weights of a mixed-precision model are float32 anyway.
    """
    policies = {layer.dtype_policy.name for layer in model._flatten_layers()}
    if not policies & set(_LOW):
        return model
    config = _replaced(keras.saving.serialize_keras_object(model))
    config.pop("compile_config", None)
    copy = keras.saving.deserialize_keras_object(config)
    copy.set_weights([weight.astype("float32") for weight in model.get_weights()])
    copy.patience = model.patience
    copy.thresholds = model.thresholds
    return copy


def _replaced(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _replaced(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_replaced(value) for value in config)
    return "float32" if isinstance(config, str) and config in _LOW else config
