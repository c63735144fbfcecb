# SPDX-License-Identifier: Apache-2.0
"""StageRunner: an exported model with early exits, without TensorFlow and Keras."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_branchy.runner.drivers import open_driver
from keras_branchy.runner.manifest import Manifest
from keras_branchy.runner.samples import SampleReader
from keras_branchy.runner.stage_engine import StageEngine, rules_of
from keras_branchy.thresholds import check_thresholds, gate_thresholds
from keras_branchy.walk import ANSWERS, Engine, Walk

__all__ = ["CallStatistics", "RunnerResult", "StageRunner"]


@dataclass(frozen=True)
class CallStatistics:
    """What one `predict` did.

    Attributes:
        samples: How many samples it was given.
        reached: How many of them each stage computed, in exit order.
        left: How many left at each exit.
        seconds: Wall-clock time of the whole call.
    """

    samples: int
    reached: list[int]
    left: list[int]
    seconds: float


@dataclass(slots=True)
class RunnerResult:
    """Answers in the order of the input, as `BranchyModel.predict_early` gives them.

    Attributes:
        labels: [B] int64, the class of the largest logit at the exit taken.
        probabilities: [B, C] float32, the softmax at the exit taken.
        exits: [B] int64, the exit taken, an index into `StageRunner.exit_names`.
        scores: [B] float32, the score of that exit's criterion (entropy for the last).
        seconds: Wall-clock time of the call.
        num_exits: How many exits the model has.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    exits: np.ndarray
    scores: np.ndarray
    seconds: float
    num_exits: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def statistics(self) -> CallStatistics:
        """What the call did; counted when asked for, as it takes longer than a stage."""
        left = np.bincount(self.exits, minlength=self.num_exits).tolist()
        reached = [sum(left[index:]) for index in range(len(left))]
        return CallStatistics(len(self), reached, left, self.seconds)


class StageRunner:
    """Runs what `model.export_stages(path, format="litert")` wrote.

    It needs NumPy and ai-edge-litert only: `pip install 'keras-branchy[runtime]'`. Each
    sample passes through the stages until an exit is sure of it, and the answers are those
    of `BranchyModel.predict_early`. Every file is checked against the manifest's hashes
    first. One runner may be called from several threads.

    Args:
        path: The folder with `manifest.json`.
        threads: How many threads compute, each with interpreters of its own.
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
                "Pass the number of samples to compute at a time."
            )
        self.manifest = Manifest.load(path)
        self._read = SampleReader(self.manifest.inputs)
        exits = self.manifest.exits[:-1]
        self._criteria = [row.criterion for row in exits]
        if thresholds is None and self.manifest.data["calibrated"]:
            thresholds = [row.threshold for row in exits]
        self.thresholds = thresholds
        drivers = [open_driver(self.manifest) for _ in range(threads)]
        self._in_batches = isinstance(drivers[0], StageEngine)
        self._rules = rules_of(self.manifest)
        self._gates = self._rules.gates()
        self._drivers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for driver in drivers:
            self._drivers.put(driver)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._threads = threads

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
        start = time.perf_counter()
        samples, count = self._read(x)
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
        answers = self._answers(samples, count, gate)
        seconds, exit_count = time.perf_counter() - start, len(self._criteria) + 1
        labels, probabilities, exits, scores = answers
        return RunnerResult(labels, probabilities, exits, scores, seconds, exit_count)

    def _answers(self, samples: dict, count: int, gate: np.ndarray) -> list[np.ndarray]:
        """Labels, probabilities, exits and scores."""
        if not self._in_batches:
            return self._run("predict", samples, count, gate)
        with self._crew() as crew:
            walk = Walk(self._rules, self._gates, gate, self._threads, count)
            walk.enter(crew, samples, count)
            walk.flush(crew)
        return [getattr(walk, name) for name in ANSWERS]

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
        parts = self._run("every_exit", samples, count)
        return parts[0], parts[1], parts[2]

    def _run(self, verb: str, samples: dict, count: int, *args: Any) -> list[np.ndarray]:
        """Splits the samples among the threads, and joins the answers along them."""
        if self._pool is None or count < 2:
            return self._with_driver(verb, samples, count, *args)
        edges = np.linspace(0, count, min(self._threads, count) + 1).astype(int)

        def part(start: int, stop: int) -> list[np.ndarray]:
            rows = {name: value[start:stop] for name, value in samples.items()}
            return self._with_driver(verb, rows, stop - start, *args)

        parts = list(self._pool.map(part, edges[:-1].tolist(), edges[1:].tolist()))
        axis = 1 if verb == "every_exit" else 0
        return [np.concatenate(arrays, axis) for arrays in zip(*parts, strict=True)]

    @contextlib.contextmanager
    def _crew(self) -> Iterator[_Crew]:
        """The engines that no other call has just now; one at least."""
        engines = [self._drivers.get()]
        try:
            with contextlib.suppress(queue.Empty):
                while len(engines) < self._threads:
                    engines.append(self._drivers.get_nowait())
            yield _Crew(engines, self._pool)
        finally:
            for engine in engines:
                self._drivers.put(engine)

    def _with_driver(self, verb: str, samples: dict, count: int, *args: Any) -> Any:
        driver = self._drivers.get()
        try:
            return getattr(driver, verb)(samples, count, *args)
        finally:
            self._drivers.put(driver)

    def _as_gate(self, thresholds: Sequence[float | None] | None) -> np.ndarray | None:
        if thresholds is None:
            return None
        return gate_thresholds(thresholds, self._criteria)


@dataclass(frozen=True)
class _Crew:
    """Engines, and threads for all but one of them."""

    engines: Sequence[Engine]
    pool: ThreadPoolExecutor | None

    def each(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Runs the tasks at the same time, the first in this thread."""
        if self.pool is None:
            for task in tasks:
                task()
            return
        others = [self.pool.submit(task) for task in tasks[1:]]
        try:
            tasks[0]()
        finally:
            for other in others:
                other.result()
