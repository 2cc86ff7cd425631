"""The ONNX door: a file, or a message in memory, becomes a checked and normalised Model.

Keras and TFLite models pass through doors of their own first; what those give is checked here like any other graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from gossamer.archive import is_archive
from gossamer.errors import GossamerError, ModelError
from gossamer.intake.computed_shapes import fix_shapes
from gossamer.intake.keras_model import SUFFIXES as KERAS_SUFFIXES
from gossamer.intake.keras_model import convert_keras, is_keras_model
from gossamer.intake.normalise import OLDEST_OPSET, normalise, root_cause, sort_nodes
from gossamer.intake.tflite_file import SUFFIX as TFLITE_SUFFIX
from gossamer.intake.tflite_file import convert_tflite
from gossamer.intake.weights import check_finite, check_tensors, map_external
from gossamer.nouns.model import Model

PROTOBUF_LIMIT_BYTES = 2**31 - 1

_TORCH_DOOR = "load it in Python and give the module with example inputs: gossamer.load_torch(module, example_inputs)"
_OTHER_DOORS = {  # suffix, of the name or that goes with the content -> what it is and which door to use
    **dict.fromkeys(
        (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"), f"a Python pickle, never loaded here; {_TORCH_DOOR}"
    ),
    ".pt2": f"a torch program; {_TORCH_DOOR}",
    ".safetensors": f"weights without a graph; {_TORCH_DOOR}",
    ".h5": "a Keras model; give it the suffix .h5",
    ".tflite": "a TFLite model; give it the suffix .tflite",
    ".pb": "a TensorFlow graph; `python -m tf2onnx.convert --saved-model FOLDER --output model.onnx` makes ONNX of it",
    ".ort": "ONNX Runtime's own format; give the .onnx file it was made from",
    ".xml": "an OpenVINO model; give the ONNX file it was made from",
}
_MAGIC = (  # first bytes, for files under another suffix
    (b"PK\x03\x04", 0, ".pt"),
    (b"\x80", 0, ".pkl"),
    (b"\x89HDF", 0, ".h5"),
    (b"TFL3", 4, ".tflite"),
    (b"ORTM", 4, ".ort"),
)


def load(source: Any) -> Model:
    """Read a model and give its graph the clean form that every pass relies on (see `normalise`).

    Args:
        source: the path of an ONNX, Keras, TFLite or .goss file, an `onnx.ModelProto`, a `keras.Model`, or a Model that
            was already read.

    Raises:
        MissingExtraError: the packages that a Keras or TFLite model needs are not installed.
        ArchiveError: the archive is damaged, or was packed against another model.
        ModelError: the file is absent, damaged, unsafe, older than opset 11, or of another kind; or weights hold NaN.
    """
    return normalise(read(source))


def read(source: Any) -> Model:
    """Read and check a model and leave its graph as it is. External data stays on disk, memory-mapped when used.

    Raises:
        MissingExtraError, ModelError: as `load`.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx.ModelProto):
        return _checked(source, source.graph.name or "model", None)
    if isinstance(source, (str, Path)):
        path = _existing(Path(source))
        if path.suffix.lower() in KERAS_SUFFIXES:
            return _converted(*convert_keras(path), path.name)
        if path.suffix.lower() == TFLITE_SUFFIX:
            return _converted(*convert_tflite(path), path.name)
        if is_archive(path):
            from gossamer.archive.unpacking import read_archive  # its coder is compiled, and few need it

            return _checked(_decode(read_archive(path), path), path.name, None)
        return _checked(_parse(path), path.name, path)
    if is_keras_model(source):
        return _converted(*convert_keras(source), source.name)
    if hasattr(source, "state_dict"):
        raise ModelError("a torch module needs example inputs: gossamer.load_torch(module, example_inputs)")
    raise ModelError(f"a model of type {type(source).__name__}; give the path of an ONNX file or an onnx.ModelProto")


def _converted(proto: onnx.ModelProto, note: str, name: str) -> Model:
    model = replace(_checked(proto, name, None), notes=(note,))
    fix_shapes(model.ir)
    return model


