# SPDX-License-Identifier: Apache-2.0
"""What a model with exits does besides training: thresholds, stages, and leaving early."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras

from keras_branchy.exit_scores import ExitScores
from keras_branchy.thresholds import check_patience, check_thresholds

if TYPE_CHECKING:
    from keras_branchy.calibration import CalibrationReport
    from keras_branchy.early_exit import EarlyExitResult
    from keras_branchy.stages import Stage

__all__ = ["EarlyExiting"]


class EarlyExiting(ExitScores):
    """The verbs of `BranchyModel`; each imports what does its work when it is called."""

    @functools.wraps(keras.Model.fit)
    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        # For `calibrate`, which warns of data that the model was trained on.
        self._settings.seen.add(x, kwargs.get("validation_split"))
        return super().fit(x, *args, **kwargs)

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
        check_patience(patience, len(self.exit_names))
        if patience != self._settings.patience:
            self._settings.patience = patience
            self._settings.early_exit = self._settings.early_exit_call = None
            # They were chosen for others to stay.
            self._settings.thresholds = None

    def stages(self) -> tuple[Stage, ...]:
        """The model cut at its exits, one `Stage` per exit, built once.

        Stages share the model's variables and so stay right when it is trained further.
        """
        from keras_branchy.stage_logits import with_final_logits
        from keras_branchy.stages import cut

        settings = self._settings
        if settings.cut is None:
            settings.cut = cut(self)
        if settings.stages is None:
            settings.stages = with_final_logits(
                settings.cut, self.temperatures, self.ensemble
            )
        return settings.stages

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
            batch_size: Samples at a time for arrays; by default 256, and as few as 32
                where a sample's activations are large.
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

    def stream_early(
        self,
        x: Any,
        batch_size: int | None = None,
        steps: int | None = None,
    ) -> Iterator[EarlyExitResult]:
        """`predict_early` for data without an end: answers come batch by batch, in order.

        Memory stays the same however long it goes on.

        Args:
            x: As for `predict_early`.
            batch_size: As for `predict_early`.
            steps: How many batches to take.

        Yields:
            An `EarlyExitResult` for each batch.

        Raises:
            ValueError: If thresholds are not set, or `x` is no data.

        Example:

        ```python
        import numpy as np
        from keras_branchy import networks

        model = networks.b_lenet()
        model.thresholds = [2.0]
        images = np.zeros((100, 28, 28, 1), np.float32)
        sizes = [len(answer) for answer in model.stream_early(images, batch_size=32)]
        assert sizes == [32, 32, 32, 4]
        ```
        """
        from keras_branchy.early_exit import stream

        return stream(self, x, batch_size, steps)

    def calibrate(
        self,
        data: Any,
        y: Any = None,
        *,
        max_accuracy_drop: float | None = None,
        min_accuracy: float | None = None,
        max_lost_answers: float | None = None,
        max_disagreement: float | None = None,
        max_cost: float | None = None,
        exit_shares: Sequence[float] | None = None,
        confidence: float | str | None = None,
        costs: Sequence[float] | None = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
    ) -> CalibrationReport:
        """Chooses thresholds on held-out data for one target, and sets them.

        Every exit is computed once per sample; candidates are compared on cached scores.
        Use data that `fit` has not seen, of which a warning reminds you (`seen_data` says
        how far it can tell), and never the test set. Without a `confidence`
        the target is kept on these samples, and often exceeded on new ones; with one,
        most of them test what the others suggest (`keras_branchy.guarantees`).

        Args:
            data: A dataset of (x, label) batches, an array of samples with `y`, or the
                pair (x, y).
            y: Labels [B] (integers or one-hot), where `data` is an array.
            max_accuracy_drop: The accuracy that may be lost, as a fraction (0.01 is one
                point), against the last exit on the same data; the cheapest thresholds
                that keep it are chosen.
            min_accuracy: Instead: the accuracy to keep, as a fraction.
            max_lost_answers: Instead: the share of samples that the last exit would get
                right and that may leave with a wrong answer, whatever others gain.
            max_disagreement: Instead: the share of answers that may not be the last
                exit's.
            max_cost: Instead: the mean cost of a sample, in the unit of `costs`; the most
                accurate thresholds within it are chosen.
            exit_shares: Instead: the share of all samples that is to leave at each exit
                but the last, in exit order.
            confidence: The probability with which the target is to hold for samples to
                come, or `"mean"` for on average.
            costs: [N] cost of leaving at each exit, such as summed milliseconds of
                `cost.profile`; by default MACs, heads counted.
            batch_size: Samples at a time for arrays, 32 by default.
            verbose: As in `predict`.

        Returns:
            A `CalibrationReport`; print it.

        Raises:
            ValueError: If not exactly one target is given, it cannot be met or shown on
                so few samples, or the data has no labels.
        """
        from keras_branchy.scoring import calibrate

        targets = {
            "max_accuracy_drop": max_accuracy_drop,
            "min_accuracy": min_accuracy,
            "max_lost_answers": max_lost_answers,
            "max_disagreement": max_disagreement,
            "max_cost": max_cost,
            "exit_shares": exit_shares,
            "confidence": confidence,
        }
        return calibrate(self, data, y, targets, costs, batch_size, verbose)

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
