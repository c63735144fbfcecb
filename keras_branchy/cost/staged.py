# SPDX-License-Identifier: Apache-2.0
"""Parameters and MACs of each stage and head, and what a sample pays on the average."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_branchy.cost.calls import Call, bytes_of, input_specs, walk

if TYPE_CHECKING:
    import keras

    from keras_branchy.branchy_model import BranchyModel
    from keras_branchy.stages import Stage

__all__ = ["StageCost", "count_macs", "expected_macs", "stage_costs"]


@dataclass(frozen=True)
class StageCost:
    """What one stage costs a sample that reaches it.

    Attributes:
        exit_name: The exit at the end of the stage.
        trunk_macs: Multiply-accumulates of the backbone's layers in this stage.
        head_macs: Those of the exit's head; 0 at the last exit, which is the backbone's.
        trunk_params: Parameters of the backbone's layers in this stage. A layer that
            several stages call is counted in each, as each needs it where it runs.
        head_params: Parameters of the exit's head.
        live: Names of the tensors that later stages read, model inputs among them.
        bytes_carried: Bytes of these, which cross the cut behind this stage.
        macs_to_leave: What a sample that leaves here has paid since the input: every
            stage and every head up to this one.
        trunk_macs_to_leave: The same with the heads left out, as in BranchyNet's timings.
    """

    exit_name: str
    trunk_macs: int
    head_macs: int
    trunk_params: int
    head_params: int
    live: tuple[str, ...]
    bytes_carried: int
    macs_to_leave: int
    trunk_macs_to_leave: int


def count_macs(model: keras.Model, input_shape: Any = None) -> int:
    """Multiply-accumulates of a model for one sample, call by call.

    A layer that is called twice counts twice. Bias, normalisation, activation, pooling
    and joins count nothing, as is usual where MACs are published.

    Args:
        model: A functional or built Sequential model; a `BranchyModel` counts with every
            exit.
        input_shape: Sizes without the batch, where the model leaves some open: a tuple
            for one input, a list of tuples or a dict by input name for several.

    Raises:
        ValueError: If a layer's type is not known (see `register`), or a size is not.

    Example:

    ```python
    import keras
    from keras_branchy import cost

    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(8, 3, padding="same")(inputs))
    assert cost.count_macs(model, input_shape=(32, 32, 3)) == 32 * 32 * 3 * 3 * 3 * 8
    ```
    """
    return _macs(walk(model, input_specs(model, input_shape)))


def stage_costs(model: BranchyModel, input_shape: Any = None) -> list[StageCost]:
    """Costs of every stage of a model with exits, in exit order.

    Args:
        model: A `BranchyModel`.
        input_shape: As for `count_macs`.

    Returns:
        One `StageCost` per exit.

    Raises:
        ValueError: As for `count_macs`.

    Example:

    ```python
    from keras_branchy import cost, networks

    first, last = cost.stage_costs(networks.b_lenet())
    assert first.trunk_macs == 112_500 and first.head_macs == 107_650
    assert last.trunk_macs_to_leave == 1_140_070
    ```
    """
    specs = input_specs(model, input_shape)
    names = [tensor._keras_history.operation.name for tensor in model.inputs]
    tensors = {n: specs[id(t)] for n, t in zip(names, model.inputs, strict=True)}
    rows: list[StageCost] = []
    for stage in model.stages():
        trunk, head = _split(stage, tensors)
        rows.append(_row(stage, trunk, head, tensors, rows))
    return rows


def _split(stage: Stage, tensors: dict[str, Any]) -> tuple[list[Call], list[Call]]:
    """The calls of a stage: those of the trunk, and those of the head.

    What the stage makes is added to `tensors`.
    """
    specs = {id(tensor): tensors[name] for name, tensor in stage.model.input.items()}
    calls = walk(stage.model, specs)
    made = {name: specs[id(tensor)] for name, tensor in stage.model.output.items()}
    del made["logits"]
    if not stage.live:
        return calls, []
    tensors.update(made)
    made.pop(stage.logits_sum, None)  # handed on, and yet the head's
    trunk = _leading_to(made.values(), calls)
    return trunk, [call for call in calls if call not in trunk]


def _leading_to(tensors: Iterable[Any], calls: Sequence[Call]) -> list[Call]:
    needed = set(map(id, tensors))
    leading = []
    for call in reversed(calls):
        if needed.intersection(map(id, call.outputs)):
            needed.update(map(id, call.reads))
            leading.append(call)
    return leading


def _row(
    stage: Stage,
    trunk: Sequence[Call],
    head: Sequence[Call],
    tensors: dict[str, Any],
    earlier: Sequence[StageCost],
) -> StageCost:
    trunk_macs, head_macs = _macs(trunk), _macs(head)
    before = sum(row.trunk_macs for row in earlier)
    heads = sum(row.head_macs for row in earlier)
    return StageCost(
        exit_name=stage.exit_name,
        trunk_macs=trunk_macs,
        head_macs=head_macs,
        trunk_params=_params(trunk),
        head_params=_params(head),
        live=stage.live,
        bytes_carried=sum(bytes_of(tensors[name]) for name in stage.live),
        macs_to_leave=before + heads + trunk_macs + head_macs,
        trunk_macs_to_leave=before + trunk_macs,
    )


def _macs(calls: Iterable[Call]) -> int:
    return sum(call.macs for call in calls)


def _params(calls: Iterable[Call]) -> int:
    variables = {
        id(variable): variable
        for call in calls
        for variable in getattr(call.operation, "weights", [])
    }
    return sum(prod(variable.shape) for variable in variables.values())


def expected_macs(
    costs: Sequence[StageCost], shares: Sequence[float], *, heads: bool = True
) -> float:
    """Mean MACs of a sample, given the share of the samples that leaves at each exit.

    Args:
        costs: What `stage_costs` returned.
        shares: [N] share of the samples that leaves at each exit, with a sum of 1.
        heads: False leaves out what the heads cost, as BranchyNet's own timings do.

    Raises:
        ValueError: If there is not one share per exit, or they do not add up to 1.

    Example:

    ```python
    from keras_branchy import cost, networks

    costs = cost.stage_costs(networks.b_lenet())
    whole = costs[-1].trunk_macs_to_leave
    published = [0.943, 0.057]
    assert round(whole / cost.expected_macs(costs, published), 2) == 4.09
    assert round(whole / cost.expected_macs(costs, published, heads=False), 2) == 6.66
    ```
    """
    given = np.asarray(shares, np.float64)
    if given.shape != (len(costs),) or (given < 0).any() or abs(given.sum() - 1) > 1e-3:
        raise ValueError(
            "`shares` holds the share of the samples that leaves at each exit: "
            f"{len(costs)} numbers of at least 0 that add up to 1. Received: {shares!r}."
        )
    paid = [row.macs_to_leave if heads else row.trunk_macs_to_leave for row in costs]
    return float(given @ paid)
