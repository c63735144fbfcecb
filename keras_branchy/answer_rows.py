# SPDX-License-Identifier: Apache-2.0
"""What samples are told, a row each, in arrays that stay from call to call."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_branchy.native_step import Answers, address

__all__ = ["ANSWERS", "AnswerRows"]

ANSWERS = ("labels", "probabilities", "exits", "scores")
_COUNTED = ("previous", "agreed")


class AnswerRows:
    """Answers of samples, into which both NumPy and compiled steps write.

    Args:
        num_classes: Number of classes.
        patient: Whether agreeing exits are counted.
        capacity: How many rows.

    Attributes:
        labels: [capacity] int64.
        probabilities: [capacity, C] float32.
        exits: [capacity] int64.
        scores: [capacity] float32.
        previous: [capacity] int64, with `patient`: the last label, -1 for none.
        agreed: [capacity] int64, with `patient`: how many exits in a row gave it.
        places: Where they lie, for compiled steps.
    """

    previous: np.ndarray
    agreed: np.ndarray

    def __init__(self, num_classes: int, patient: bool, capacity: int):
        self.num_classes = num_classes
        self._names = (*ANSWERS, *_COUNTED) if patient else ANSWERS
        self._patient = patient
        self.places = Answers()
        self._allocate(capacity)

    def __len__(self) -> int:
        return len(self.exits)

    def begin(self, capacity: int) -> None:
        """Makes room for so many samples, of whom nothing is known yet."""
        if capacity > len(self.exits):
            self._allocate(capacity)
        elif self._patient:
            self._nobody_met(0)

    def shift(self, gone: int, capacity: int) -> None:
        """Forgets the first rows; the others become the first of `capacity` or more."""
        old = {name: getattr(self, name) for name in self._names}
        size = len(self.exits)
        if capacity > size:
            self._allocate(capacity)
        for name, array in old.items():
            getattr(self, name)[: size - gone] = array[gone:]
        if self._patient:
            self._nobody_met(size - gone)

    def write(self, rows: Any, *answer: Any) -> None:
        """Writes labels, probabilities, exits and scores into a row, or into several."""
        label, probabilities, taken, score = answer
        self.labels[rows], self.probabilities[rows] = label, probabilities
        self.exits[rows], self.scores[rows] = taken, score

    def copies(self, first: int, count: int) -> list[np.ndarray]:
        """Labels, probabilities, exits and scores of some rows, which are the caller's."""
        if count == len(self.exits):
            return [getattr(self, name).copy() for name in ANSWERS]
        rows = slice(first, first + count)
        return [getattr(self, name)[rows].copy() for name in ANSWERS]

    def _allocate(self, capacity: int) -> None:
        self.labels = np.empty(capacity, np.int64)
        self.probabilities = np.empty((capacity, self.num_classes), np.float32)
        self.exits = np.empty(capacity, np.int64)
        self.scores = np.empty(capacity, np.float32)
        if self._patient:
            self.previous = np.empty(capacity, np.int64)
            self.agreed = np.empty(capacity, np.int64)
            self._nobody_met(0)
        for name in self._names:
            setattr(self.places, name, address(getattr(self, name)))

    def _nobody_met(self, row: int) -> None:
        """From a row on samples have met no exit yet."""
        self.previous[row:] = -1
        self.agreed[row:] = 0
