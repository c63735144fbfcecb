# SPDX-License-Identifier: Apache-2.0
"""Labelled samples from an `.npz` file or from TensorFlow Datasets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_branchy.cli import tfds
from keras_branchy.cli.files import meant_file
from keras_branchy.cli.reporting import Report
from keras_branchy.cli.scaling import Pixels, rescales, resolve, scaled

if TYPE_CHECKING:
    from keras_branchy.branchy_model import BranchyModel

__all__ = ["Samples", "open_samples"]

MOST_LOOKED_AT = 1000  # samples
BYTES = 100  # what standardised floats do not reach, and bytes do


@dataclass(frozen=True)
class Samples:
    """Samples that are read when they are asked for.

    Attributes:
        source: What they are, for people.
        count: How many.
        pixels: How they are scaled.
    """

    source: str
    count: int
    pixels: Pixels
    _batches: Callable[[int], Iterator[tuple[Any, np.ndarray]]]

    def batches(self, size: int) -> Iterator[tuple[Any, np.ndarray]]:
        """Batches (x, y), scaled."""
        return self._batches(size)

    def tracked(self, size: int, report: Report, text: str) -> Iterator:
        """The same, with progress in batches."""
        return report.track(self.batches(size), text, -(-self.count // size))

    def arrays(self) -> tuple[Any, np.ndarray]:
        """All of them at once."""
        (both,) = self.batches(self.count)
        return both

    def fifth(self) -> tuple[Samples, Samples]:
        """Every fifth sample, and the others."""
        return self._every(5, True), self._every(5, False)

    def _every(self, step: int, chosen: bool) -> Samples:
        """Those whose index is a multiple of `step`, or those whose index is none."""

        def batches(size: int) -> Iterator[tuple[Any, np.ndarray]]:
            seen = 0
            for x, y in self.batches(size):
                keep = (np.arange(seen, seen + len(y)) % step == 0) == chosen
                seen += len(y)
                if keep.any():
                    yield _rows(x, keep), y[keep]

        count = -(-self.count // step)
        count = count if chosen else self.count - count
        return replace(self, count=count, _batches=batches)

    def describe(self) -> dict[str, Any]:
        """For reports."""
        return {"source": self.source, "samples": self.count, "pixels": str(self.pixels)}

    def __str__(self) -> str:
        ranges = {Pixels.unit: "bytes scaled to 0…1", Pixels.signed: "scaled to -1…1"}
        return f"{self.count:,} samples of {self.source}" + (
            f", {ranges[self.pixels]}" if self.pixels in ranges else ", as stored"
        )


def _rows(x: Any, keep: np.ndarray) -> Any:
    if isinstance(x, dict):
        return {name: array[keep] for name, array in x.items()}
    return x[keep]


def open_samples(
    name: str,
    model: BranchyModel,
    *,
    split: str | None,
    default: str,
    limit: int | None,
    pixels: Pixels,
    report: Report,
) -> Samples:
    """Finds the samples, and checks them against the model before any is computed.

    Args:
        name: Path of an `.npz` file, or a dataset's name.
        model: The model that they are for.
        split: Part of the dataset.
        default: The part that is meant without one, where the dataset has it.
        limit: At most so many.
        pixels: How they are scaled.
        report: Where progress is shown.

    Raises:
        ValueError: If they do not fit the model, or the options do not fit them.
        FileNotFoundError: If there is no such file or dataset.
    """
    if name.endswith(".npz") or Path(name).is_file():
        samples = _from_npz(Path(name), model, split, limit, pixels)
        _warn(samples, model)
        return samples
    with report.doing(f"Opening {name}"):
        found = tfds.find(name, split, default)
    _check_shape(model, found.shape, found.source)
    chosen = resolve(pixels, found.dtype, model)
    count = found.count if limit is None else min(limit, found.count)
    return Samples(
        found.source,
        count,
        chosen,
        lambda size: ((scaled(x, chosen), y) for x, y in tfds.batches(found, size, count)),
    )


def _from_npz(
    path: Path, model: BranchyModel, split: str | None, limit: int | None, pixels: Pixels
) -> Samples:
    if split is not None:
        raise ValueError(
            f"--split names a part of a TensorFlow dataset. Received: --split {split} with "
            f"{path}, which has none. Leave it out, or take --limit."
        )
    x, y = _read(path, model)
    first = next(iter(x.values())) if isinstance(x, dict) else x
    count = len(y) if limit is None else min(limit, len(y))
    if not isinstance(x, dict):
        _check_shape(model, first.shape[1:], str(path))
    several = isinstance(x, dict)
    chosen = Pixels.raw if several else resolve(pixels, first.dtype, model)

    def batches(size: int) -> Iterator[tuple[Any, np.ndarray]]:
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            if isinstance(x, dict):
                yield {key: value[part] for key, value in x.items()}, y[part]
            else:
                yield scaled(x[part], chosen), y[part]

    return Samples(path.name, count, chosen, batches)


def _read(path: Path, model: BranchyModel) -> tuple[Any, np.ndarray]:
    if not path.exists():
        raise FileNotFoundError(
            f"There is no such file. Received: {path}.{meant_file(path)}"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(
            f"{path} is no .npz file of plain arrays. Write it with "
            "numpy.savez(path, x=…, y=…)."
        ) from error
    names = [tensor.name for tensor in model.inputs]
    wanted = ["x"] if len(names) == 1 else names
    missing = [key for key in (*wanted, "y") if key not in arrays]
    if missing:
        call = ", ".join(f"{key}=…" for key in (*wanted, "y"))
        raise ValueError(
            f"An .npz file for this model holds {', '.join(wanted)} and the labels y. "
            f"Received: {path} with {sorted(arrays)}, without {missing}. Write it with "
            f"numpy.savez(path, {call})."
        )
    x = arrays["x"] if len(names) == 1 else {name: arrays[name] for name in names}
    sizes = {len(array) for array in (x.values() if isinstance(x, dict) else [x])}
    sizes.add(len(arrays["y"]))
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            "Samples and labels come in equal numbers, at least one. Received: "
            f"{path} with arrays of {sorted(sizes)} rows."
        )
    for array in x.values() if isinstance(x, dict) else [x]:
        if array.dtype.kind not in "biuf":
            raise ValueError(
                f"Samples are numbers. Received: {path} with samples of dtype "
                f"{array.dtype}."
            )
    return x, arrays["y"]


def _warn(samples: Samples, model: BranchyModel) -> None:
    """Says what is often a mistake, though it may be meant."""
    x, _ = next(samples.batches(MOST_LOOKED_AT))
    if isinstance(x, dict) or x.dtype.kind != "f":
        return
    broken = int((~np.isfinite(x)).reshape(len(x), -1).any(1).sum())
    if broken:
        warnings.warn(
            f"{broken:,} of the first {len(x):,} samples hold NaN or infinite values. "
            "Their answers mean nothing.",
            stacklevel=2,
        )
    elif np.abs(x).max(initial=0) > BYTES and not rescales(model):
        warnings.warn(
            f"Samples reach {np.abs(x).max():g}. Floats are taken as they are: if the "
            "model was trained on 0 to 1, divide them by 255 first, or store bytes.",
            stacklevel=2,
        )


def _check_shape(model: BranchyModel, shape: Any, source: str) -> None:
    wanted = tuple(model.inputs[0].shape[1:]) if len(model.inputs) == 1 else None
    given = tuple(shape)
    if wanted is None:
        raise ValueError(
            f"The model has {len(model.inputs)} inputs. Received: {source} with one. Pass "
            "an .npz file with an array for every input, by its name, and y."
        )
    fits = [given, (*given, 1), given[:-1] if given[-1:] == (1,) else given]
    for shape in fits:
        if len(shape) == len(wanted) and all(
            a in (None, b) or b is None for a, b in zip(wanted, shape, strict=True)
        ):
            return
    raise ValueError(
        f"The samples do not fit the model. Received: samples of shape {given} in "
        f"{source}. Expected {wanted}."
    )
