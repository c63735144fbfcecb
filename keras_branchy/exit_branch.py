# SPDX-License-Identifier: Apache-2.0
"""ExitBranch: from the features at a tap to one exit's output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import keras

from keras_branchy.criteria import check_criterion
from keras_branchy.masks import AttachMask

__all__ = ["ExitBranch"]

# A default head sees at most this many pooled features, so that it stays small beside
# the trunk: 64 channels keep a 4x4 grid, 256 a 2x2 grid, more are averaged.
MAX_POOLED_FEATURES = 1024


@keras.saving.register_keras_serializable(package="keras_branchy")
class ExitBranch(keras.layers.Layer):
    """An exit: the head that turns the features at a tap into class probabilities.

    The head is `layers`, one after another, then a `Dense(units)` in float32, whose output
    is the exit's logits, then a softmax. A BranchyNet branch (arXiv 1709.01686) lists its
    convolutions in `layers`; a decision gate (arXiv 1811.01476) is
    `ExitBranch(units, layers=[], activation=None, criterion="distance")`.

    Without `layers` a small head is chosen for the shape at the tap: feature maps are
    max-pooled to a grid of at most 4x4 that holds at most 1,024 features, or averaged
    where that leaves one cell; sequences are averaged over time, without masked steps;
    vectors go straight to the logits.

    Args:
        units: Number of classes, the same for every exit of a model and its backbone.
        layers: Keras layers to apply before the logits. Features of rank > 2 that they
            leave are flattened. `[]` is a linear head, `None` the default head.
        activation: `"softmax"`, or `None` for a gate that is no distribution: its output
            is the decision values, to be trained with a hinge loss.
        criterion: How the exit decides: `"entropy"`, `"max_probability"`, `"margin"`,
            `"distance"` or `"learned"`; see `keras_branchy.criteria`.
        stop_gradient: True detaches the exit: its error does not reach the trunk.
        **kwargs: `dtype` and `trainable`, as for every layer. The name is given by the
            model: `exit_1`, `exit_2`, … in the order of the graph.

    Input shape:
        [B, H, W, C] (or channels first, as Keras is set), [B, D, H, W, C], [B, T, C] or
        [B, C], any floating dtype. With `layers`, whatever the first of them takes.

    Output shape:
        [B, units], float32 under every dtype policy.

    Raises:
        ValueError: If an argument is not as described, or no default head fits.

    Example:

    ```python
    import keras
    from keras_branchy import ExitBranch

    branch = ExitBranch(10, layers=[keras.layers.MaxPooling2D(), keras.layers.ReLU()])
    probabilities = branch(keras.ops.ones((2, 8, 8, 4)))
    assert probabilities.shape == (2, 10)
    ```
    """

    def __init__(
        self,
        units: int,
        layers: Sequence[keras.layers.Layer] | None = None,
        *,
        activation: str | None = "softmax",
        criterion: str = "entropy",
        stop_gradient: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.units = _check_units(units)
        self.activation = _check_activation(activation)
        self.criterion = check_criterion(criterion).name
        self.stop_gradient = bool(stop_gradient)
        self.head: Any = None if layers is None else _check_layers(layers)
        self.default_head = layers is None
        self.flatten = keras.layers.Flatten(name="exit_flatten", dtype=self.dtype_policy)
        self.classifier = keras.layers.Dense(
            self.units, name="exit_logits", dtype="float32"
        )
        self.attach_mask = AttachMask(name="exit_mask")
        # A head may use a mask; its logits have none.
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        if self.head is None:
            self.head = _default_head(tuple(input_shape), self.dtype_policy)
        shape = tuple(input_shape)
        for layer in self.head:
            if not layer.built:
                layer.build(shape)
            shape = tuple(layer.compute_output_shape(shape))
        if len(shape) > 2:
            shape = tuple(self.flatten.compute_output_shape(shape))
        if shape[-1] is None:
            raise ValueError(
                "The head of an exit must end in a known number of features. Received: "
                f"features of shape {tuple(input_shape)}, which the head of "
                f"'{self.name}' turns into {shape}. End `layers` with a global pooling "
                "layer, or give the backbone a fixed input shape."
            )
        self.classifier.build(shape)
        self.built = True

    def logits(self, inputs: Any, start: int = 0) -> Any:
        """What goes into the softmax, [B, units], float32.

        Args:
            inputs: What the head reads, or its layer `start` does.
            start: How many layers of the head have been applied already.
        """
        x = inputs
        for layer in self.head[start:]:
            x = layer(x)
        return self.classifier(self.flatten(x) if len(x.shape) > 2 else x)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        if self.stop_gradient:
            inputs = keras.ops.stop_gradient(inputs)
        if mask is not None:
            inputs = self.attach_mask(inputs, mask)
        logits = self.logits(inputs)
        return logits if self.activation is None else keras.activations.softmax(logits)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, int]:
        return (input_shape[0], self.units)

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> Any:
        return keras.KerasTensor((inputs.shape[0], self.units), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        layers = None
        if not self.default_head:
            layers = [keras.saving.serialize_keras_object(x) for x in self.head]
        return {
            **super().get_config(),
            "units": self.units,
            "layers": layers,
            "activation": self.activation,
            "criterion": self.criterion,
            "stop_gradient": self.stop_gradient,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ExitBranch:
        config = dict(config)
        if config.get("layers") is not None:
            config["layers"] = [
                keras.saving.deserialize_keras_object(x) for x in config["layers"]
            ]
        return cls(**config)


def _check_units(units: Any) -> int:
    if isinstance(units, bool) or not isinstance(units, Integral) or units < 2:
        raise ValueError(
            "`units` must be the number of classes, an integer of at least 2. "
            f"Received: units={units!r}. For a yes-or-no answer use two classes."
        )
    return int(units)


def _check_activation(activation: Any) -> str | None:
    if activation not in ("softmax", None):
        raise ValueError(
            "`activation` must be 'softmax', or None for a gate that is no "
            f"distribution. Received: activation={activation!r}."
        )
    return activation


def _check_layers(layers: Any) -> list[keras.layers.Layer]:
    if not isinstance(layers, (list, tuple)) or not all(
        isinstance(layer, keras.layers.Layer) for layer in layers
    ):
        raise ValueError(
            "`layers` must be a list of Keras layers, [] for a linear head, or None for "
            f"the default head. Received: layers={layers!r}."
        )
    names = [layer.name for layer in layers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            "Each layer of `layers` needs a name of its own. Received: layers named "
            f"{names}, with {twice} more than once. Give them `name=`."
        )
    return list(layers)


def _default_head(shape: tuple, dtype: Any) -> list[keras.layers.Layer]:
    rank = len(shape)
    if rank == 2:
        return []
    if rank == 3:
        return [keras.layers.GlobalAveragePooling1D(name="exit_pool", dtype=dtype)]
    if rank == 4:
        return [_pooling(shape, dtype)]
    if rank == 5:
        return [keras.layers.GlobalAveragePooling3D(name="exit_pool", dtype=dtype)]
    raise ValueError(
        "No default head fits the features at this tap. Expected: [batch, features], "
        "[batch, steps, features] or feature maps. Received: shape="
        f"{shape}. Pass the head as `layers=[…]`."
    )


def _pooling(shape: tuple, dtype: Any) -> keras.layers.Layer:
    """Max-pools to the largest grid that keeps the features few, or averages all."""
    first = keras.config.image_data_format() == "channels_first"
    height, width = shape[2:] if first else shape[1:3]
    channels = shape[1] if first else shape[3]
    for cells in (4, 2):
        if None in (height, width, channels) or min(height, width) < cells:
            continue
        if channels * cells * cells <= MAX_POOLED_FEATURES:
            window = (math.ceil(height / cells), math.ceil(width / cells))
            return keras.layers.MaxPooling2D(
                window, padding="same", name="exit_pool", dtype=dtype
            )
    return keras.layers.GlobalAveragePooling2D(name="exit_pool", dtype=dtype)
