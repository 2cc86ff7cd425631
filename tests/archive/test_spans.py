"""Where the numbers of tensors lie, against what onnx reads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.archive.building import number

from gossamer.archive.spans import DEPTH, Span, spans
from gossamer.errors import ModelError


def named(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), name)


def everywhere() -> onnx.ModelProto:
    """A tensor in each place that may hold one."""
    deep = helper.make_graph([], "deep", [], [], initializer=[named("in a branch", 3)])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=named("in an attribute", 2, 2)),
        helper.make_node("Odd", [], ["b"], values=[named("in a list", 1), named("second of a list", 5)]),
        helper.make_node("If", ["x"], ["c"], then_branch=deep, else_branch=deep),
        helper.make_node("Odd", [], ["d"], graphs=[deep]),
    ]
    graph = helper.make_graph(nodes, "net", [], [], initializer=[named("in the graph", 4, 1)])
    inside = helper.make_node("Constant", [], ["y"], value=named("in a function", 6))
    function = helper.make_function("own", "f", [], ["y"], [inside], [helper.make_opsetid("", 20)])
    return helper.make_model(graph, functions=[function])


def test_tensors_are_found_wherever_they_are() -> None:
    data = everywhere().SerializeToString()
    found = spans(data)
    assert sorted(span.name for span in found) == sorted(
        ["in the graph", "in an attribute", "in a list", "second of a list", *["in a branch"] * 3, "in a function"]
    )
    for span in found:
        values = np.arange(span.size, dtype=np.float32)
        assert data[span.offset : span.offset + span.length] == values.tobytes()
    assert {span.name: span.shape for span in found}["in an attribute"] == (2, 2)


def test_packed_floats_and_raw_bytes_are_found_and_nothing_else() -> None:
    tensors = [
        helper.make_tensor("floats", TensorProto.FLOAT, (2,), [1.0, 2.0]),
        helper.make_tensor("halves", TensorProto.FLOAT16, (2,), [1.0, 2.0]),  # whole numbers of any length
        helper.make_tensor("words", TensorProto.STRING, (1,), [b"abcdefgh"]),
        helper.make_tensor("raw", TensorProto.INT64, (1,), b"12345678", raw=True),
        helper.make_tensor("none", TensorProto.INT8, (0,), b"", raw=True),
    ]
    data = helper.make_model(helper.make_graph([], "g", [], [], initializer=tensors)).SerializeToString()
    assert [(span.name, span.data_type, span.length) for span in spans(data)] == [("floats", 1, 8), ("raw", 7, 8)]


def test_they_come_in_the_order_of_the_file_and_do_not_overlap() -> None:
    found = spans(everywhere().SerializeToString())
    assert found == sorted(found)
    assert all(a.offset + a.length <= b.offset for a, b in pairwise(found))


@given(st.binary(max_size=60))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    try:
        found = spans(data)
    except ModelError:
        return
    assert all(span.offset + span.length <= len(data) for span in found)


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_model_with_a_wrong_byte_is_walked_or_refused(at: int, value: int) -> None:
    data = bytearray(everywhere().SerializeToString())
    data[at % len(data)] = value
    try:
        found = spans(bytes(data))
    except ModelError as error:
        assert str(error).startswith("not an ONNX file: ") and str(error).endswith("; give a model that onnx can read")
        return
    assert all(a.offset + a.length <= b.offset for a, b in pairwise(found))


def graphs_within_graphs(depth: int) -> bytes:
    graph = b"\x0a\x02\x0a\x00"
    for _ in range(depth):
        attribute = b"\x32" + number(len(graph)) + graph
        node = b"\x2a" + number(len(attribute)) + attribute
        graph = b"\x0a" + number(len(node)) + node
    return b"\x3a" + number(len(graph)) + graph


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x3a\x05abc", "a field at byte 1 is longer than what holds it"),
        (b"\x3a\x80", "a number at byte 2 does not end"),
        (b"\x3e", "byte 1 has a field of the unknown kind 6"),
        (b"\x39abc", "a field at byte 1 is longer than what holds it"),
        (graphs_within_graphs(DEPTH), f"graphs lie more than {DEPTH} deep in each other"),
        (b"PK\x03\x04 a zip file", "unknown kind|longer than what holds it|does not end"),
    ],
)
def test_what_is_no_model_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=f"not an ONNX file: .*({message})"):
        spans(data)


def test_graphs_may_lie_in_each_other() -> None:
    assert spans(graphs_within_graphs(DEPTH // 4)) == []


def test_a_shape_of_more_numbers_than_bytes_is_left_out() -> None:
    tensor = TensorProto(name="w", data_type=3, raw_data=b"12345678")
    tensor.dims.extend([-1, 4])
    data = helper.make_model(helper.make_graph([], "g", [], [], initializer=[tensor])).SerializeToString()
    [span] = spans(data)
    assert span == Span(data.index(b"12345678"), 8, 3, (), "w")
