# SPDX-License-Identifier: Apache-2.0
"""Training with several exits: what is given once, a loss or a label, is for every exit."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import keras

from keras_branchy.by_exit import by_exit, check_losses, metrics_by_exit, weights_of_losses
from keras_branchy.graph import producer

__all__ = ["MultiExitTraining"]


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
                order, or a dict by exit name. An exit left out, or None, has no loss.
            loss_weights: A list of floats in exit order, or a dict by exit name, with a
                weight for every exit that has a loss.
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
                is not there, a loss has no weight, a string names the loss of an exit
                that is no distribution, a distillation setting is out of range, or the
                variables belong to another `tf.distribute` strategy.
        """
        names = self.exit_names
        loss = by_exit("loss", loss, names)
        check_losses(loss, dict(zip(names, self.branches, strict=False)))
        if loss is not None:
            loss = {name: given for name, given in loss.items() if given is not None}
        loss_weights = by_exit("loss_weights", loss_weights, names, repeat=False)
        _check_strategy(self)
        self._distillation = _check_distillation(
            distillation_weight, distillation_temperature
        )
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=weights_of_losses(loss_weights, loss),
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
        """Keras' weighted sum of the losses; one label feeds every exit.

        `y` and `sample_weight` may also be a list or tuple in exit order, or a dict by
        exit name.
        """
        loss = super().compute_loss(
            x=x,
            y=self._fan_out("y", y),
            y_pred=y_pred,
            sample_weight=self._fan_out("sample_weight", sample_weight),
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
        weights = self._fan_out("sample_weight", sample_weight) or {}
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
            x,
            self._fan_out("y", y),
            y_pred,
            sample_weight=self._fan_out("sample_weight", sample_weight),
        )

    def _fan_out(self, argument: str, value: Any) -> dict[str, Any] | None:
        return by_exit(argument, value, self.exit_names)


def _log(probabilities: Any) -> Any:
    # The backbone's own output may be float16, where the bound below would be 0.
    probabilities = keras.ops.cast(probabilities, "float32")
    # Softmax outputs underflow to 0 in float32; below this no class is told from another.
    return keras.ops.log(keras.ops.maximum(probabilities, 1e-30))


def _check_strategy(model: keras.Model) -> None:
    """Refuses variables that another strategy holds; Keras would fail without a word."""
    if keras.backend.backend() != "tensorflow":
        return
    strategy = model.distribute_strategy
    own = strategy.extended.variable_created_in_scope
    foreign = [variable.path for variable in model.weights if not own(variable.value)]
    if foreign:
        raise ValueError(
            "A model is built and compiled under one tf.distribute strategy. Received: "
            f"{len(foreign)} of {len(model.weights)} variables, such as '{foreign[0]}', "
            f"that were created outside the scope of {type(strategy).__name__}, under "
            "which the model would train. Build the backbone and the BranchyModel, and "
            "call compile(), inside one `with strategy.scope():`."
        )


def _check_distillation(weight: Any, temperature: Any) -> tuple[float, float]:
    if not (_is_finite(weight) and weight >= 0):
        raise ValueError(
            "`distillation_weight` must be a finite float of at least 0. Received: "
            f"distillation_weight={weight!r}. 0 switches self-distillation off."
        )
    if not (_is_finite(temperature) and temperature > 0):
        raise ValueError(
            "`distillation_temperature` must be a finite float above 0. Received: "
            f"distillation_temperature={temperature!r}. 1 leaves the answers as they are."
        )
    return float(weight), float(temperature)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
