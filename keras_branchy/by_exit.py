# SPDX-License-Identifier: Apache-2.0
"""What is given to a model with exits, once or as a list, as a dict by exit name.

Keras assigns lists in the sorted order of output names, pairs losses with their weights by
position, and shares a Metric object between outputs; dicts and copies avoid all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

__all__ = ["by_exit", "check_losses", "metrics_by_exit", "weights_of_losses"]


def by_exit(
    argument: str, value: Any, names: Sequence[str], repeat: bool = True
) -> dict[str, Any] | None:
    """Turns `value` into a dict by exit name: a dict, a list in exit order, or one for all.

    Args:
        argument: Name of the argument, for errors.
        value: What `compile` or `fit` was given.
        names: The names of the exits.
        repeat: Whether a single value stands for every exit.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - set(names))
        if unknown:
            raise ValueError(
                f"`{argument}` as a dict is keyed by exit name. Received: {unknown}. "
                f"Expected keys among {list(names)}."
            )
        return dict(value)
    if isinstance(value, (list, tuple)):
        if len(value) != len(names):
            raise ValueError(
                f"`{argument}` as a list has one entry per exit, in exit order. "
                f"Received: {len(value)} entries. Expected {len(names)}, for "
                f"{list(names)}; the last exit is the backbone's own output."
            )
        return dict(zip(names, value, strict=True))
    if repeat:
        return dict.fromkeys(names, value)
    raise ValueError(
        f"`{argument}` must be a list in exit order or a dict by exit name. Received: "
        f"{argument}={value!r}. Expected for example "
        f"{[1.0] * len(names)}, for {list(names)}."
    )


def weights_of_losses(
    weights: Mapping[str, float] | None, losses: Mapping[str, Any] | None
) -> dict[str, float] | None:
    """The weights of the exits that have a loss; Keras pairs the two by position."""
    if weights is None or losses is None:
        return None if weights is None else dict(weights)
    missing = [name for name in losses if name not in weights]
    if missing:
        raise ValueError(
            "`loss_weights` needs a weight for every exit that has a loss. Received: "
            f"loss_weights={dict(weights)}, without {missing}. Add them, with 0.0 for an "
            "exit that is not to count."
        )
    return {name: weights[name] for name in losses}


def metrics_by_exit(
    argument: str, value: Any, names: Sequence[str]
) -> dict[str, list[Any]] | None:
    """Turns metrics into a dict of lists; each exit has its own copy of a Metric object."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        chosen = by_exit(argument, value, names)
    elif isinstance(value, (list, tuple)) and any(
        isinstance(entry, (list, tuple)) for entry in value
    ):
        chosen = by_exit(argument, value, names)
    else:
        chosen = dict.fromkeys(names, value)
    return {name: _own_copies(metrics) for name, metrics in (chosen or {}).items()}


def _own_copies(metrics: Any) -> list[Any]:
    listed = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    return [
        type(metric).from_config(metric.get_config())
        if isinstance(metric, keras.metrics.Metric)
        else metric
        for metric in listed
        if metric is not None
    ]


def check_losses(losses: dict[str, Any] | None, branches: Mapping[str, Any]) -> None:
    """Refuses a loss by name for an exit whose output is no distribution."""
    for name, branch in branches.items():
        loss = (losses or {}).get(name)
        if isinstance(loss, str) and branch.activation is None:
            raise ValueError(
                f"The output of '{name}' is no distribution (activation=None), but "
                f"losses given by name expect one. Received: loss={loss!r}. Pass a loss "
                "object for decision values, for this exit or for each in a dict: "
                f"loss={{'{name}': keras_branchy.OneVsRestHinge(), …}}."
            )
