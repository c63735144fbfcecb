# SPDX-License-Identifier: Apache-2.0
"""A traced function called by its operation, without what its Python object does first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["direct_call"]


def direct_call(
    function: tf.types.experimental.ConcreteFunction,
) -> Callable[..., dict[str, tf.Tensor]]:
    """What calls a concrete function outside of graphs, for inference.

    The object binds arguments to its signature, looks who watches which variable and packs
    what comes back, which takes longer than a small stage. The operation that TensorFlow
    itself makes of a function within another does none of that. It is taken where all
    devices are CPUs and what was captured stays the same; else the object is called.

    Args:
        function: It returns a dict of tensors.

    Returns:
        A function of the same positional arguments, which must be tensors of the dtypes
        and shapes that `function` declares: they are not checked.
    """
    import tensorflow as tf

    if _is_elsewhere() or function.graph.deferred_external_captures:
        return function
    names = sorted(function.structured_outputs)  # as TensorFlow flattens a dict
    dtypes = [tensor.dtype for tensor in function.outputs]
    captured = function.captured_inputs
    call, flatten = tf.raw_ops.StatefulPartitionedCall, tf.nest.flatten

    def direct(*args: Any) -> dict[str, tf.Tensor]:
        made = call(args=[*flatten(args), *captured], Tout=dtypes, f=function)
        return dict(zip(names, made, strict=True))

    return direct


def _is_elsewhere() -> bool:
    import tensorflow as tf

    return any(device.device_type != "CPU" for device in tf.config.list_logical_devices())
