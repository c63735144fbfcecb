# SPDX-License-Identifier: Apache-2.0
"""The gate for one sample in plain Python: for ten classes NumPy takes 25 times longer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import exp, expm1, log1p
from operator import mul
from struct import Struct

import numpy as np

from keras_branchy.criteria import check_coefficients, gate_scores

__all__ = ["Answer", "row_gate", "softmax"]

# To float32 and back, in a third of NumPy's time.
_SINGLE = Struct("f")

Answer = tuple[float, int, Sequence[float] | np.ndarray]
"""Score (a float32), label, and one probability per class."""


def row_gate(
    criterion: str, coefficients: Sequence[float] | None = None
) -> Callable[[np.ndarray], Answer]:
    """A function from the logits [1, C] of one sample to its score, label, probabilities.

    It agrees with `criteria.gate_scores`, rows of NaN and infinities included, whose
    probabilities are NaN. From some dozens of classes on `batch_gate` is the faster one.
    """
    coefficients = check_coefficients(criterion, coefficients)
    finish = partial(_learned, coefficients) if coefficients else _FINISH[criterion]

    def gate(logits: np.ndarray) -> Answer:
        row = logits[0].tolist()
        total = sum(row)
        if total - total != 0.0:  # not finite
            return _in_numpy(logits[0], criterion, coefficients)
        top = max(row)
        label = row.index(top)
        d = [z - top for z in row]
        e = [exp(x) for x in d]
        sure = e[label]  # 1; left out of the sum, or small sums would be lost in it
        e[label] = 0.0
        rest = sum(e)
        e[label] = sure
        whole = 1.0 + rest
        score = finish(top, d, e, rest, label)
        (score,) = _SINGLE.unpack(_SINGLE.pack(score))
        return score, label, [x / whole for x in e]

    return gate


def _entropy(top: float, d: list, e: list, rest: float, label: int) -> float:
    return log1p(rest) - sum(map(mul, d, e)) / (1.0 + rest)


def _max_probability(top: float, d: list, e: list, rest: float, label: int) -> float:
    return 1.0 / (1.0 + rest)


def _margin(top: float, d: list, e: list, rest: float, label: int) -> float:
    second = max([*d[:label], *d[label + 1 :]], default=-float("inf"))
    return -expm1(second) / (1.0 + rest)


def _distance(top: float, d: list, e: list, rest: float, label: int) -> float:
    return top


def _learned(
    coefficients: Sequence[float], top: float, d: list, e: list, rest: float, label: int
) -> float:
    row = (top, d, e, rest, label)
    bias, of_largest, of_entropy, of_margin = coefficients
    x = bias + of_largest * _max_probability(*row) + of_entropy * _entropy(*row)
    x += of_margin * _margin(*row)
    return 1.0 / (1.0 + exp(-x)) if x > -700.0 else 0.0  # exp(710) is an error


_FINISH = {
    "entropy": _entropy,
    "max_probability": _max_probability,
    "margin": _margin,
    "distance": _distance,
}


def _in_numpy(
    row: np.ndarray, criterion: str, coefficients: Sequence[float] | None
) -> Answer:
    score, label = gate_scores(row, criterion, coefficients)
    return float(np.float32(score)), int(label), softmax(row)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [..., C] float32; NaN in rows that are no distribution."""
    z = np.asarray(logits, np.float32)
    lost = np.isnan(z).any(-1) | np.isposinf(z).any(-1) | np.isneginf(z).all(-1)
    broken = np.asarray(lost)
    z = np.where(broken[..., None], 0.0, z)
    e = np.exp(z - z.max(-1, keepdims=True))
    shares = np.where(broken[..., None], np.nan, e / e.sum(-1, keepdims=True))
    return shares.astype(np.float32)
