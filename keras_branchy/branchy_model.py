# SPDX-License-Identifier: Apache-2.0
"""BranchyModel: a backbone with exits, as a functional Keras model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

# Imported for Keras to know what files may hold.
from keras_branchy import layers, one_vs_rest_hinge  # noqa: F401
from keras_branchy.attach import attach
from keras_branchy.early_exiting import EarlyExiting
from keras_branchy.exit_branch import ExitBranch
from keras_branchy.exit_scores import Settings

__all__ = ["BranchyModel"]


@keras.saving.register_keras_serializable(package="keras_branchy")
class BranchyModel(EarlyExiting):
    """A Keras classifier with exits, from which easy samples leave early.

    It is a functional `keras.Model` whose output is a dict
    `{"exit_1": probabilities [B, C], …, "exit_N": …}` in the order of the graph; the last
    is the backbone's own output. `fit`, `evaluate`, `predict`, callbacks and `.keras`
    files are Keras' own: one label per sample feeds every exit, and `loss`, `metrics` and
    `loss_weights` given once apply to every exit. The layers of the backbone are shared,
    not copied; nested models are inlined.

    Training the exits jointly, Σ wₙ · lossₙ, and leaving at the first exit that is sure
    enough is BranchyNet (Teerapittayanon et al., 2016, arXiv 1709.01686).

    Args:
        backbone: A built functional or Sequential classifier with one output
            [B, classes], which ends in a softmax or in logits.
        exits: `{tap: ExitBranch}` in the order of the graph. A tap is the name of a layer
            of the backbone, `"outer/inner"` inside a nested model, `"layer:1"` for the
            second call of a layer that is called several times, or the name of an input,
            for a head that reads what the backbone reads.
        thresholds: One float per exit but the last, `None` to disable an exit, or `None`
            for all until `calibrate` has set them.
        patience: If an integer k ≥ 2, a sample also leaves where k successive exits agree
            on its label (PABEE, arXiv 2006.04152).
        ensemble: True lets an exit answer together with those before it, by the mean of
            their logits (Zero Time Waste, arXiv 2106.05409).
        from_logits: What the backbone's output is, for an ending that is not recognised:
            True for logits, False for a distribution.
        **kwargs: `name` and `trainable`, as for every Keras model, and `temperatures` and
            `gates`, as the properties hold them. Keras itself passes `inputs` and
            `outputs` when it loads or clones.

    Raises:
        ValueError: If a tap cannot be used, the backbone is no classifier of the kind
            described, or the exits do not fit together; the message says which and how
            to mend it.

    Example:

    ```python
    import keras
    from keras_branchy import BranchyModel, ExitBranch

    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="early")(inputs)
    x = keras.layers.Conv2D(8, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    backbone = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))

    model = BranchyModel(backbone, exits={"early": ExitBranch(3)})
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    assert model.exit_names == ["exit_1", "exit_2"]
    ```
    """

    def __init__(
        self,
        backbone: keras.Model | None = None,
        exits: Mapping[str, ExitBranch] | None = None,
        *args: Any,
        thresholds: Sequence[float | None] | None = None,
        patience: int | None = None,
        ensemble: bool = False,
        from_logits: bool | None = None,
        **kwargs: Any,
    ):
        inputs, outputs = kwargs.pop("inputs", backbone), kwargs.pop("outputs", exits)
        dtype = kwargs.pop("dtype", None)
        temperatures, gates = kwargs.pop("temperatures", None), kwargs.pop("gates", None)
        _check_keywords(args, kwargs)
        if not _are_tensors(outputs):
            inputs, outputs = attach(backbone, exits, from_logits)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        if dtype is not None:
            self.dtype_policy = keras.dtype_policies.get(dtype)
        # A plain object, which Keras does not look into.
        object.__setattr__(self, "_settings", Settings())
        self.ensemble = ensemble
        self.temperatures = temperatures
        self.gates = gates
        self.patience = patience
        self.thresholds = thresholds

    def get_config(self) -> dict[str, Any]:
        # The dtype policy too, or loss scaling is lost where the model is loaded.
        return {
            **super().get_config(),
            "thresholds": self.thresholds,
            "patience": self.patience,
            "ensemble": self.ensemble,
            "temperatures": self.temperatures,
            "gates": self.gates,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }


def _are_tensors(outputs: Any) -> bool:
    """Whether Keras gives tensors, as it does when it loads or clones."""
    flat = keras.tree.flatten(outputs)
    return bool(flat) and all(map(keras.backend.is_keras_tensor, flat))


def _check_keywords(args: tuple, kwargs: dict[str, Any]) -> None:
    if args:
        raise TypeError(
            "BranchyModel takes a backbone and its exits; other arguments are given by "
            f"name. Received: {len(args)} more positional arguments."
        )
    unknown = sorted(set(kwargs) - {"name", "trainable"})
    if unknown:
        raise TypeError(
            f"BranchyModel does not know the arguments {unknown}. Expected: backbone, "
            "exits, thresholds, patience, ensemble, from_logits, temperatures, gates, "
            "name, trainable. Losses and their weights belong to compile()."
        )
