"""The TFLite door: a .tflite file, float or quantized, becomes ONNX through tf2onnx."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import onnx

from gossamer.errors import MissingExtraError, ModelError
from gossamer.intake.tensorflow_graph import TF2ONNX_OPSET, check_converted, mend, quiet, reason, rename, settle

SUFFIX = ".tflite"

_SUBGRAPHS, _BUFFERS, _DATA = 2, 4, 0  # fields of the tables Model and Buffer, counted from 0 in TFLite's schema


def convert_tflite(path: Path) -> tuple[onnx.ModelProto, str]:
    """Convert a file; what is quantized in it stays so, as QuantizeLinear and DequantizeLinear nodes.

    Inputs and outputs get the names of the file's signature. An axis that the signature leaves free stays free.

    Returns:
        The ONNX message, and a note on what made it.

    Raises:
        MissingExtraError: tensorflow or tf2onnx is not installed.
        ModelError: not a TFLite file, a damaged one, or an operator that cannot be converted.
    """
    _check_content(path)
    with quiet() as errors:
        try:
            import tensorflow
            import tf2onnx
            import tf2onnx.convert
        except ImportError as error:
            raise MissingExtraError(
                f"{path} is a TFLite model, which needs tensorflow and tf2onnx: pip install 'gossamer[tflite]'"
            ) from error
        try:
            names = _names(tensorflow.lite.Interpreter(str(path)))
            proto, _ = tf2onnx.convert.from_tflite(str(path), opset=TF2ONNX_OPSET, custom_rewriter=[mend])
        except Exception as error:  # TensorFlow and tf2onnx raise many unrelated types
            raise ModelError(
                f"{path}: tf2onnx {tf2onnx.__version__} cannot convert it: {reason(error)}; "
                "export it again, or give the model it was made from"
            ) from error
        check_converted(proto, errors, str(path), f"tf2onnx {tf2onnx.__version__}")
        settle(proto)
        rename(proto, names)
    return proto, f"TFLite file converted by tf2onnx {tf2onnx.__version__}"


def _check_content(path: Path) -> None:
    """All stored tensors lie inside the file: on one cut short TensorFlow crashes, or takes all memory."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        whole = content[4:8] == b"TFL3" and _is_whole(content)
    except struct.error:  # an offset leads out of the file
        whole = False
    if not whole:
        raise ModelError(f"{path} is not a TFLite file, or is cut short; export or download it again")


def _is_whole(content: bytes) -> bool:
    (model,) = struct.unpack_from("<I", content)
    for slot in (_SUBGRAPHS, _BUFFERS):
        start, count = _vector(content, model, slot)
        if count == 0 or start + 4 * count > len(content):
            return False
    for place in range(start, start + 4 * count, 4):  # the buffers
        (offset,) = struct.unpack_from("<I", content, place)
        data, length = _vector(content, place + offset, _DATA)
        if data + length > len(content):
            return False
    return True


def _vector(content: bytes, table: int, slot: int) -> tuple[int, int]:
    """Where the elements of a FlatBuffers vector begin, and how many they are; (0, 0) if the table lacks it."""
    (back,) = struct.unpack_from("<i", content, table)
    entry = table - back
    (known,) = struct.unpack_from("<H", content, max(entry, 0))
    offset = struct.unpack_from("<H", content, entry + 4 + 2 * slot)[0] if 4 + 2 * slot < known else 0
    if offset == 0:
        return 0, 0
    (ahead,) = struct.unpack_from("<I", content, table + offset)
    start = table + offset + ahead
    return start + 4, struct.unpack_from("<I", content, start)[0]


def _names(interpreter: Any) -> dict[str, str]:
    """Tensor names to the names of the first signature; none where the file has no signature."""
    names: dict[str, str] = {}
    with contextlib.suppress(ValueError, RuntimeError, StopIteration):  # a file may lack what they are read from
        runner = interpreter.get_signature_runner(next(iter(interpreter.get_signature_list())))
        for details in (runner.get_input_details(), runner.get_output_details()):
            names.update({detail["name"]: name for name, detail in details.items()})
    return names
