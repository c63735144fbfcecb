# SPDX-License-Identifier: Apache-2.0
"""What turns the exits' logits into the scores that thresholds are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras

from keras_branchy.learned_gate import check_gates
from keras_branchy.per_exit import MultiExitTraining
from keras_branchy.seen_data import SeenData
from keras_branchy.temperature import check_temperatures

if TYPE_CHECKING:
    from keras_branchy.learned_gate import GateReport
    from keras_branchy.temperature import TemperatureReport

__all__ = ["ExitScores", "Settings"]


@dataclass
class Settings:
    """What Keras must not track: it would put stages into the `.keras` file."""

    thresholds: list[float | None] | None = None
    patience: int | None = None
    ensemble: bool = False
    temperatures: list[float] | None = None
    gates: list[list[float] | None] | None = None
    cut: tuple | None = None
    stages: tuple | None = None
    all_exits: keras.Model | None = None
    early_exit: Any = None
    early_exit_call: Any = None
    early_exit_limits: tuple | None = None  # what they are for, and the tensor
    batch_size: int | None = None  # for arrays
    seen: SeenData = field(default_factory=SeenData)
    fitted: SeenData = field(default_factory=SeenData)

    def forget_stages(self) -> None:
        """Drops what was made of the cut, and what was chosen on its scores."""
        self.stages = self.all_exits = self.gates = None
        self.fitted = SeenData()
        self.forget_scores()

    def forget_scores(self) -> None:
        """Drops the traced scores, and the thresholds that were chosen on them."""
        self.early_exit = self.early_exit_call = self.thresholds = None


class ExitScores(MultiExitTraining):
    """Ensemble, temperatures and learned gates of a `BranchyModel`, and their fitting.

    Each makes the scores of what comes after it: temperatures are fitted to the ensemble's
    logits, gates to the divided ones, and thresholds to the scores of gates. Changing one
    unsets what follows.
    """

    _settings: Settings

    @property
    def criteria(self) -> list[str]:
        """The criterion of every exit but the last."""
        return [branch.criterion for branch in self.branches]

    @property
    def ensemble(self) -> bool:
        """Whether an exit answers together with those before it; False at first.

        Its logits are then the mean of theirs (`keras_branchy.stage_logits`): label,
        probabilities and score at every exit, the last one too, are the ensemble's.
        Stages hand the running sum on, in exported files as well; `predict`, `evaluate`
        and `fit` see each exit by itself. Setting it unsets `temperatures`, `gates` and
        `thresholds`.
        """
        return self._settings.ensemble

    @ensemble.setter
    def ensemble(self, ensemble: bool) -> None:
        if not isinstance(ensemble, bool):
            raise ValueError(
                "`ensemble` says whether an exit answers together with those before it. "
                f"Received: ensemble={ensemble!r}. Expected True or False."
            )
        if ensemble != self._settings.ensemble:
            self._settings.ensemble = ensemble
            self._settings.temperatures = None
            self._settings.forget_stages()

    @property
    def temperatures(self) -> list[float]:
        """What the logits of each exit are divided by, the last exit's too; 1.0 at first.

        `fit_temperatures` chooses them. Stages, staged inference, `calibrate` and exported
        files hold the divided logits; `predict`, `evaluate` and `fit` see the exits as
        they are. Other temperatures make other scores: setting them sets `gates` and
        `thresholds` to `None`, and what `stages()` gave before divides by the old ones.
        """
        return check_temperatures(self._settings.temperatures, self.exit_names)

    @temperatures.setter
    def temperatures(self, temperatures: Sequence[float] | None) -> None:
        chosen = check_temperatures(temperatures, self.exit_names)
        if chosen != self.temperatures:
            self._settings.temperatures = chosen
            self._settings.forget_stages()

    @property
    def gates(self) -> list[list[float] | None]:
        """The coefficients of learned gates, one entry per exit but the last.

        Four floats, as `criteria.COEFFICIENTS` names them, at an exit with
        `criterion="learned"`; `None` at any other, and until `fit_gates` has set them.
        Setting them sets `thresholds` to `None`.
        """
        return check_gates(self._settings.gates, self.criteria)

    @gates.setter
    def gates(self, gates: Sequence[Sequence[float] | None] | None) -> None:
        chosen = check_gates(gates, self.criteria)
        if chosen != self.gates:
            self._settings.gates = chosen
            self._settings.forget_scores()

    def fit_temperatures(
        self,
        data: Any,
        y: Any = None,
        *,
        batch_size: int | None = None,
        verbose: Any = "auto",
    ) -> TemperatureReport:
        """Fits a temperature to each exit on held-out data, and sets `temperatures`.

        A temperature divides an exit's logits so that its probabilities are about as often
        right as they say; no answer of an exit changes, but who leaves does
        (`keras_branchy.temperature`). Choose thresholds afterwards, on other samples where
        `calibrate` is to hold with a `confidence`.

        Args:
            data: As for `calibrate`: samples that `fit` has not seen.
            y: Labels [B] (integers or one-hot), where `data` is an array.
            batch_size: Samples at a time for arrays, 32 by default.
            verbose: As in `predict`.

        Returns:
            A `TemperatureReport`; print it.

        Raises:
            ValueError: If the data has no labels or no temperature is best; the message
                names the exit.
        """
        from keras_branchy.scoring import fit_temperatures

        return fit_temperatures(self, data, y, batch_size, verbose)

    def fit_gates(
        self,
        data: Any,
        y: Any = None,
        *,
        batch_size: int | None = None,
        verbose: Any = "auto",
    ) -> GateReport:
        """Teaches exits with `criterion="learned"` when they are right; sets `gates`.

        Choose thresholds afterwards, on other samples where `calibrate` is to hold with a
        `confidence` (`keras_branchy.learned_gate`).

        Args:
            data: Samples that `fit` has not seen, with labels or without: a gate then
                learns when its exit answers as the last one does.
            y: Labels [B] (integers or one-hot), where `data` is an array.
            batch_size: Samples at a time for arrays, 32 by default.
            verbose: As in `predict`.

        Returns:
            A `GateReport`; print it.

        Raises:
            ValueError: If no exit has a learned gate, or one is right on all of the
                samples or on none.
        """
        from keras_branchy.scoring import fit_gates

        return fit_gates(self, data, y, batch_size, verbose)
