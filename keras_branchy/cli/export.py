# SPDX-License-Identifier: Apache-2.0
"""`keras-branchy export`: stage files and their manifest, for phones and servers."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_branchy.cli.options import Debug, ImportModules, Json, Limit, Model, PixelScale
from keras_branchy.cli.reporting import reporting
from keras_branchy.cli.scaling import Pixels
from keras_branchy.cli.tables import heading, size, table

__all__ = ["command"]

_SAMPLES = 500  # enough for int8, and read in a moment


class Format(StrEnum):
    """What `export_stages` writes."""

    litert = "litert"
    saved_model = "saved_model"
    onnx = "onnx"


class Layout(StrEnum):
    """How stages are laid out in files."""

    stages = "stages"
    signatures = "signatures"
    cascade = "cascade"


class Quantization(StrEnum):
    """Of LiteRT files."""

    float16 = "float16"
    dynamic = "dynamic"
    int8 = "int8"


def command(
    model: Model,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="The folder to write; an earlier export there is replaced.",
            show_default=False,
        ),
    ],
    format: Annotated[
        Format,
        typer.Option(
            help="litert (phones, browsers, CPU), saved_model (TensorFlow) or onnx."
        ),
    ] = Format.litert,
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="For LiteRT: stages (a file each, the default), signatures (all in one "
            "file), or cascade (a file that decides itself).",
            show_default=False,
        ),
    ] = None,
    quantization: Annotated[
        Quantization | None,
        typer.Option(help="Of LiteRT files; int8 needs --data.", show_default=False),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(
            "--batch-size",
            help="Samples in a call, fixed in the file: a number, free, or auto: 1, but "
            "free in a SavedModel.",
        ),
    ] = "auto",
    class_names: Annotated[
        Path | None,
        typer.Option(
            help="A text file with a class name per line, for the manifest.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds that each conversion step may take.")
    ] = 900.0,
    data: Annotated[
        str | None,
        typer.Option(
            help="Held-out samples that calibrate int8, refit thresholds to quantised "
            "files, and are used in the self-check: a TFDS name or an .npz file.",
            show_default=False,
            rich_help_panel="Data",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Part of the dataset, such as 'train[50000:]'.",
            show_default=False,
            rich_help_panel="Data",
        ),
    ] = None,
    limit: Limit = _SAMPLES,
    pixels: PixelScale = Pixels.auto,
    modules: ImportModules = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Exports the stages of a model, and checks the files against Keras.

    The folder appears whole, or not at all. StageRunner runs it without TensorFlow.
    """
    samples_per_call = _batch_size(batch)
    if quantization is Quantization.int8 and data is None:
        raise typer.BadParameter(
            "int8 is calibrated on samples. Received: no --data. Expected a few hundred "
            "held-out ones, such as --data mnist --split 'train[50000:]'.",
            param_hint="--quantization",
        )
    with reporting(json, debug) as report:
        from keras_branchy.cli.models import load_branchy
        from keras_branchy.cli.samples import open_samples

        names = None if class_names is None else _lines(class_names)
        loaded = load_branchy(model, modules, report)
        representative = None
        if data is not None:
            samples = open_samples(
                data,
                loaded,
                split=split,
                default="validation",
                limit=limit,
                pixels=pixels,
                report=report,
            )
            representative = samples.arrays()
        with report.doing(f"Exporting to {out}"):
            manifest = loaded.export_stages(
                out,
                format=str(format),
                layout=None if layout is None else str(layout),
                quantization=None if quantization is None else str(quantization),
                representative_data=representative,
                batch_size=samples_per_call,
                class_names=names,
                timeout=timeout,
                verbose=0,
            )
        result = {"model": str(model), "out": str(out), "manifest": manifest}
        report.result(result, show)


def _batch_size(text: str) -> int | None | str:
    if text in ("auto", "free"):
        return None if text == "free" else text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(
            f"Expected a number of at least 1, free or auto. Received: {text!r}.",
            param_hint="--batch-size",
        )
    return int(text)


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def show(result: dict[str, Any]) -> Iterable:
    """The same for people."""
    manifest, out = result["manifest"], Path(result["out"])
    kind = " ".join(
        filter(None, (manifest["format"], manifest["layout"], manifest["quantization"]))
    )
    yield heading(f"{out}: {kind}")
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    yield table(
        ("file", "size"),
        [(str(path.relative_to(out)), size(path.stat().st_size)) for path in files],
    )
    check = manifest["self_check"]
    yield (
        f"Self-check against Keras passed on {check['samples']:,} samples"
        + (" of noise (--data takes real ones)." if check["data"] == "random" else ".")
    )
    if not manifest["calibrated"]:
        yield (
            "The model has no thresholds: whoever runs these files has to choose them. "
            "keras-branchy calibrate does it before the export."
        )
