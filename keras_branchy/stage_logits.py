# SPDX-License-Identifier: Apache-2.0
"""What stages make of their exits' logits before they give them: temperatures.

It is done in the stages' graphs with stock layers, so that whoever runs a stage, or a file
made from one, sees the logits that the thresholds were chosen on and needs to know nothing
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import keras

from keras_branchy.stages import LOGITS, Stage

__all__ = ["with_temperatures"]


def with_temperatures(
    stages: Sequence[Stage], temperatures: Sequence[float]
) -> tuple[Stage, ...]:
    """Stages that divide their logits by a temperature each; at 1 they stay as they are.

    The layers are added behind the stages given, which share all else, so no other call is
    made anew.
    """
    return tuple(map(_with_temperature, stages, temperatures))


def _with_temperature(stage: Stage, temperature: float) -> Stage:
    if temperature == 1.0:
        return stage
    scale = keras.layers.Rescaling(
        1.0 / temperature, name=f"{stage.exit_name}_temperature", dtype="float32"
    )
    outputs = {**stage.model.output, LOGITS: scale(stage.model.output[LOGITS])}
    return replace(
        stage, model=keras.Model(stage.model.input, outputs, name=stage.model.name)
    )
