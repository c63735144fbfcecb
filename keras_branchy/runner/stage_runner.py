# SPDX-License-Identifier: Apache-2.0
"""StageRunner: an exported model with early exits, without TensorFlow and Keras."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_branchy.runner.drivers import open_driver
from keras_branchy.runner.manifest import Manifest
from keras_branchy.runner.result import RunnerResult
from keras_branchy.runner.samples import SampleReader
from keras_branchy.runner.stage_engine import StageEngine, rules_of
from keras_branchy.streaming import check_max_wait, in_order
from keras_branchy.thresholds import check_thresholds, gate_thresholds
from keras_branchy.walk import Walk

__all__ = ["StageRunner"]


class StageRunner:
    """Runs what `model.export_stages(path, format="litert")` wrote.

    It needs NumPy and ai-edge-litert only: `pip install 'keras-branchy[runtime]'`. Each
    sample passes through the stages until an exit is sure of it, and the answers are those
    of `BranchyModel.predict_early`. Every file is checked against the manifest's hashes
    first. One runner may be called from several threads; calls take turns.

    Args:
        path: The folder with `manifest.json`.
        threads: How many threads LiteRT computes with at most; small calls take one where
            that is faster, as their first calls tell.
        thresholds: One per exit but the last, `None` to disable an exit, instead of those
            in the manifest.

    Raises:
        FileNotFoundError: If the folder, the manifest or a file is missing.
        ValueError: If a file is damaged, or an argument is wrong.
        ImportError: If ai-edge-litert is not installed.

    Example:

    ```python
    import numpy as np
    from keras_branchy import StageRunner, networks

    model = networks.b_lenet()
    model.thresholds = [2.0]
    model.export_stages("b_lenet", verbose=0)

    runner = StageRunner("b_lenet")
    answer = runner.predict(np.zeros((3, 28, 28, 1), np.float32))
    assert answer.probabilities.shape == (3, 10) and len(answer.exits) == 3
    ```
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 1,
        thresholds: Sequence[float | None] | None = None,
    ):
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise ValueError(
                f"`threads` must be an integer of at least 1. Received: {threads!r}. "
                "Pass the number of cores to compute on."
            )
        self.manifest = Manifest.load(path)
        self._read = SampleReader(self.manifest.inputs)
        exits = self.manifest.exits[:-1]
        self._criteria = [row.criterion for row in exits]
        if thresholds is None and self.manifest.data["calibrated"]:
            thresholds = [row.threshold for row in exits]
        self.thresholds = thresholds
        self._driver: Any = open_driver(self.manifest, threads)
        self._turn = threading.Lock()
        self._in_batches = isinstance(self._driver, StageEngine)
        self._rules = rules_of(self.manifest)
        self._gates = self._rules.gates()
        self._done: Walk | None = None

    @property
    def exit_names(self) -> list[str]:
        """Names of the exits, in order."""
        return [row.name for row in self.manifest.exits]

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where the export was given them."""
        return self.manifest.data["class_names"]

    @property
    def thresholds(self) -> list[float | None] | None:
        """One threshold per exit but the last; those of the manifest until set."""
        return None if self._thresholds is None else list(self._thresholds)

    @thresholds.setter
    def thresholds(self, thresholds: Sequence[float | None] | None) -> None:
        self._thresholds = check_thresholds(thresholds, self.exit_names[:-1])
        self._gate = self._as_gate(self._thresholds)

    def predict(
        self, x: Any, thresholds: Sequence[float | None] | None = None
    ) -> RunnerResult:
        """Predicts with early exits.

        Args:
            x: [B, …] array, or for several inputs a dict by name or a list in order.
            thresholds: Instead of the runner's own, for this call.

        Returns:
            A `RunnerResult` of NumPy arrays.

        Raises:
            ValueError: If `x` does not fit the model, or there are no thresholds.
        """
        return self._result(x, self._gate_of(thresholds))

    def _gate_of(self, thresholds: Sequence[float | None] | None) -> np.ndarray:
        gate = self._gate
        if thresholds is not None:
            gate = self._as_gate(check_thresholds(thresholds, self.exit_names[:-1]))
        if gate is None:
            raise ValueError(
                "The exported model has no thresholds, so it cannot tell who leaves "
                "early. Received: thresholds=None. Calibrate before the export with "
                "model.calibrate(validation_data, max_accuracy_drop=0.01), or pass "
                f"thresholds= with {len(self._criteria)} floats."
            )
        return gate

    def _result(self, x: Any, gate: np.ndarray) -> RunnerResult:
        start = time.perf_counter()
        samples, count = self._read(x)
        labels, probabilities, exits, scores = self._answers(samples, count, gate)
        seconds, exit_count = time.perf_counter() - start, len(self._criteria) + 1
        return RunnerResult(labels, probabilities, exits, scores, seconds, exit_count)

    def _answers(self, samples: dict, count: int, gate: np.ndarray) -> list[np.ndarray]:
        """Labels, probabilities, exits and scores."""
        with self._turn:
            if not self._in_batches:
                return self._driver.predict(samples, count, gate)
            walk = self._new_walk(gate, count)
            walk.enter(self._driver, samples, count)
            walk.flush(self._driver)
            self._done = walk
            return walk.answers(count)

    def _new_walk(self, gate: np.ndarray, count: int) -> Walk:
        """One for `count` samples: the last one, where it ended well, or another."""
        walk, self._done = self._done, None
        if walk is None or walk.thresholds is not gate:
            return Walk(self._rules, self._gates, gate, count)
        walk.begin(count)
        return walk

    def stream(
        self,
        batches: Iterable[Any],
        thresholds: Sequence[float | None] | None = None,
        max_wait: float | None = None,
    ) -> Iterator[RunnerResult]:
        """Predicts batch after batch, in order, in memory that stays the same.

        Where the files take several samples at a time, those that stay at an exit wait for
        others until a chunk is full, also of later batches: answers come some batches late,
        64 at most, and later stages run as fast as the first. `max_wait` bounds it.

        Args:
            batches: Each as `x` of `predict`.
            thresholds: Instead of the runner's own, for this call.
            max_wait: Seconds after which a batch is answered with the next that comes,
                though its samples are few for the later stages; 0 answers each at once.

        Yields:
            A `RunnerResult` for each batch; its `seconds` are those since it came.

        Raises:
            ValueError: As `predict` does, or if `max_wait` is negative or no number.
        """
        check_max_wait(max_wait)
        gate = self._gate_of(thresholds)
        exits = len(self._criteria) + 1
        if not self._in_batches:
            return (self._result(batch, gate) for batch in batches)
        walk = Walk(self._rules, self._gates, gate, capacity=1024)
        found = in_order(walk, self._lend, map(self._read, batches), max_wait)
        return (
            RunnerResult(labels, probabilities, taken, scores, seconds, exits)
            for (labels, probabilities, taken, scores), seconds in found
        )

    def every_exit(self, x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What each exit says of every sample, as `BranchyModel.calibrate` looks at it.

        Returns:
            scores [N, B] float32 (entropy at the last exit), labels [N, B] int64 and
            probabilities [N, B, C] float32.

        Raises:
            ValueError: If `x` does not fit the model, or a cascade with patience does not
                show it.
        """
        samples, count = self._read(x)
        with self._turn:
            scores, labels, probabilities = self._driver.every_exit(samples, count)
        return scores, labels, probabilities

    @contextlib.contextmanager
    def _lend(self) -> Iterator[StageEngine]:
        """The engine, which no other call may run meanwhile."""
        with self._turn:
            yield self._driver

    def _as_gate(self, thresholds: Sequence[float | None] | None) -> np.ndarray | None:
        if thresholds is None:
            return None
        return gate_thresholds(thresholds, self._criteria)
