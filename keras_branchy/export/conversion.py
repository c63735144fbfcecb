# SPDX-License-Identifier: Apache-2.0
"""Files from the signatures of a SavedModel; runs in the child process only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["convert_to_litert", "convert_to_onnx", "describe_saved_model"]


def convert_to_litert(
    saved_model: str,
    files: dict[str, list[str]],
    quantization: str | None,
    calibration: str | None,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Writes LiteRT files and tells what is in them.

    Args:
        saved_model: Folder of the SavedModel.
        files: Path of each file to write, and the signatures that go into it.
        quantization: As in `export_stages`.
        calibration: Folder of `<signature>.npz`, for int8: arrays [calls, batch, …] by
            input name.
        say: Takes a line of progress.

    Returns:
        For each path: `operations`, and `signatures` with the tensors of each.

    Raises:
        ValueError: If a file holds an operation that plain LiteRT does not have.
    """
    found = {}
    for path, signatures in files.items():
        content = _convert(saved_model, signatures, quantization, calibration)
        operations = operations_in(content)
        _check_operations(operations, path)
        Path(path).write_bytes(content)
        found[path] = {"operations": operations, "signatures": _tensors(content)}
        say(f"{Path(path).name}, {len(content):,} bytes")
    return found


def _convert(
    saved_model: str,
    signatures: list[str],
    quantization: str | None,
    calibration: str | None,
) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(
        saved_model, signature_keys=signatures
    )
    builtins = tf.lite.OpsSet.TFLITE_BUILTINS
    converter.target_spec.supported_ops = [builtins]
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        converter.representative_dataset = _samples(Path(calibration or ""), signatures)
        # Operations without an int8 form, as local response normalisation, stay float.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            builtins,
        ]
    try:
        return converter.convert()
    except Exception as error:
        if type(error).__name__ != "ConverterError":
            raise
        lines = [line for line in str(error).splitlines() if "error:" in line]
        raise ValueError(
            "LiteRT has no operation of its own for a part of the model. Received: "
            f"{(lines or [str(error)])[0].strip()[:300]}. Replace the layer that makes it; "
            "recurrent layers need a fixed batch: leave batch_size at 1."
        ) from error


def _samples(folder: Path, signatures: list[str]) -> Callable[[], Iterator[Any]]:
    def give() -> Iterator[Any]:
        for signature in signatures:
            with np.load(folder / f"{signature}.npz") as arrays:
                tensors = {name: arrays[name] for name in arrays.files}
            for index in range(len(next(iter(tensors.values())))):
                yield signature, {name: value[index] for name, value in tensors.items()}

    return give


def operations_in(content: bytes) -> list[str]:
    """Names of the kinds of operation in a LiteRT file; custom ones as `CUSTOM:name`."""
    from ai_edge_litert import schema_py_generated as schema

    names = {
        value: name
        for name, value in vars(schema.BuiltinOperator).items()
        if name[0] != "_"
    }
    model = schema.Model.GetRootAsModel(content, 0)
    codes = []
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        custom = (code.CustomCode() or b"").decode()
        codes.append(f"CUSTOM:{custom}" if custom else names.get(number, str(number)))
    return sorted(set(codes))


def _check_operations(operations: list[str], path: str) -> None:
    foreign = [name for name in operations if name.startswith("CUSTOM:")]
    if foreign:
        raise ValueError(
            f"'{Path(path).name}' holds operations that LiteRT does not bring along. "
            f"Received: {foreign}. Replace the layers that make them by stock ones."
        )


def _tensors(content: bytes) -> dict[str, dict[str, list[dict[str, Any]]]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    found = {}
    for signature in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(signature)
        found[signature] = {
            "inputs": _described(runner.get_input_details()),
            "outputs": _described(runner.get_output_details()),
        }
    return found


def _described(details: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name, detail in details.items():
        free = detail.get("shape_signature", detail["shape"]).tolist()
        scale, zero_point = detail["quantization"]
        quantized = {"scale": float(scale), "zero_point": int(zero_point)}
        rows.append(
            {
                "name": name,
                "shape": [None if size == -1 else size for size in free],
                "dtype": np.dtype(detail["dtype"]).name,
                "quantization": quantized if scale else None,
            }
        )
    return rows


def convert_to_onnx(
    saved_model: str, files: dict[str, str], opset: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Writes one ONNX file per signature; as `convert_to_litert`."""
    import tensorflow as tf
    import tf2onnx

    loaded = tf.saved_model.load(saved_model)
    found = {}
    for path, name in files.items():
        signature = loaded.signatures[name]
        specs = list(signature.structured_input_signature[1].values())
        call = tf.function(_by_position(signature, [spec.name for spec in specs]))
        proto, _ = tf2onnx.convert.from_function(call, input_signature=specs, opset=opset)
        content = proto.SerializeToString()
        Path(path).write_bytes(content)
        operations = sorted({node.op_type for node in proto.graph.node})
        found[path] = {"operations": operations, "signatures": {name: _onnx(proto)}}
        say(f"{Path(path).name}, {len(content):,} bytes")
    return found


def _by_position(signature: Any, names: list[str]) -> Callable[..., Any]:
    """A signature as a function of its tensors in order, as tf2onnx calls it."""

    def call(*tensors: Any) -> Any:
        return signature(**dict(zip(names, tensors, strict=True)))

    return call


def _onnx(proto: Any) -> dict[str, list[dict[str, Any]]]:
    import onnx

    def described(values: Any) -> list[dict[str, Any]]:
        rows = []
        for value in values:
            kind = value.type.tensor_type
            sizes = [dim.dim_value or None for dim in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            row = {"name": value.name, "shape": sizes, "dtype": dtype}
            rows.append({**row, "quantization": None})
        return rows

    graph = proto.graph
    return {"inputs": described(graph.input), "outputs": described(graph.output)}


def describe_saved_model(path: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The signatures and operations of a SavedModel; as `convert_to_litert`.

    Raises:
        ValueError: If it holds an operation that TensorFlow alone does not have.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    signatures: dict[str, Any] = {}
    operations: set[str] = set()
    for name, signature in loaded.signatures.items():
        if name == "serving_default":
            continue  # the first stage once more
        given = signature.structured_input_signature[1]
        signatures[name] = {
            "inputs": [_spec(key, spec) for key, spec in given.items()],
            "outputs": [
                _spec(key, spec) for key, spec in signature.structured_outputs.items()
            ],
        }
        graph = signature.graph.as_graph_def()
        bodies = [graph.node, *(body.node_def for body in graph.library.function)]
        operations.update(node.op for nodes in bodies for node in nodes)
    say(f"{Path(path).name}, {len(signatures)} signatures")
    return {path: {"operations": sorted(operations), "signatures": signatures}}


def _spec(name: str, spec: Any) -> dict[str, Any]:
    row = {"name": name, "shape": spec.shape.as_list(), "dtype": spec.dtype.name}
    return {**row, "quantization": None}
