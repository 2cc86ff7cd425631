"""What a model file claims about its tensors is checked before anything trusts it: lengths, places, finite numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from gossamer.errors import ModelError

CHUNK_BYTES = 1 << 20

_FIELDS = {  # where a tensor's numbers lie when they are not raw bytes
    "float_data": "FLOAT COMPLEX64",
    "double_data": "DOUBLE COMPLEX128",
    "int64_data": "INT64",
    "uint64_data": "UINT32 UINT64",
    "string_data": "STRING",
}
_FIELD_OF = {name: field for field, names in _FIELDS.items() for name in names.split()}


def check_tensors(proto: onnx.ModelProto, name: str, folder: Path | None) -> None:
    """Every tensor holds as many bytes as its shape needs, and external data lies in the model's folder.

    Nothing is loaded: hostile lengths cost no memory.

    Raises:
        ModelError: naming the tensor, and the file of external data.
    """
    for tensor in _tensors(proto):
        where = f"{name}: tensor {tensor.name!r}"
        try:
            dtype = ir.DataType(tensor.data_type)
        except ValueError as error:
            raise ModelError(f"{where} has the unknown type {tensor.data_type}; export the model again") from error
        if tensor.HasField("segment") or dtype == ir.DataType.UNDEFINED or min(tensor.dims, default=0) < 0:
            raise ModelError(
                f"{where} is damaged (type {dtype.name}, shape {list(tensor.dims)}); export the model again"
            )
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, dtype, where, folder)
        else:
            _check_inline(tensor, dtype, where)


def check_finite(model: ir.Model, name: str) -> None:
    """No weight is NaN or infinite. Read in chunks, so that memory stays small whatever the model's size.

    Infinity is allowed where it has a meaning: a single number (a bound of Clip), or -Inf in what no arithmetic but
    addition reads (attention masks).

    Raises:
        ModelError: naming the tensor.
    """
    for value, tensor in _float_tensors(model):
        found = _worst(tensor)
        if found == "NaN" or (found == "Inf" and tensor.size > 1):
            raise ModelError(f"{name}: weight {value.name!r} holds {found}; train or export the model again")
        if found == "-Inf" and tensor.size > 1 and not all(_is_mask_use(node) for node, _ in value.uses()):
            raise ModelError(f"{name}: weight {value.name!r} holds Inf; train or export the model again")


def map_external(model: ir.Model) -> None:
    """Put arrays that are mapped from the file in place of references to it: they load as lazily, and can be written.

    A message made of references alone would point to files that are not beside it.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = mapped(value.const_value)


def mapped(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """A tensor over a read-only map of its file."""
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _bytes_of(tensor: onnx.TensorProto, dtype: ir.DataType) -> int:
    return int(math.prod(tensor.dims) * dtype.bitwidth + 7) // 8


def _check_inline(tensor: onnx.TensorProto, dtype: ir.DataType, where: str) -> None:
    size, shape = math.prod(tensor.dims), list(tensor.dims)
    if tensor.HasField("raw_data"):
        have, want, unit = len(tensor.raw_data), _bytes_of(tensor, dtype), "bytes"
    else:
        field = _FIELD_OF.get(dtype.name, "int32_data")
        per_number = {"COMPLEX64": 2, "COMPLEX128": 2}.get(dtype.name, 1)
        packed = dtype.bitwidth if dtype != ir.DataType.STRING and dtype.bitwidth < 8 else 8
        have, want, unit = len(getattr(tensor, field)), (size * per_number * packed + 7) // 8, "numbers"
    if have != want:
        raise ModelError(
            f"{where} has shape {shape} of {dtype.name}, {want} {unit}, and holds {have}; the file is damaged"
        )


def _check_external(tensor: onnx.TensorProto, dtype: ir.DataType, where: str, folder: Path | None) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(
            f"{where} lies in the external file {location!r}; give the model's path instead of the message"
        )
    path = _contained(folder, location, where)
    if not path.is_file():
        raise ModelError(f"{where} needs the external data file {path}, which is missing; put it beside the model")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError as error:
        raise ModelError(f"{where} has an offset or length that is no number; export the model again") from error
    want, there = _bytes_of(tensor, dtype), path.stat().st_size
    if length not in (-1, want):
        kind = f"shape {list(tensor.dims)} of {dtype.name}, {want} bytes"
        raise ModelError(f"{where} has {kind}, and declares {length}; the file is damaged")
    if offset < 0 or offset + want > there:
        raise ModelError(
            f"{where} needs bytes {offset} to {offset + want} of {path}, which has {there}; "
            "the file is cut short, copy or download it again"
        )


def _contained(folder: Path, location: str, where: str) -> Path:
    """The path of external data, which must stay inside the model's folder, symbolic links followed."""
    advice = "external data must lie in the model's folder; put both there under plain names and export again"
    if not location or "\0" in location:
        raise ModelError(f"{where} names no external data file; export the model again")
    if os.path.isabs(location) or "\\" in location or ".." in location.split("/"):
        raise ModelError(f"{where} has its data at {location!r}, which is refused: {advice}")
    path = folder / location
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(
            f"{where} has its data at {location!r}, a link that leaves the folder, which is refused: {advice}"
        )
    if path.is_file() and path.stat().st_nlink > 1:  # onnx_ir refuses these at the first read, which would be too late
        raise ModelError(
            f"{where} has its data at {location!r}, a file with several hard links, which is refused: copy it"
        )
    return path


def _float_tensors(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """All floating-point initializers and constants, with the value that carries them."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype.is_floating_point():
                yield value, value.const_value
        for node in graph:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                if tensor.dtype.is_floating_point():
                    yield node.outputs[0], tensor


def _worst(tensor: ir.TensorProtocol) -> str:
    """ "NaN", "Inf", "-Inf" or "" - what the tensor holds of these, the first in this order."""
    found = ""
    for chunk in _chunks(tensor):
        if np.isfinite(chunk).all():
            continue
        if np.isnan(chunk).any():
            return "NaN"
        found = "Inf" if found == "Inf" or np.isposinf(chunk.astype(np.float32)).any() else "-Inf"
    return found


def _chunks(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """The numbers, a megabyte at a time, valid until the next; external data is read, so no page of it stays mapped."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth >= 8:
        dtype, left = tensor.dtype.numpy().newbyteorder("<"), tensor.size
        buffer = np.empty(min(left, CHUNK_BYTES // dtype.itemsize), dtype)
        with open(tensor.path, "rb", buffering=0) as file:
            file.seek(tensor.offset or 0)
            while left:
                count = file.readinto(buffer[:left].view(np.uint8).data) // dtype.itemsize
                if not count:
                    raise ModelError(f"{tensor.path} became shorter while it was read; copy or download it again")
                left -= count
                yield buffer[:count]
        return
    flat = tensor.numpy().reshape(-1)
    step = CHUNK_BYTES // flat.itemsize
    for start in range(0, flat.size, step):
        yield flat[start : start + step]


_MASK_OPS = frozenset(
    "Add Sub Where Clip Min Max Expand Tile Pad Concat Slice Gather Reshape Squeeze Unsqueeze Transpose Trilu Cast "
    "CastLike Identity Equal Less Greater LessOrEqual GreaterOrEqual IsInf If Loop Scan ScatterND ScatterElements "
    "Split".split()
)


def _is_mask_use(node: ir.Node) -> bool:
    return node.domain != "" or node.op_type in _MASK_OPS or "Attention" in node.op_type
