"""Where the numbers of tensors lie in the bytes of an ONNX file.

The file is walked as the protocol buffers that it is, without being parsed into objects: what is cut out can be put
back to the byte, whoever wrote the file and however.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from gossamer.errors import ModelError

# field numbers of onnx.proto: where graphs and tensors are found inside others
GRAPH = {1: "node", 5: "tensor"}
NODE = {5: "attribute"}
ATTRIBUTE = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"}
MODEL = {7: "graph", 25: "function"}
FUNCTION = {7: "node"}
INSIDE = {"model": MODEL, "graph": GRAPH, "node": NODE, "attribute": ATTRIBUTE, "function": FUNCTION}
MODEL_GRAPH, GRAPH_OUTPUT = 7, 12
DIMS, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA, LOCATION = 1, 2, 4, 8, 9, 14
EXTERNAL = 1  # location
FLOAT = 1
DEPTH = 100  # graphs within graphs


class Span(NamedTuple):
    """The bytes of a tensor's numbers: where, how many, of which type (as TensorProto numbers it), and of what shape.

    The shape is empty where the bytes cannot be so many numbers.
    """

    offset: int
    length: int
    data_type: int
    shape: tuple[int, ...]
    name: str

    @property
    def size(self) -> int:
        """How many numbers the shape holds."""
        return prod(self.shape)


def spans(data: bytes) -> list[Span]:
    """Of all tensors that hold their numbers as raw bytes or packed floats, in the order of the file.

    Raises:
        ModelError: the bytes are no protocol buffer.
    """
    view = memoryview(data)
    try:
        found = [span for begin, end in _inside(view, 0, len(data), "model", 0) for span in _tensor(view, begin, end)]
    except (IndexError, ValueError) as error:
        raise ModelError(f"not an ONNX file: {error}; give a model that onnx can read") from None
    return sorted(found)


def outside(data: bytes) -> str:
    """Why a model is not whole: a weight lies in another file, or there is no graph; or "".

    Raises:
        ModelError: the bytes are no protocol buffer.
    """
    view = memoryview(data)
    try:
        for begin, end in _inside(view, 0, len(data), "model", 0):
            fields = {field: (first, last) for field, _, first, last in _fields(view, begin, end)}
            if LOCATION in fields and _varint(view, *fields[LOCATION])[0] == EXTERNAL:
                first, last = fields.get(NAME, (0, 0))
                return f"the weight {data[first:last].decode('utf-8', 'replace')!r} lies in another file"
        graphs = [
            (begin, end) for field, wire, begin, end in _fields(view, 0, len(data)) if (field, wire) == (MODEL_GRAPH, 2)
        ]
        outputs = any(field == GRAPH_OUTPUT for begin, end in graphs for field, *_ in _fields(view, begin, end))
    except (IndexError, ValueError) as error:
        raise ModelError(f"not an ONNX file: {error}; give a model that onnx can read") from None
    return "" if outputs else "there is no graph in it"


def _inside(data: memoryview, start: int, stop: int, kind: str, depth: int) -> Iterator[tuple[int, int]]:
    if depth > DEPTH:
        raise ValueError(f"graphs lie more than {DEPTH} deep in each other")
    for field, wire, begin, end in _fields(data, start, stop):
        inner = INSIDE[kind].get(field)
        if wire != 2 or inner is None:
            continue
        if inner == "tensor":
            yield begin, end
        else:
            yield from _inside(data, begin, end, inner, depth + 1)


def _tensor(data: memoryview, start: int, stop: int) -> Iterator[Span]:
    shape: list[int] = []
    data_type, name, where = 0, "", None
    for field, wire, begin, end in _fields(data, start, stop):
        if field == DIMS and wire == 0:
            shape.append(_varint(data, begin, end)[0])
        elif field == DIMS and wire == 2:
            while begin < end:
                size, begin = _varint(data, begin, end)
                shape.append(size)
        elif field == DATA_TYPE and wire == 0:
            data_type = _varint(data, begin, end)[0]
        elif field == NAME and wire == 2:
            name = bytes(data[begin:end]).decode("utf-8", "replace")
        elif field in (RAW_DATA, FLOAT_DATA) and wire == 2 and where is None:
            where = (begin, end - begin, field)
    if where is not None and where[1] and (where[2] == RAW_DATA or data_type == FLOAT):
        fits = prod(shape) <= 8 * where[1]  # what is written as less than none reads as very much
        yield Span(where[0], where[1], data_type, tuple(shape) if fits else (), name)


def _fields(data: memoryview, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and where the value begins and ends."""
    at = start
    while at < stop:
        key, at = _varint(data, at, stop)
        wire = key & 7
        if wire == 2:
            length, begin = _varint(data, at, stop)
        elif wire == 0:
            begin, length = at, _varint(data, at, stop)[1] - at
        elif wire in (1, 5):
            begin, length = at, 8 if wire == 1 else 4
        elif wire in (3, 4):  # around a group, which protocol buffers had once
            begin, length = at, 0
        else:
            raise ValueError(f"byte {at} has a field of the unknown kind {wire}")
        if begin + length > stop:
            raise ValueError(f"a field at byte {at} is longer than what holds it")
        at = begin + length
        yield key >> 3, wire, begin, at


def _varint(data: memoryview, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"a number at byte {at} does not end")