def _existing(path: Path) -> Path:
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.onnx"))
        hint = f"give the file in it: {', '.join(inside[:5])}" if inside else "there is no .onnx file in it"
        raise ModelError(f"{path} is a folder; {hint}")
    if not path.exists():
        raise ModelError(f"{path}: no such file; give the path of an ONNX file")
    return path


def _parse(path: Path) -> onnx.ModelProto:
    if path.suffix.lower() in _OTHER_DOORS:
        raise ModelError(f"{path} is {_OTHER_DOORS[path.suffix.lower()]}")
    try:
        size = path.stat().st_size
        if size > PROTOBUF_LIMIT_BYTES:
            raise ModelError(
                f"{path} has {size} bytes; above 2 GB weights must be external data: export the model again"
            )
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    return _decode(content, path)


def _decode(content: bytes, path: Path) -> onnx.ModelProto:
    if not content:
        raise ModelError(f"{path} is empty; export or download the model again")
    if content.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer, not the model; fetch it with `git lfs pull`")
    for magic, position, suffix in _MAGIC:
        if content[position:].startswith(magic):
            raise ModelError(f"{path} is {_OTHER_DOORS[suffix]}")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception as error:  # protobuf's implementations raise different types
        raise ModelError(
            f"{path} is not an ONNX file, or is cut short ({len(content)} bytes); export or download it again"
        ) from error
    return proto


def _checked(proto: onnx.ModelProto, name: str, path: Path | None) -> Model:
    where = str(path or name)
    _check_graph(proto, where)
    folder = None if path is None else path.absolute().parent
    check_tensors(proto, where, folder)
    try:
        graph = ir.serde.deserialize_model(proto)
        if folder is not None:
            ir.external_data.set_base_dir(graph.graph, folder)
        sort_nodes(graph, where)
        check_finite(graph, where)
        map_external(graph)
    except GossamerError:
        raise
    except Exception as error:  # a damaged message fails in many ways
        raise ModelError(f"{where}: the graph cannot be read: {root_cause(error)}; export the model again") from error
    return Model(graph, name, path)


def _check_graph(proto: onnx.ModelProto, where: str) -> None:
    """The message is a model, of an opset that is understood, whose every value comes from somewhere."""
    if not _is_text(proto):
        raise ModelError(f"{where}: a name in it is no text; the file is damaged, export or download it again")
    if not proto.graph.output or not proto.opset_import:
        raise ModelError(
            f"{where} is not an ONNX model, or is cut short: it holds no graph or no opset; export it again"
        )
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=None)
    if opset is not None and opset < OLDEST_OPSET:
        raise ModelError(f"{where} has opset {opset}; {OLDEST_OPSET} and up are read: export it again with opset 21")
    if proto.graph.sparse_initializer:
        first = proto.graph.sparse_initializer[0].values.name
        raise ModelError(f"{where}: weight {first!r} is a sparse initializer, which is not read; export it dense")
    _check_values(proto.graph, frozenset(), where)


def _check_values(graph: onnx.GraphProto, outer: frozenset[str], where: str) -> None:
    made = [name for node in graph.node for name in node.output if name]
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    twice = _first_repeated(made, given)
    if twice is not None:
        raise ModelError(f"{where}: value {twice!r} is made twice; the graph is damaged, export the model again")
    visible = outer.union(made, given)
    for node in graph.node:
        if not node.op_type:
            raise ModelError(f"{where}: node {node.name!r} has no operator; the file is damaged")
        for name in node.input:
            if name and name not in visible:
                label = f"{node.op_type} {node.name or node.output[0]!r}" if node.output else node.op_type
                raise ModelError(f"{where}: node {label} reads {name!r}, which nothing makes; export the model again")
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _check_values(inner, visible, where)
    for value in graph.output:
        if value.name not in visible:
            raise ModelError(f"{where}: output {value.name!r} is made by no node; export the model again")


def _is_text(message: Any) -> bool:
    """Whether all that should be text is; protobuf hands out bytes that are not UTF-8 and fails when it writes them."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        single = isinstance(value, (str, bytes)) or hasattr(value, "ListFields")
        for item in (value,) if single else value:
            if isinstance(item, bytes) or (hasattr(item, "ListFields") and not _is_text(item)):
                return False
    return True


def _first_repeated(names: Iterable[str], given: set[str]) -> str | None:
    seen = set(given)
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
