# SPDX-License-Identifier: Apache-2.0
"""Figures of what a model did on labelled samples, as PNG files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_branchy.cli.files import in_place_of

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["check_figures", "draw"]

RESOLUTION = 110  # dots an inch
MOST_CLASSES = 200  # in a table that can be read


def check_figures(folder: Path | None) -> None:
    """Refuses to draw where it cannot, before anything is computed.

    Raises:
        ValueError: If there is a file where the folder would be.
        ImportError: If matplotlib is not installed.
    """
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"--figures names a folder. Received: {folder}, which is a file. Name another."
        )
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            f"--figures draws with matplotlib, which cannot be imported: {error}. Install "
            "it: pip install 'keras-branchy[plots]'."
        ) from error
    matplotlib.use("agg")


def draw(
    folder: Path,
    model: BranchyModel,
    logits: np.ndarray,
    labels: np.ndarray,
    shares: list[float],
    accuracy_where_taken: list[float | None],
) -> list[str]:
    """Writes the figures to a folder, and returns the names of the files.

    Args:
        folder: Made where it is missing; files of these names are replaced.
        model: The model, for its criteria, thresholds and names.
        logits: [N, n, C] of all exits.
        labels: [n] right classes.
        shares: [N] who leaves where.
        accuracy_where_taken: [N] how many of these are right.
    """
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, ax in _figures(model, logits, labels, shares, accuracy_where_taken):
        path = folder / f"{name}.png"
        with in_place_of(path) as unfinished:
            ax.figure.savefig(unfinished, dpi=RESOLUTION)
        plt.close(ax.figure)
        written.append(path.name)
    return written


def _figures(
    model: BranchyModel,
    logits: np.ndarray,
    labels: np.ndarray,
    shares: list[float],
    accuracy: list[float | None],
) -> Iterator[tuple[str, Any]]:
    from keras_branchy import plots
    from keras_branchy.criteria import gate_scores
    from keras_branchy.export.decisions import score_all

    names = model.exit_names
    scores, given = score_all(logits, model.criteria, model.gates)
    right = given == labels
    there = [np.nan if value is None else value for value in accuracy]
    yield "exit_shares", plots.exit_shares(shares, there, names=names)
    yield (
        "exit_histograms",
        plots.exit_histograms(
            scores[:-1],
            right[:-1],
            model.criteria,
            thresholds=model.thresholds,
            names=names[:-1],
        )[0],
    )
    sure, _ = gate_scores(logits, "max_probability")
    if np.isfinite(sure).all():
        yield "reliability", plots.reliability(sure, right, names=names)[0]
    if model.num_classes <= MOST_CLASSES:
        yield "confusion", plots.confusion(labels, given, names=names)[0]
    parts = _costs(model)
    if parts is not None:
        plain = float(np.sum(parts["trunk"]))
        yield "cost_stack", plots.cost_stack(parts, plain=plain, names=names)


def _costs(model: BranchyModel) -> dict[str, list[int]] | None:
    from keras_branchy import cost

    try:
        rows = cost.stage_costs(model)
    except ValueError:  # the table of costs has told
        return None
    return {
        "trunk": [row.trunk_macs for row in rows],
        "head": [row.head_macs for row in rows],
    }
