# SPDX-License-Identifier: Apache-2.0
"""Which exits can save more than their heads cost, and how many must leave for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from keras_branchy.cost.staged import count_macs, stage_costs
from keras_branchy.exit_branch import ExitBranch
from keras_branchy.graph import producer

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["ExitWorth", "break_even_share", "head_macs", "judge_exits", "sentence"]

LARGE = 10  # a head of so many times the trunk before it is worth a word


@dataclass(frozen=True)
class ExitWorth:
    """Whether an exit can pay; print it for a sentence.

    Attributes:
        exit_name: The exit.
        tap: What it reads, as `exits={tap: …}` named it.
        head_macs: Multiply-accumulates of its head, which all that get there pay.
        trunk_macs: Those of the trunk up to there.
        saved_macs: Those of the trunk behind it, which who leaves does not pay.
        break_even_share: Share of all samples that must leave there for the exit to save
            what it costs, were it the only one; None where no share can.
    """

    exit_name: str
    tap: str
    head_macs: int
    trunk_macs: int
    saved_macs: int
    break_even_share: float | None

    @property
    def pays(self) -> bool:
        """Whether there is a share of samples at which the exit saves anything."""
        return self.break_even_share is not None

    def __str__(self) -> str:
        text = sentence(self.exit_name, self.head_macs, self.saved_macs)
        return f"{text} {self.remark}".rstrip()

    @property
    def remark(self) -> str:
        """A word on a head that is large beside the trunk before it; else empty.

        A head that reads an input has no trunk before it.
        """
        if not self.trunk_macs or self.head_macs < LARGE * self.trunk_macs:
            return ""
        times = self.head_macs / self.trunk_macs
        return (
            f"The head of {self.exit_name} costs {times:,.0f} times the trunk before it "
            f"({self.trunk_macs:,} MACs): try a smaller one, or a later tap."
        )


def judge_exits(model: BranchyModel, input_shape: Any = None) -> list[ExitWorth]:
    """Says of every exit but the last what share has to leave there for it to pay.

    It counts multiply-accumulates, in which a head may be cheap and yet take its time:
    `profile` measures that. No training is needed.

    Args:
        model: A `BranchyModel`.
        input_shape: As for `count_macs`.

    Returns:
        One `ExitWorth` per exit but the last.

    Raises:
        ValueError: As for `count_macs`.

    Example:

    ```python
    from keras_branchy import cost, networks

    (first,) = cost.judge_exits(networks.b_lenet())
    assert first.head_macs == 107_650 and round(first.break_even_share, 3) == 0.105
    print(first)
    ```
    """
    *rows, last = stage_costs(model, input_shape)
    whole = last.trunk_macs_to_leave
    found = []
    for row, node in zip(rows, model._branch_nodes, strict=True):
        left = whole - row.trunk_macs_to_leave
        found.append(
            ExitWorth(
                exit_name=row.exit_name,
                tap=producer(node.input_tensors[0]).operation.name,
                head_macs=row.head_macs,
                trunk_macs=row.trunk_macs_to_leave,
                saved_macs=left,
                break_even_share=break_even_share(row.head_macs, left),
            )
        )
    return found


def break_even_share(head: int, saved: int) -> float | None:
    """The share that has to leave for a head to save what it costs; None: no share can."""
    return head / saved if head < saved else None


def sentence(name: str, head: int, saved: int) -> str:
    """What a head costs all, what it saves those who leave, and what follows."""
    share = break_even_share(head, saved)
    if share is None:
        return (
            f"{name} costs more than it can save: its head takes {head:,} MACs of every "
            f"sample, and {saved:,} are left to save."
        )
    return (
        f"{name} pays if more than {100 * share:.3g} % of all samples leave there: its "
        f"head takes {head:,} MACs of every sample, and spares {saved:,} to each that "
        "leaves."
    )


def head_macs(branch: ExitBranch, shape: tuple[int, ...]) -> int | None:
    """MACs of a branch on features of this shape; None where it does not fit them."""
    try:
        fresh = ExitBranch.from_config(branch.get_config())
        features = keras.Input(shape)
        return count_macs(keras.Model(features, fresh(features)))
    except ValueError:
        return None
