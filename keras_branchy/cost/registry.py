# SPDX-License-Identifier: Apache-2.0
"""What one call of a layer or operation costs one sample, and how to say so for others.

What multiplies no matrices (pooling, normalisation, activations, joins, look-ups) costs no
multiply-accumulate here, as is usual where MACs are published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

__all__ = ["Counter", "Shape", "macs_of", "register"]

Shape = tuple[int, ...]
Counter = Callable[[Any, list[Shape], list[Shape]], int]

# Keras' own classes by name, since some have no public one. None: not to be counted.
LAYERS: dict[str, Counter | None] = {}
OPS: dict[str, Counter | None] = {}
_REGISTERED: dict[type, Counter] = {}


def register(layer_type: type, counter: Counter) -> None:
    """Says what one call of a layer type costs.

    The counter also serves subclasses that do not override `call`. Registering a type
    again replaces its counter, those of Keras' own types included.

    Args:
        layer_type: A class of Keras layers or operations.
        counter: `counter(layer, inputs, outputs)` returns the multiply-accumulates of one
            call for one sample; `inputs` and `outputs` are lists of shapes with a
            leading 1 for the batch.

    Raises:
        TypeError: If `layer_type` is no class of Keras operations, or `counter` cannot
            be called.

    Example:

    ```python
    import keras
    from keras_branchy import cost

    class Square(keras.layers.Layer):
        def call(self, x):
            return x * x

    cost.register(Square, lambda layer, inputs, outputs: outputs[0][-1])
    inputs = keras.Input((8,))
    assert cost.count_macs(keras.Model(inputs, Square()(inputs))) == 8
    ```
    """
    if not isinstance(layer_type, type) or not issubclass(layer_type, keras.Operation):
        raise TypeError(
            "`layer_type` must be a class of Keras layers or operations. Received: "
            f"{layer_type!r}. Pass the class, not an instance or a name."
        )
    if not callable(counter):
        raise TypeError(
            "`counter` must be a function `(layer, inputs, outputs) -> int`. Received: "
            f"{counter!r}."
        )
    _REGISTERED[layer_type] = counter


def macs_of(operation: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-accumulates of one call, from the shapes of what it reads and makes.

    Args:
        operation: A Keras layer or operation.
        inputs: Shapes of its arguments in the order of its signature, for a batch of one.
        outputs: Shapes of what it returns.

    Raises:
        ValueError: If the type is not known, or a size that the count depends on.
    """
    counter = _counter_for(operation)
    if counter is free:
        return 0
    shapes = [tuple(shape) for shape in (*inputs, *outputs)]
    if any(None in shape for shape in shapes):
        raise ValueError(
            f"The MACs of '{operation.name}' depend on sizes that are not known. "
            f"Received: shapes {shapes}. Pass `input_shape=`, without the batch and with "
            "every size given, such as (224, 224, 3)."
        )
    return int(counter(operation, shapes[: len(inputs)], shapes[len(inputs) :]))


def _counter_for(operation: Any) -> Counter:
    kind = type(operation)
    for base in kind.__mro__:
        # A subclass with a `call` of its own computes something else.
        if getattr(base, "call", None) is not kind.call:
            break
        counter = _REGISTERED.get(base) or _keras_counter(base)
        if counter is not None:
            return counter
    raise ValueError(
        f"The MACs of '{operation.name}' cannot be counted: nothing is known of its "
        f"type. Received: {kind.__module__}.{kind.__qualname__}. Say what one call "
        f"costs: `cost.register({kind.__name__}, lambda layer, inputs, outputs: ...)`, "
        "where 0 is right for a layer that multiplies no matrices."
    )


def _keras_counter(base: type) -> Counter | None:
    if not base.__module__.startswith("keras."):
        return None
    if ".ops." in base.__module__:
        # The functions that are not named work element by element, move, or reduce.
        return OPS.get(base.__name__, free)
    return LAYERS.get(base.__name__)


def free(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    """The counter of what multiplies no matrices."""
    return 0


def counts(*names: str, table: dict[str, Counter | None]) -> Callable[[Counter], Counter]:
    """Decorates the counter of Keras' own classes of these names."""

    def add(counter: Counter) -> Counter:
        table.update(dict.fromkeys(names, counter))
        return counter

    return add
