# SPDX-License-Identifier: Apache-2.0
"""What held-out samples must be, to choose anything by them: errors and warnings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = [
    "apart",
    "labels_of",
    "warn_of_broken",
    "warn_of_fitted",
    "warn_of_guessing",
    "warn_of_points",
    "warn_of_seen",
]

# A smaller share may be copies that occur in both.
SEEN = 0.1
# Nobody means to lose so many of all answers.
MUCH = 0.5
# So few samples may be guessed wrong by a good model.
FEW = 400


def apart(model: BranchyModel, data: Any, y: Any) -> tuple[Any, Any]:
    """Samples and labels, also where they come as Keras' `validation_data`: (x, y)."""
    if y is not None or not isinstance(data, tuple) or len(data) != 2:
        return data, y
    if len(model.inputs) > 1 and not isinstance(data[0], (list, tuple, dict)):
        return data, y  # an array for each of two inputs
    return data


def labels_of(verb: str, labels: np.ndarray | None, data: Any) -> np.ndarray:
    """The labels, which must be there."""
    if labels is None:
        raise ValueError(
            f"`{verb}` compares answers with labels. Received: {type(data).__name__} "
            "without labels. Pass a dataset of (x, label) batches, or y= beside an array."
        )
    return labels


def warn_of_points(targets: Mapping[str, Any]) -> None:
    """Where so much may be lost that points were meant, and a fraction is asked for."""
    for name in ("max_accuracy_drop", "max_lost_answers"):
        value = targets.get(name)
        if isinstance(value, (int, float)) and MUCH <= value <= 1:
            warnings.warn(
                f"`{name}`={value!r} lets {100 * value:g} of 100 answers be lost: it is a "
                "fraction. One point of accuracy is 0.01.",
                stacklevel=4,
            )


def warn_of_broken(names: Sequence[str], logits: Sequence[np.ndarray]) -> None:
    """Where logits are no numbers: such samples never leave, and count as they are."""
    broken = [np.flatnonzero(~np.isfinite(values).all(axis=-1)) for values in logits]
    most = max(range(len(broken)), key=lambda index: len(broken[index]))
    if len(broken[most]):
        warnings.warn(
            f"NaN or infinity at '{names[most]}' for {len(broken[most]):,} of "
            f"{len(logits[most]):,} samples, the first at index {broken[most][0]:,}. Such "
            "samples go to the last exit, and their labels mean little. Look for NaN in "
            "the samples, then in the weights.",
            stacklevel=4,
        )


def warn_of_guessing(model: BranchyModel, answers: np.ndarray, labels: np.ndarray) -> None:
    """Where the last exit does no better than chance, samples or labels are others.

    Args:
        model: The model.
        answers: [n] classes that the last exit gives.
        labels: [n] classes.
    """
    samples, chance = len(labels), 1 / model.num_classes
    if samples < FEW:
        return
    right = (answers == labels).mean()
    by_luck = chance + 2 * math.sqrt(chance * (1 - chance) / samples)
    most = np.bincount(labels).max() / samples
    if right <= by_luck:
        than = f"guessing among {model.num_classes} classes"
    elif right <= most:
        than = "the most frequent label for every sample"
    else:
        return
    warnings.warn(
        f"The last exit is right on {right:.1%}".replace("%", " %")
        + f" of {samples:,} samples, no better than {than}. Compare with training: pixels "
        "on the same scale, labels counted from 0 in the same order, a model that is "
        "trained.",
        stacklevel=4,
    )


def warn_of_seen(model: BranchyModel, data: Any, verb: str, so: str) -> None:
    """Where `fit` had the samples: by as much as `seen_data` can tell."""
    share = model._settings.seen.share(data)
    if share >= SEEN:
        warnings.warn(
            f"`fit` saw {share:.0%}".replace("%", " %") + " of the samples that "
            f"`{verb}` is given. Exits are surer and more often right on these than on "
            f"new ones, so {so}. Pass samples held out of training.",
            stacklevel=4,
        )


def warn_of_fitted(model: BranchyModel, data: Any) -> None:
    """Where temperatures or gates had the samples, and a confidence is asked for."""
    share = model._settings.fitted.share(data)
    if share >= SEEN:
        warnings.warn(
            f"Temperatures or gates were fitted to {share:.0%}".replace("%", " %")
            + " of the samples that `calibrate` is given. A `confidence` holds for scores "
            "that were there before the samples. Pass others than to `fit_temperatures` "
            "and `fit_gates`.",
            stacklevel=4,
        )
