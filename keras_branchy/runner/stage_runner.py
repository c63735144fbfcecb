# SPDX-License-Identifier: Apache-2.0
"""StageRunner: an exported model with early exits, without TensorFlow and Keras."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from keras_branchy.walk import ANSWERS, Engine, Walk

__all__ = ["StageRunner"]


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
        if not self._in_batches and count == 1:
            # The way through `_run` takes a twentieth of a small network's time.
            driver = self._drivers.get()
            try:
                return driver.predict(samples, 1, gate)
            finally:
                self._drivers.put(driver)
        if not self._in_batches:
            return self._run("predict", samples, count, gate)
        with self._crew() as crew:
            walk = Walk(self._rules, self._gates, gate, self._threads, count)
            walk.enter(crew, samples, count)
            walk.flush(crew)
        return [getattr(walk, name) for name in ANSWERS]

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
        walk = Walk(self._rules, self._gates, gate, self._threads, capacity=1024)
        found = in_order(walk, self._crew, map(self._read, batches), max_wait)
        return (
            RunnerResult(**answers, seconds=seconds, num_exits=exits)
            for answers, seconds in found
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
