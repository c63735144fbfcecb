# SPDX-License-Identifier: Apache-2.0
"""Training with several exits: what `compile` is given once applies to every exit.

Keras assigns lists in the sorted order of output names and shares a Metric object
between outputs; dicts by exit name and copies avoid both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_branchy.graph import producer

__all__ = ["MultiExitTraining", "by_exit", "check_losses", "metrics_by_exit"]


class MultiExitTraining(keras.Model):
    """Keras' own training for a model with a dict of exits, fed with one label per sample.

    Nothing but the arguments changes hands here: losses, their weighted sum, metrics and
    gradients are Keras'.
    """

    _distillation = (0.0, 1.0)  # weight, temperature

    @property
    def exit_names(self) -> list[str]:
        """`["exit_1", …, "exit_N"]`; an index into it is the index of an exit, from 0."""
        return sorted(self._outputs_struct)

    @property
    def branches(self) -> list[Any]:
        """The `ExitBranch` of every exit but the last."""
        return [node.operation for node in self._branch_nodes]

    @property
    def _branch_nodes(self) -> list[Any]:
        """The call of each branch, a node of the graph."""
        return [producer(self._outputs_struct[name]) for name in self.exit_names[:-1]]

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        *,
        distillation_weight: float = 0.0,
        distillation_temperature: float = 3.0,
        **kwargs: Any,
    ) -> None:
        """Keras' `compile`, in which what is given once applies to every exit.

        Args:
            optimizer: As in Keras.
            loss: A string, `keras.losses.Loss` or function for every exit, a list in exit
                order, or a dict by exit name.
            loss_weights: A list of floats in exit order, or a dict by exit name.
            metrics: A list of metrics for every exit (each exit gets its own copy of a
                `Metric` object), a list of N lists, or a dict by exit name.
            weighted_metrics: Like `metrics`.
            distillation_weight: Weight of self-distillation, 0 for none: every exit but
                the last is also trained on the softened answers of the last, which it
                does not pull back ("Be Your Own Teacher", arXiv 1905.08094). The added
                loss is weight · T² · crossentropy(softmax(z_N/T), softmax(z_n/T)).
            distillation_temperature: T.
            **kwargs: `run_eagerly`, `jit_compile`, … as in Keras.

        Raises:
            ValueError: If a list has not one entry per exit, a dict names an exit that
                is not there, a string names the loss of an exit that is no
                distribution, or a distillation setting is out of range.
        """
        names = self.exit_names
        loss = by_exit("loss", loss, names)
        check_losses(loss, dict(zip(names, self.branches, strict=False)))
        self._distillation = _check_distillation(
            distillation_weight, distillation_temperature
        )
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=by_exit("loss_weights", loss_weights, names, repeat=False),
            metrics=metrics_by_exit("metrics", metrics, names),
            weighted_metrics=metrics_by_exit("weighted_metrics", weighted_metrics, names),
            **kwargs,
        )

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if not config:
            return config
        weight, temperature = self._distillation
        return {
            **config,
            "distillation_weight": weight,
            "distillation_temperature": temperature,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles again as the saved model was, so that training resumes."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Keras' weighted sum of the losses; one label feeds every exit."""
        loss = super().compute_loss(
            x=x,
            y=self._fan_out(y),
            y_pred=y_pred,
            sample_weight=self._fan_out(sample_weight),
            training=training,
        )
        weight, temperature = self._distillation
        if not weight:
            return loss
        return loss + weight * self._distil(y_pred, sample_weight, temperature)

    def _distil(self, y_pred: Any, sample_weight: Any, temperature: float) -> Any:
        """Crossentropy of every exit with the softened answers of the last, times T²."""
        softened = keras.losses.CategoricalCrossentropy(from_logits=True)
        names = self.exit_names
        teacher = keras.ops.stop_gradient(_log(y_pred[names[-1]]) / temperature)
        answers = keras.ops.softmax(teacher)
        weights = self._fan_out(sample_weight) or {}
        total = 0.0
        for name, branch in zip(names, self.branches, strict=False):
            logits = y_pred[name] if branch.activation is None else _log(y_pred[name])
            total += softened(
                answers, logits / temperature, sample_weight=weights.get(name)
            )
        return total * temperature**2

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Keras' metrics; one label feeds every exit."""
        return super().compute_metrics(
            x, self._fan_out(y), y_pred, sample_weight=self._fan_out(sample_weight)
        )

    def _fan_out(self, value: Any) -> Any:
        if value is None or isinstance(value, dict):
            return value
        return dict.fromkeys(self.exit_names, value)


def _log(probabilities: Any) -> Any:
    # Softmax outputs underflow to 0 in float32; below this no class is told from another.
    return keras.ops.log(keras.ops.maximum(probabilities, 1e-30))


def _check_distillation(weight: Any, temperature: Any) -> tuple[float, float]:
    if not (isinstance(weight, (int, float)) and weight >= 0):
        raise ValueError(
            "`distillation_weight` must be a float of at least 0. Received: "
            f"distillation_weight={weight!r}. 0 switches self-distillation off."
        )
    if not (isinstance(temperature, (int, float)) and temperature > 0):
        raise ValueError(
            "`distillation_temperature` must be a float above 0. Received: "
            f"distillation_temperature={temperature!r}. 1 leaves the answers as they are."
        )
    return float(weight), float(temperature)


def by_exit(
    argument: str, value: Any, names: Sequence[str], repeat: bool = True
) -> dict[str, Any] | None:
    """Turns `value` into a dict by exit name: a dict, a list in exit order, or one for all.

    Args:
        argument: Name of the argument, for errors.
        value: What `compile` was given.
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
                "object for decision values, such as a hinge loss that derives from "
                f"keras.losses.Loss, as loss={{'{name}': …}}."
            )
