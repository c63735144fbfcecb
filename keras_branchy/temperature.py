# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling: the number by which an exit's logits are divided; NumPy only.

A network that is too sure of itself has small entropies where it is wrong. Its logits ``z``
divided by a temperature ``T`` give the probabilities ``softmax(z / T)``: softer where
``T > 1``, the same classes in the same order at any ``T > 0``. ``T`` is the one that makes
the mean negative log-likelihood of held-out labels ``y`` least (Guo et al., 2017, arXiv
1706.04599), with ``β = 1/T``

    NLL(β) = mean(ln Σ e^(β·z) - β·z_y), in nats,

which is convex in ``β``. The expected calibration error (ECE) of the same paper is the mean
distance between the largest probability and the accuracy, over 15 bins of equal width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = [
    "TemperatureReport",
    "calibration_error",
    "check_temperatures",
    "fit_temperature",
    "negative_log_likelihood",
]

BINS = 15
HEADER = ("exit", "temperature", "NLL at 1", "NLL", "ECE at 1", "ECE")

# Between these float32 divides without overflow, and no softmax needs more.
SMALLEST, LARGEST = 1e-6, 1e6

# Numbers that are looked at together, so that many classes take little memory.
CHUNK = 1 << 20


@dataclass(frozen=True)
class TemperatureReport:
    """What `BranchyModel.fit_temperatures` found; print it for a table.

    Attributes:
        exit_names: Names of the N exits.
        samples: Number of held-out samples.
        temperatures: T of each exit.
        nll_before: Mean negative log-likelihood of each exit at T = 1, in nats.
        nll_after: The same at T.
        ece_before: Expected calibration error at T = 1, a fraction.
        ece_after: The same at T.
    """

    exit_names: list[str]
    samples: int
    temperatures: list[float]
    nll_before: list[float]
    nll_after: list[float]
    ece_before: list[float]
    ece_after: list[float]

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        columns = zip(
            self.exit_names,
            map("{:.4g}".format, self.temperatures),
            *(map("{:.4f}".format, x) for x in (self.nll_before, self.nll_after)),
            *(map("{:.2%}".format, x) for x in (self.ece_before, self.ece_after)),
            strict=True,
        )
        rows = [HEADER, *columns]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        return "\n".join([f"Temperatures from {self.samples:,} samples:", *lines])


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature at which held-out labels are most likely.

    Args:
        logits: [n, C] floating, before any temperature. -inf rules a class out.
        labels: [n] int, the right classes.

    Returns:
        T, a float above 0.

    Raises:
        ValueError: If there is no sample, a logit is NaN or +inf or a right class is ruled
            out, all labels are one class, or no temperature is best: the answers are all
            right, or no better than chance.

    Example:

    ```python
    import numpy as np
    from keras_branchy.temperature import fit_temperature

    logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    labels = np.array([0, 0, 1, 1])  # sure of each, and right on three of four
    temperature = fit_temperature(logits, labels)
    assert abs(1 / (1 + np.exp(-4.0 / temperature)) - 0.75) < 1e-9
    ```
    """
    logits, labels = _checked(logits, labels)

    def derivatives(beta: float) -> tuple[float, float]:
        return _derivatives(logits, labels, beta)

    # From the slopes at both ends of β: both signs, or there is no best.
    least, _ = derivatives(0.0)
    most = -sum(float(own.sum()) for _, own in _chunks(logits, labels)) / len(labels)
    if not most > 0:
        raise ValueError(
            f"No temperature is best: the exit is right on all {len(labels)} samples, and "
            "the sharper its answers the likelier. Received: logits without an error. "
            "Pass more held-out samples, none of which was trained on, or set "
            "model.temperatures by hand."
        )
    if not least < 0:
        raise ValueError(
            "No temperature is best: the exit's logits say no more of the labels than "
            f"chance. Received: {len(labels)} samples, on which the right class has no "
            "larger logit than the mean class. Check that samples and labels belong "
            "together, or train the exit first."
        )
    return float(check_temperatures([1.0 / _root(derivatives)], ["exit"])[0])


def negative_log_likelihood(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0
) -> float:
    """Mean negative log-likelihood of labels [n] under logits [n, C], in nats."""
    total = 0.0
    for d, own in _chunks(np.asarray(logits), np.asarray(labels)):
        total += float((np.log(np.exp(d / temperature).sum(-1)) - own / temperature).sum())
    return total / len(labels)


def calibration_error(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0
) -> float:
    """Expected calibration error of logits [n, C] for labels [n], a fraction."""
    apart = np.zeros(BINS)
    for d, own in _chunks(np.asarray(logits), np.asarray(labels)):
        sure = 1.0 / np.exp(d / temperature).sum(-1)
        which = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
        apart += np.bincount(which, sure - (own == 0), minlength=BINS)
    return float(np.abs(apart).sum() / len(labels))


def check_temperatures(temperatures: Any, names: Sequence[str]) -> list[float]:
    """Temperatures as a list of floats, one for each exit of `names`; `None` is all 1.

    Raises:
        ValueError: If they are no list of that length, or one is no number between 1e-6
            and 1e6.
    """
    if temperatures is None:
        return [1.0] * len(names)
    ordered = not isinstance(temperatures, (str, bytes, Mapping, Set))
    if not (ordered and hasattr(temperatures, "__iter__")) or np.ndim(temperatures) != 1:
        raise ValueError(
            "`temperatures` must be a list in exit order. Received: "
            f"temperatures={temperatures!r}. Expected {len(names)} floats, for "
            f"{list(names)}."
        )
    chosen = [_number(value) for value in temperatures]
    if len(chosen) != len(names):
        raise ValueError(
            "`temperatures` has one entry per exit, the last included. Received: "
            f"{len(chosen)} entries. Expected {len(names)}, for {list(names)}."
        )
    if not all(SMALLEST <= value <= LARGEST for value in chosen):
        raise ValueError(
            f"A temperature lies between {SMALLEST:g} and {LARGEST:g}. Received: {chosen}. "
            "1 leaves an exit's logits as they are; larger ones make it less sure."
        )
    return chosen


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`temperatures` holds floats. Received: {value!r} in it. Use 1.0 for an exit "
            "whose logits are to stay as they are."
        ) from error


def _checked(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            "A temperature is fitted to logits [samples, classes] and a label for each "
            f"sample. Received: logits of shape {logits.shape}, labels of shape "
            f"{labels.shape}. Pass held-out samples, a few hundred at least."
        )
    own = np.take_along_axis(logits, labels[:, None], -1)[:, 0]
    broken = np.isnan(logits).any(-1) | np.isposinf(logits).any(-1) | np.isneginf(own)
    if broken.any():
        raise ValueError(
            "A temperature is fitted to finite logits. Received: NaN or infinite ones in "
            f"{broken.sum()} of {len(labels)} samples, first in number "
            f"{broken.argmax()}. Leave these samples out."
        )
    if (labels == labels[0]).all():
        raise ValueError(
            "A temperature is fitted to samples of several classes. Received: "
            f"{len(labels)} samples, all of class {labels[0]}. Pass held-out samples as "
            "they come, shuffled."
        )
    return logits, labels


def _chunks(
    logits: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits less the row's largest, float64 [rows, C], and those of the labels."""
    rows = max(CHUNK // logits.shape[1], 1)
    for start in range(0, len(labels), rows):
        z = logits[start : start + rows].astype(np.float64)
        d = z - z.max(-1, keepdims=True)
        own = np.take_along_axis(d, labels[start : start + rows, None], -1)[:, 0]
        yield d, own


def _derivatives(
    logits: np.ndarray, labels: np.ndarray, beta: float
) -> tuple[float, float]:
    """First and second derivative of the NLL by β."""
    first = second = 0.0
    for d, own in _chunks(logits, labels):
        open_ = d > -np.inf
        d = np.where(open_, d, 0.0)
        p = np.where(open_, np.exp(beta * d), 0.0)
        p /= p.sum(-1, keepdims=True)
        mean = (p * d).sum(-1)
        first += float((mean - own).sum())
        second += float((p * (d - mean[:, None]) ** 2).sum())
    return first / len(labels), second / len(labels)


def _root(derivatives: Callable[[float], tuple[float, float]]) -> float:
    """Where a rising first derivative is 0: Newton's steps, kept within a bracket."""
    low = high = 1.0
    while derivatives(low)[0] > 0:
        low, high = low / 4, low
    while derivatives(high)[0] < 0:
        low, high = high, high * 4
    beta = (low + high) / 2
    for _ in range(200):
        slope, curvature = derivatives(beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = beta - slope / curvature if curvature > 0 else low
        if abs(step - beta) <= 1e-12 * beta:
            return step
        beta = step if low < step < high else (low + high) / 2
    return beta
