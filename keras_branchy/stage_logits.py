# SPDX-License-Identifier: Apache-2.0
"""From an exit's own logits to those that its stage gives: ensemble, then temperature.

With ``z₁ … z_k`` the logits of the exits that a sample has met, stage k gives

    z_k / T_k                     by itself,
    (z₁ + … + z_k) / (k · T_k)    as an ensemble of the exits so far.

The softmax of a mean of logits is the geometric mean of the exits' probabilities, made to
sum to 1: the ensemble of Zero Time Waste (Wołczyk et al., NeurIPS 2021, arXiv 2106.05409)
with equal weights. An exit is sure only where those before it do not disagree. The
temperature comes last, because a mean of calibrated exits is less sure than it is right
(Rahaman and Thiery, arXiv 2007.08792). Criteria, units and directions stay what they are.

It is done in the stages' graphs with stock layers, and the running sum is one more of the
tensors that a stage hands to the next. So whoever runs a stage, or a file made from one,
sees the logits that thresholds were chosen on and needs to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras

from keras_branchy.graph import operations
from keras_branchy.names import rename_new
from keras_branchy.stages import LOGITS, Stage

__all__ = ["with_final_logits"]


def with_final_logits(
    stages: Sequence[Stage], temperatures: Sequence[float], ensemble: bool
) -> tuple[Stage, ...]:
    """Stages that give the logits which are compared; as they are where nothing is asked.

    Layers are added behind the stages given, which share all else, so no other call is made
    anew.

    Args:
        stages: What `stages.cut` gave.
        temperatures: One per exit.
        ensemble: Whether an exit answers together with those before it.
    """
    if ensemble:
        stages = _summed(stages)
        temperatures = [k * value for k, value in enumerate(temperatures, 1)]
    return tuple(_divided(*pair) for pair in zip(stages, temperatures, strict=True))


def _divided(stage: Stage, divisor: float) -> Stage:
    if divisor == 1.0:
        return stage
    scale = keras.layers.Rescaling(
        1.0 / divisor, name=f"{stage.exit_name}_scaled", dtype="float32"
    )
    outputs = {**stage.model.output, LOGITS: scale(stage.model.output[LOGITS])}
    return _rebuilt(stage, stage.model.input, outputs)


def _summed(stages: Sequence[Stage]) -> list[Stage]:
    """Stages whose logits are the sum of all so far, which they hand to the next too."""
    names = _sum_names(stages)
    made = []
    for stage, before, name in zip(stages, [None, *names], [*names, None], strict=True):
        inputs, outputs = dict(stage.model.input), dict(stage.model.output)
        if before is not None:
            logits = outputs[LOGITS]
            inputs[before] = keras.Input(logits.shape[1:], dtype=logits.dtype, name=before)
            add = keras.layers.Add(name=f"{stage.exit_name}_sum", dtype="float32")
            outputs[LOGITS] = add([inputs[before], logits])
        if name is not None:
            outputs[name] = outputs[LOGITS]
        live = stage.live if name is None else (*stage.live, name)
        summed = _rebuilt(stage, inputs, outputs)
        made.append(replace(summed, live=live, logits_sum=name))
    return made


def _rebuilt(stage: Stage, inputs: dict[str, Any], outputs: dict[str, Any]) -> Stage:
    known = {id(x) for x in operations(stage.model.inputs, stage.model.outputs)}
    rename_new(operations(inputs.values(), outputs.values()), known)
    model = keras.Model(inputs, outputs, name=stage.model.name)
    return replace(stage, model=model)


def _sum_names(stages: Sequence[Stage]) -> list[str]:
    """Names of the running sums, which no layer and no other tensor has.

    One for each, since in ONNX nothing that is read and made may have the same name.
    """
    taken = {name for stage in stages for name in (*stage.live, *stage.model.output)}
    for stage in stages:
        found = operations(stage.model.inputs, stage.model.outputs)
        taken.update(operation.name for operation in found)
    names = []
    for stage in stages[:-1]:
        name = f"{stage.exit_name}_sum"
        while name in taken:
            name = f"{name}_out"
        taken.add(name)
        names.append(name)
    return names
