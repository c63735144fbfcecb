# SPDX-License-Identifier: Apache-2.0
"""Where an exit could go: what is computed by then, carried on, and saved by leaving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_branchy.cost.break_even import break_even_share, head_macs, sentence
from keras_branchy.cost.calls import Call, bytes_of, input_specs, walk
from keras_branchy.exit_branch import ExitBranch

if TYPE_CHECKING:
    import keras

__all__ = ["ExitPlace", "ExitPlaces", "suggest_exits"]

# An exit behind this share of the cost saves too little to be suggested.
WORTHWHILE = 0.95


@dataclass(frozen=True)
class ExitPlace:
    """A layer that an exit could read.

    Attributes:
        tap: Name to give `BranchyModel(exits={tap: …})`.
        shape: Shape of the features of one sample.
        macs: Multiply-accumulates of all that the features depend on, the exit's own
            head left out.
        share: These as a share of the whole backbone.
        live_tensors: How many tensors the rest of the backbone reads of what is there;
            more than one inside a residual or dense block.
        bytes_carried: Bytes of these for one sample.
        saved_macs: Multiply-accumulates that who leaves there does not pay.
        head_macs: Those of the head, which all pay; None where it does not fit the
            features, and `ExitBranch` needs other `layers`.
    """

    tap: str
    shape: tuple[int, ...]
    macs: int
    share: float
    live_tensors: int
    bytes_carried: int
    saved_macs: int
    head_macs: int | None = None

    @property
    def break_even_share(self) -> float | None:
        """Share of all samples that must leave there, as the only exit, for it to pay.

        None where no share can, or the head is not known.
        """
        if self.head_macs is None:
            return None
        return break_even_share(self.head_macs, self.saved_macs)

    @property
    def pays(self) -> bool | None:
        """Whether any share of samples makes up for the head; None: it is not known."""
        return None if self.head_macs is None else self.break_even_share is not None

    def __str__(self) -> str:
        if self.head_macs is None:
            shape = "×".join(map(str, self.shape))
            return f"{self.tap} needs other `layers`: the head does not fit {shape}."
        return sentence(self.tap, self.head_macs, self.saved_macs)


class ExitPlaces(list[ExitPlace]):
    """Places by rising cost; print it for what they are worth."""

    @property
    def advice(self) -> str:
        """Where to begin, or that no place is worth an exit."""
        good = [place for place in self if place.pays]
        if good:
            both = sorted({0, len(good) // 2})
            taps = " and ".join(repr(good[index].tap) for index in both)
            return (
                f"{len(good)} of {len(self)} places can pay. Try {taps}; only training "
                "tells how many samples leave there."
            )
        known = [place for place in self if place.pays is not None]
        if not known:
            return (
                "No place fits this head. Pass head=ExitBranch(classes, layers=[…]) with "
                "layers for the features here."
            )
        least = min(known, key=lambda place: (place.head_macs or 0) - place.saved_macs)
        return (
            "No exit with such a head can save anything here, whoever leaves: every head "
            f"costs more than what is left behind its place. Nearest: {least} Take a "
            "smaller head, or leave the model as it is."
        )

    def __str__(self) -> str:
        return "\n".join([*map(str, self), self.advice])


def suggest_exits(
    backbone: keras.Model,
    *,
    head: ExitBranch | None = None,
    places: int | None = 10,
    input_shape: Any = None,
) -> ExitPlaces:
    """Lists where exits could go, evenly over the cost of the backbone, before training.

    Between two marks of equal cost it is the place with the fewest tensors, and among
    these the fewest bytes, to carry on that is listed, so that the cut is between blocks
    where it can be. Each place says what a head there costs and how many must leave for
    it to pay. Which places are good for accuracy only training can tell; earlier exits
    want larger heads.

    Args:
        backbone: A functional or built Sequential classifier.
        head: The exit that would be put there, to be priced at each place;
            `ExitBranch(classes)` by default. It is not built itself.
        places: About how many to list; `None` lists every layer.
        input_shape: As for `count_macs`.

    Returns:
        Places by rising cost, which is an order that `BranchyModel` takes; a list, whose
        `advice`, and last line where it is printed, says where to begin, or that no place
        is worth an exit.

    Raises:
        ValueError: If `backbone` has several outputs, `head` is no `ExitBranch`, a layer's
            type is not known (see `register`), or a size is not.

    Example:

    ```python
    import keras
    from keras_branchy import cost

    backbone = keras.applications.MobileNetV2(weights=None)
    found = cost.suggest_exits(backbone, places=4)
    for place in found:
        print(f"{place.tap:25} {place.share:6.1%} {place.bytes_carried:9,} bytes")
    print(found)  # what heads cost, and how many must leave for each to pay
    ```
    """
    specs = input_specs(backbone, input_shape)
    if len(backbone.outputs) != 1:
        raise ValueError(
            "`suggest_exits` takes a backbone with one output, its class scores. "
            f"Received: '{backbone.name}' with {len(backbone.outputs)} outputs. Pass the "
            "model as it is before it gets exits."
        )
    inputs = list(specs.values())
    graph = _Reach(walk(backbone, specs), inputs, specs[id(backbone.outputs[0])])
    found = [graph.place(index) for index in range(len(graph.calls))]
    usable = sorted(filter(None, found), key=lambda place: place.macs)
    listed = usable if places is None else _spread(usable, places)
    branch = ExitBranch(int(backbone.outputs[0].shape[-1])) if head is None else head
    return _priced(listed, branch)


def _priced(places: Sequence[ExitPlace], branch: ExitBranch) -> ExitPlaces:
    if not isinstance(branch, ExitBranch):
        raise ValueError(
            "`head` is an ExitBranch, of which each place gets its own. Received: "
            f"{branch!r}. Pass for example head=ExitBranch(10)."
        )
    shapes = {place.shape for place in places}
    costs = {shape: head_macs(branch, shape) for shape in shapes}
    return ExitPlaces(replace(p, head_macs=costs[p.shape]) for p in places)


class _Reach:
    """Which calls each call depends on; a set of calls is an integer, a bit for each."""

    def __init__(self, calls: Sequence[Call], inputs: Sequence[Any], output: Any):
        self.calls = calls
        self.macs = np.array([call.macs for call in calls], np.int64)
        self.tensors = [*inputs, *(out for call in calls for out in call.outputs)]
        self.maker: dict[int, int] = {}
        self.readers: dict[int, int] = {id(output): 1 << len(calls)}
        self.before: list[int] = []
        for index, call in enumerate(calls):
            needs = 1 << index
            for tensor in call.reads:
                made_by = self.maker.get(id(tensor))
                needs |= 0 if made_by is None else self.before[made_by]
                known = self.readers.get(id(tensor), 0)
                self.readers[id(tensor)] = known | 1 << index
            self.maker.update((id(out), index) for out in call.outputs)
            self.before.append(needs)

    def place(self, index: int) -> ExitPlace | None:
        """The place behind a call, or None where an exit would save or know nothing."""
        call, before = self.calls[index], self.before[index]
        macs = int(self.macs[[before >> i & 1 == 1 for i in range(len(self.calls))]].sum())
        features = call.outputs[0]
        whole = int(self.macs.sum())
        floating = "float" in features.dtype
        if len(call.outputs) > 1 or not floating or not 0 < macs < whole:
            return None
        live = [tensor for tensor in self.tensors if self._is_live(tensor, before)]
        size = sum(map(bytes_of, live))
        shape = tuple(features.shape[1:])
        return ExitPlace(
            call.address, shape, macs, macs / whole, len(live), size, whole - macs
        )

    def _is_live(self, tensor: Any, before: int) -> bool:
        maker = self.maker.get(id(tensor))
        there = maker is None or before >> maker & 1
        return bool(there and self.readers.get(id(tensor), 0) & ~before)


def _spread(found: Sequence[ExitPlace], places: int) -> list[ExitPlace]:
    best: dict[int, ExitPlace] = {}
    for place in found:
        if place.share > WORTHWHILE:
            continue
        mark = int(place.share * places)
        if mark not in best or _carried(place) <= _carried(best[mark]):
            best[mark] = place
    return [best[mark] for mark in sorted(best)]


def _carried(place: ExitPlace) -> tuple[int, int]:
    return place.live_tensors, place.bytes_carried
