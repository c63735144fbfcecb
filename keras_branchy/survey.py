# SPDX-License-Identifier: Apache-2.0
"""What was searched on held-out samples, kept, so that further targets cost less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_branchy.answers import Answers
from keras_branchy.threshold_search import ThresholdSearch

__all__ = ["CandidatePath", "Survey"]

Cuts = tuple[int, ...]


class Survey:
    """Held-out answers with all that was searched on them.

    Sorted scores, fronts, parts and paths depend on the samples, and not on the confidence
    that is asked for, so each is made once.

    Args:
        answers: The samples.
    """

    def __init__(self, answers: Answers):
        self.answers = answers
        self.paths: dict[tuple[str, str], CandidatePath] = {}
        self._searches: dict[bytes, ThresholdSearch] = {}
        self._fronts: dict[tuple[bytes, bool], list[Cuts]] = {}
        self._parts: dict[tuple[int, int], tuple[Survey, Answers]] = {}

    def search(self, counted: np.ndarray) -> ThresholdSearch:
        """The search that counts these answers [N, n] bool."""
        key = counted.tobytes()
        if key not in self._searches:
            answers = self.answers
            self._searches[key] = ThresholdSearch(
                answers.scores,
                counted,
                answers.costs,
                answers.criteria,
                answers.leaving,
            )
        return self._searches[key]

    def front(self, counted: np.ndarray, thorough: bool = True) -> list[Cuts]:
        """The front of that search, as `ThresholdSearch.front` gives it."""
        key = counted.tobytes(), thorough
        if key not in self._fronts:
            self._fronts[key] = self.search(counted).front(thorough)
        return self._fronts[key]

    def parts(self, tested: int, seed: int) -> tuple[Survey, Answers]:
        """The samples drawn to choose on, and `tested` others to test on."""
        if (tested, seed) not in self._parts:
            order = np.random.default_rng(seed).permutation(self.answers.samples)
            chosen_by, tested_on = order[tested:], order[:tested]
            self._parts[tested, seed] = (
                Survey(self.answers.of(chosen_by)),
                self.answers.of(tested_on),
            )
        return self._parts[tested, seed]


class CandidatePath:
    """Candidates that are made when they are first asked for, and kept."""

    def __init__(self, made: Iterator[Any]):
        self._made = made
        self._kept: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        yield from self._kept
        for candidate in self._made:
            self._kept.append(candidate)
            yield candidate
