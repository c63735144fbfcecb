# SPDX-License-Identifier: Apache-2.0
"""Where an exit could go: what is computed by then, and what has to be carried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_branchy.cost.calls import Call, bytes_of, input_specs, walk

if TYPE_CHECKING:
    import keras

__all__ = ["ExitPlace", "suggest_exits"]

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
    """

    tap: str
    shape: tuple[int, ...]
    macs: int
    share: float
    live_tensors: int
    bytes_carried: int


def suggest_exits(
    backbone: keras.Model, *, places: int | None = 10, input_shape: Any = None
) -> list[ExitPlace]:
    """Lists where exits could go, evenly over the cost of the backbone.

    Between two marks of equal cost it is the place with the fewest tensors, and among
    these the fewest bytes, to carry on that is listed, so that the cut is between blocks
    where it can be. Which places are good for accuracy only training can tell; earlier
    exits want larger heads.

    Args:
        backbone: A functional or built Sequential classifier.
        places: About how many to list; `None` lists every layer.
        input_shape: As for `count_macs`.

    Returns:
        Places by rising cost, which is an order that `BranchyModel` takes.

    Raises:
        ValueError: If `backbone` has several outputs, a layer's type is not known (see
            `register`), or a size is not.

    Example:

    ```python
    import keras
    from keras_branchy import cost

    backbone = keras.applications.MobileNetV2(weights=None)
    for place in cost.suggest_exits(backbone, places=4):
        print(f"{place.tap:25} {place.share:6.1%} {place.bytes_carried:9,} bytes")
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
    return usable if places is None else _spread(usable, places)


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
        return ExitPlace(call.address, shape, macs, macs / whole, len(live), size)

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
