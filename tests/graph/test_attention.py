from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from gossamer.graph.attention import HEADS_FIRST, match_parted, match_whole
from gossamer.graph.sizes import Size, Sizes

BODY = """
q = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4) s = MatMul(q, kt)
half = Constant<value_float=0.5>() w = Mul(s, half)
a = Add(w, mask) p = Softmax<axis=-1>(a) o = MatMul(p, v) b = Transpose<perm=[0,2,1,3]>(o)
"""
FEEDS = "float[N, L, 2, 4] q4, float[N, T, 2, 4] k4, float[N, 2, T, 5] v, float[N, 1, 1, T] mask"


def graph_of(body: str, feeds: str = FEEDS) -> tuple[ir.Graph, Sizes]:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g ({feeds}) => (float[A, B, C, D] b) {{ {body} }}'
    )
    inferred = onnx.shape_inference.infer_shapes(proto)
    graph = ir.serde.deserialize_model(inferred).graph
    for node in [node for node in graph if node.op_type == "Constant"]:
        value = node.outputs[0]
        value.const_value = ir.tensor(node.attributes["value_float"].as_float())
    return graph, Sizes(graph)


def node(graph: ir.Graph, output: str) -> ir.Node:
    return next(node for node in graph if node.outputs[0].name == output)


def test_the_parts_of_an_attention_with_heads_apart() -> None:
    graph, sizes = graph_of(BODY)
    found = match_parted(node(graph, "o"), sizes)
    assert found is not None and found.heads == 0 and found.scale == 0.5
    assert [part.value.name for part in (found.q, found.k, found.v)] == ["q", "k4", "v"]
    assert found.k.turn == HEADS_FIRST and found.v.turn == (0, 1, 2, 3)
    assert [mask.value.name for mask in found.masks] == ["mask"]
    assert found.scores == (Size(1, ("N",)), Size(2), Size(1, ("L",)), Size(1, ("T",)))


@pytest.mark.parametrize(
    ("body", "feeds"),
    [
        (BODY, FEEDS.replace("float[N, 1, 1, T] mask", "float[N, 1, M, T] mask")),  # with L = 1, M rows of scores
        (BODY, FEEDS.replace("float[N, 1, 1, T] mask", "float[M, 1, 1, T] mask")),
        (BODY, FEEDS.replace("float[N, 2, T, 5] v", "float[M, 2, T, 5] v")),
        (BODY.replace("Softmax<axis=-1>", "Softmax<axis=1>"), FEEDS),
        (BODY.replace("a = Add(w, mask)", "a = Sub(w, mask)"), FEEDS),
    ],
)
def test_what_may_be_another_function_is_none(body: str, feeds: str) -> None:
    graph, sizes = graph_of(body, feeds)
    assert match_parted(node(graph, "o"), sizes) is None


def test_only_a_product_or_a_reshape_ends_one() -> None:
    graph, sizes = graph_of(BODY)
    assert match_parted(node(graph, "p"), sizes) is None
    assert match_whole(node(graph, "b"), sizes) is None
