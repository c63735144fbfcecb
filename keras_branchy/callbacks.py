# SPDX-License-Identifier: Apache-2.0
"""ExitMonitor: who would leave where, after every epoch of training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_branchy import cost
from keras_branchy.batches import batches_of
from keras_branchy.branchy_model import BranchyModel
from keras_branchy.calibration import calibrate
from keras_branchy.export.decisions import score_all
from keras_branchy.outcome import Outcome, expected_cost, outcome
from keras_branchy.scoring import all_logits
from keras_branchy.targets import Target
from keras_branchy.thresholds import check_thresholds

__all__ = ["ExitMonitor"]


class ExitMonitor(keras.callbacks.Callback):
    """Logs what early exits would do on held-out samples, after every epoch.

    It adds to the `logs` that callbacks share, so put it *before* those that read them
    (`TensorBoard`, `CSVLogger`, `EarlyStopping`, `ModelCheckpoint`, W&B's). `History` and
    the progress bar come last by themselves. Per epoch it takes one pass over the data, on
    any Keras backend. For N exits, with the exits' own names:

    | key | meaning |
    |---|---|
    | `val_early_exit_accuracy` | accuracy with early exits |
    | `val_early_exit_cost` | mean MACs of a sample, heads counted, over the backbone's |
    | `val_early_exit_trunk_cost` | the same with the heads left out |
    | `val_exit_1_share` | share of the samples that leaves at `exit_1` |
    | `val_exit_1_accuracy_where_taken` | accuracy on these; NaN where nobody leaves |
    | `val_exit_1_accuracy` | accuracy of `exit_1` on all samples, unless Keras logs it |

    The thresholds are those of the model, unless others or a target are given. A target is
    met anew in each epoch, on the same samples, and leaves `model.thresholds` alone.

    Args:
        data: A dataset of (x, label) batches, or an array with `y`. Not a generator, which
            the first epoch would use up.
        y: Labels, where `data` is an array.
        thresholds: One per exit but the last, `None` for a disabled exit.
        exit_shares: Instead, the share of all samples to leave at each exit but the last.
        max_accuracy_drop: Instead, the accuracy that may be lost, a fraction.
        batch_size: Samples at a time for arrays, 32 by default.
        prefix: What the keys begin with.

    Raises:
        ValueError: If more than one of `thresholds`, `exit_shares` and
            `max_accuracy_drop` is given; when training starts, if none is and the model
            has no thresholds; after an epoch, if the data have no labels.
        TypeError: When training starts, if the model is no `BranchyModel`.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_branchy import networks
    from keras_branchy.callbacks import ExitMonitor

    x, y = np.zeros((8, 28, 28, 1), np.float32), np.arange(8)
    model = networks.b_lenet()
    model.compile("adam", "sparse_categorical_crossentropy")
    monitor = ExitMonitor(x, y, exit_shares=[0.5])
    history = model.fit(x, y, callbacks=[monitor, keras.callbacks.CSVLogger("log.csv")])
    assert len(history.history["val_exit_1_share"]) == 1
    ```
    """

    def __init__(
        self,
        data: Any,
        y: Any = None,
        *,
        thresholds: Sequence[float | None] | None = None,
        exit_shares: Sequence[float] | None = None,
        max_accuracy_drop: float | None = None,
        batch_size: int | None = None,
        prefix: str = "val_",
    ):
        super().__init__()
        targets = {"exit_shares": exit_shares, "max_accuracy_drop": max_accuracy_drop}
        self._target: dict[str, Any] = {
            name: x for name, x in targets.items() if x is not None
        }
        if len(self._target) + (thresholds is not None) > 1:
            raise ValueError(
                "ExitMonitor takes `thresholds`, or one target. Received: thresholds="
                f"{thresholds}, exit_shares={exit_shares}, max_accuracy_drop="
                f"{max_accuracy_drop}. Leave out all but one."
            )
        self._data, self._y, self._batch_size = data, y, batch_size
        self._thresholds = thresholds
        self._prefix = prefix
        self._costs: list[cost.StageCost] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model
        if not isinstance(model, BranchyModel):
            raise TypeError(
                "ExitMonitor watches the exits of a BranchyModel. Received: a model of "
                f"type {type(model).__name__}. Give the callback to the BranchyModel's fit."
            )
        if self._thresholds is not None:
            check_thresholds(self._thresholds, model.exit_names[:-1])
        elif not self._target and model.thresholds is None:
            raise ValueError(
                "ExitMonitor needs to know who leaves. Received: no thresholds, no target, "
                "and a model without thresholds. Pass for example exit_shares="
                f"{[0.5] + [0.0] * (len(model.criteria) - 1)} or max_accuracy_drop=0.01, "
                "or set model.thresholds."
            )
        if self._target and "learned" in model.criteria and None in model.gates:
            raise ValueError(
                "ExitMonitor cannot choose thresholds of exits whose gates are not fitted. "
                f"Received: {self._target} for criteria {model.criteria} with gates "
                f"{model.gates}. Pass thresholds=, or watch once fit_gates has been called."
            )
        self._look_once()
        self._costs = _costs(model)

    def _look_once(self) -> None:
        """Refuses targets out of range and data without labels before an epoch."""
        if self._target:
            Target.of(len(self.model.criteria), **self._target)
        first = batches_of(self.model, self._data, self._y, self._batch_size, 0, 1)
        self._labelled(next(first)[1])

    def _labelled(self, labels: np.ndarray | None) -> np.ndarray:
        if labels is None:
            raise ValueError(
                "ExitMonitor compares answers with labels. Received: "
                f"{type(self._data).__name__} without labels. Pass a dataset of (x, label) "
                "batches, or y= beside an array."
            )
        return labels

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is None:
            return
        logits, labels = all_logits(
            self.model, self._data, self._y, batch_size=self._batch_size, verbose=0
        )
        labels = self._labelled(labels)
        found = outcome(self.model, logits, labels, self._chosen(logits, labels))
        for key, value in self._rows(found).items():
            logs[f"{self._prefix}{key}"] = value
        for name, value in zip(self.model.exit_names, found.exit_accuracy, strict=True):
            logs.setdefault(f"{self._prefix}{name}_accuracy", value)

    def _chosen(self, logits: list[np.ndarray], labels: np.ndarray) -> Any:
        model = self.model
        if not self._target:
            return model.thresholds if self._thresholds is None else self._thresholds
        scores, answers = score_all(np.stack(logits), model.criteria, model.gates)
        report = calibrate(
            list(scores[:-1]),
            answers == labels,
            self._paid(),
            model.criteria,
            model.num_classes,
            **self._target,
        )
        return report.thresholds

    def _paid(self) -> list[float]:
        """What leaving at each exit costs; stages where MACs are not known."""
        if self._costs is None:
            return [float(k) for k in range(1, len(self.model.exit_names) + 1)]
        return [float(row.macs_to_leave) for row in self._costs]

    def _rows(self, found: Outcome) -> dict[str, float]:
        rows = {"early_exit_accuracy": found.accuracy}
        if self._costs is not None:
            whole = expected_cost(self._costs, found.shares)
            trunk = expected_cost(self._costs, found.shares, heads=False)
            rows["early_exit_cost"] = whole.of_backbone
            rows["early_exit_trunk_cost"] = trunk.of_backbone
        for index, name in enumerate(self.model.exit_names):
            there = found.accuracy_where_taken[index]
            rows[f"{name}_share"] = found.shares[index]
            rows[f"{name}_accuracy_where_taken"] = math.nan if there is None else there
        return rows


def _costs(model: BranchyModel) -> list[cost.StageCost] | None:
    try:
        return cost.stage_costs(model)
    except ValueError as error:
        warnings.warn(
            f"ExitMonitor logs no expected cost: {error}",
            stacklevel=2,
        )
        return None
