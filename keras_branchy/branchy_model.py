# SPDX-License-Identifier: Apache-2.0
"""BranchyModel: a backbone with exits, as a functional Keras model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from keras_branchy.attach import attach
from keras_branchy.exit_branch import ExitBranch
from keras_branchy.per_exit import MultiExitTraining
from keras_branchy.thresholds import check_thresholds

if TYPE_CHECKING:
    from keras_branchy.calibration import CalibrationReport
    from keras_branchy.early_exit import EarlyExitResult
    from keras_branchy.stages import Stage

__all__ = ["BranchyModel"]


@dataclass
class _Settings:
    """What Keras must not track: it would put stages into the `.keras` file."""

    thresholds: list[float | None] | None = None
    patience: int | None = None
    stages: tuple | None = None
    all_exits: keras.Model | None = None
    early_exit: Any = None


@keras.saving.register_keras_serializable(package="keras_branchy")
class BranchyModel(MultiExitTraining):
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
            second call of a layer that is called several times.
        thresholds: One float per exit but the last, `None` to disable an exit, or `None`
            for all until `calibrate` has set them.
        patience: If an integer k ≥ 2, a sample also leaves where k successive exits agree
            on its label (PABEE, arXiv 2006.04152).
        from_logits: What the backbone's output is, for an ending that is not recognised:
            True for logits, False for a distribution.
        **kwargs: `name` and `trainable`, as for every Keras model. Keras itself passes
            `inputs` and `outputs` when it loads or clones.

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
        from_logits: bool | None = None,
        **kwargs: Any,
    ):
        inputs, outputs = kwargs.pop("inputs", backbone), kwargs.pop("outputs", exits)
        dtype = kwargs.pop("dtype", None)
        _check_keywords(args, kwargs)
        if not _are_tensors(outputs):
            inputs, outputs = attach(backbone, exits, from_logits)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        if dtype is not None:
            self.dtype_policy = keras.dtype_policies.get(dtype)
        # A plain object, which Keras does not look into.
        object.__setattr__(self, "_settings", _Settings())
        self.thresholds = thresholds
        self.patience = patience

    @property
    def criteria(self) -> list[str]:
        """The criterion of every exit but the last."""
        return [branch.criterion for branch in self.branches]

    @property
    def num_classes(self) -> int:
        """The number of classes, the same at every exit."""
        return self._outputs_struct[self.exit_names[-1]].shape[-1]

    @property
    def thresholds(self) -> list[float | None] | None:
        """One threshold per exit but the last, in exit order; `None` until calibrated.

        The unit is that of the exit's criterion: nats for entropy. `None` in the list
        disables an exit.
        """
        thresholds = self._settings.thresholds
        return None if thresholds is None else list(thresholds)

    @thresholds.setter
    def thresholds(self, thresholds: Sequence[float | None] | None) -> None:
        names = self.exit_names[:-1]
        self._settings.thresholds = check_thresholds(thresholds, names)

    @property
    def patience(self) -> int | None:
        """How many successive exits must agree for a sample to leave, or `None`."""
        return self._settings.patience

    @patience.setter
    def patience(self, patience: int | None) -> None:
        if patience is not None and (
            isinstance(patience, bool) or not isinstance(patience, int) or patience < 2
        ):
            raise ValueError(
                "`patience` must be None, or the number of successive exits that must "
                f"agree, an integer of at least 2. Received: patience={patience!r}."
            )
        if patience != self._settings.patience:
            self._settings.patience = patience
            self._settings.early_exit = None

    def get_config(self) -> dict[str, Any]:
        # The dtype policy too, or loss scaling is lost where the model is loaded.
        return {
            **super().get_config(),
            "thresholds": self.thresholds,
            "patience": self.patience,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    def stages(self) -> tuple[Stage, ...]:
        """The model cut at its exits, one `Stage` per exit, built once.

        Stages share the model's variables and so stay right when it is trained further.
        """
        from keras_branchy.stages import cut

        if self._settings.stages is None:
            self._settings.stages = cut(self)
        return self._settings.stages

    @property
    def early_exit(self) -> Any:
        """Staged inference as one `tf.function(inputs, thresholds)`.

        `inputs` has the structure of the model's own, with a batch dimension of any size;
        `thresholds` is float32 [N-1], with -inf (entropy) or +inf for a disabled exit. It
        returns a dict of tensors `labels`, `probabilities`, `exits` and `scores`, in the
        order of the input. Thresholds are arguments, so changing one never retraces.
        """
        from keras_branchy.early_exit import build

        if self._settings.early_exit is None:
            self._settings.early_exit = build(self)
        return self._settings.early_exit

    def predict_early(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
    ) -> EarlyExitResult:
        """Predicts with early exits: each sample stops at the first exit that is sure.

        Args:
            x: As for `predict`: arrays, tensors, a list or dict of them, a
                `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator of batches.
                Labels and weights in it are ignored.
            batch_size: Samples at a time for arrays, 32 by default.
            verbose: `"auto"`, 0 (silent), 1 (Keras' progress bar) or 2 (one line).
            steps: How many batches to take, for endless data.

        Returns:
            An `EarlyExitResult` of NumPy arrays: `labels` [B] int64, `probabilities`
            [B, C] float32, `exits` [B] int64, each an index into `exit_names`, and
            `scores` [B] float32, each in the unit of the criterion of its exit.

        Raises:
            ValueError: If thresholds are not set, or `x` is no data.
        """
        from keras_branchy.early_exit import predict

        return predict(self, x, batch_size, verbose, steps)

    def calibrate(
        self,
        data: Any,
        y: Any = None,
        *,
        max_accuracy_drop: float | None = None,
        exit_shares: Sequence[float] | None = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
    ) -> CalibrationReport:
        """Chooses thresholds on held-out data and sets them.

        Every exit is computed once per sample; candidates are then compared on cached
        scores. Use data that `fit` has not seen, and never the test set.

        Args:
            data: A dataset of (x, label) batches, or an array of samples with `y`.
            y: Labels [B] (integers or one-hot), where `data` is an array.
            max_accuracy_drop: The accuracy that may be lost, as a fraction (0.01 is one
                point), against the last exit on the same data. Of the thresholds that
                keep it, those with the lowest expected cost are chosen.
            exit_shares: Instead: the share of all samples that is to leave at each exit
                but the last, in exit order.
            batch_size: Samples at a time for arrays, 32 by default.
            verbose: As in `predict`.

        Returns:
            A `CalibrationReport`; print it.

        Raises:
            ValueError: If not exactly one target is given or it cannot be met, or the
                data has no labels.
        """
        from keras_branchy.scoring import calibrate

        return calibrate(self, data, y, max_accuracy_drop, exit_shares, batch_size, verbose)

    def export_stages(
        self, path: Any, *, format: str = "litert", **options: Any
    ) -> dict[str, Any]:
        """Writes the stages, and a `manifest.json` that says how they are run.

        Args:
            path: The folder to write; an earlier export there is replaced.
            format: `"litert"`, `"saved_model"` or `"onnx"`.
            **options: `layout`, `quantization`, `representative_data`, `batch_size`,
                `class_names`, `preprocessing`, `timeout` and `verbose`, as
                `keras_branchy.export.exporter.export_stages` describes them.

        Returns:
            What the manifest says, self-check included.
        """
        from keras_branchy.export.exporter import export_stages

        return export_stages(self, path, format=format, **options)


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
            "exits, thresholds, patience, from_logits, name, trainable. Losses and their "
            "weights belong to compile()."
        )
