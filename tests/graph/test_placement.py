from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from tests.passes.graphs import parse

from gossamer.graph.placement import ALREADY, Placement, place

OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool")
WEIGHTS = {"w": (4, 4, 1), "v": (4, 4, 1), "m": (8, 8), "g": (8,)}


def graph_from(body: str) -> ir.Graph:
    text = f"test (float[2,4,8] x) => (float[N,M,K] y) {{ {body} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21, "com.example" : 1]>\n{text}')
    for name, shape in WEIGHTS.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)).graph


def placed(body: str, skip: str = "") -> Placement:
    return place(graph_from(body), OPERATORS, lambda node: node.name != f"node_{skip}")


def own(layout: Placement) -> list[str | None]:
    return [value.name for value in layout.own]


def test_every_convolution_before_a_residual_sum_has_its_pair() -> None:
    layout = placed("a = Conv(x, w)  b = Relu(a)  c = Conv(b, v)  d = Add(c, b)  y = Relu(d)")
    assert own(layout) == ["x", "b", "c", "y"]
    assert {value.name: node.op_type for value, node in layout.ends.items()} == {"a": "Relu", "d": "Relu"}
    assert len(layout.layers) == 2 and not layout.left and not layout.follows


def test_a_bound_with_another_reader_in_front_is_no_end() -> None:
    layout = placed("a = Conv(x, w)  b = Relu(a)  c = Add(a, b)  y = Exp(c)")
    assert own(layout) == ["x", "a", "b", "c"] and not layout.ends


def test_clip_with_computed_bounds_is_no_end() -> None:
    layout = placed("a = Conv(x, w)  top = ReduceMax<keepdims=0>(x)  b = Clip(a, , top)  y = Conv(b, v)")
    assert own(layout) == ["x", "a", "b", "y"] and not layout.ends


def test_products_give_float_where_nobody_wants_integers() -> None:
    assert own(placed("a = MatMul(x, m)  y = Softmax(a)")) == ["x"]
    assert own(placed("a = MatMul(x, m)  b = MatMul(a, m)  y = Softmax(b)")) == ["x", "a"]
    assert own(placed("a = MatMul(x, m)  t = Transpose<perm=[0,2,1]>(a)  b = MatMul(x, t)  y = Exp(b)")) == ["x", "a"]


def test_movers_keep_the_scale_of_what_they_move() -> None:
    layout = placed(
        """a = Conv(x, w)  t = Transpose<perm=[0,2,1]>(a)  u = Transpose<perm=[0,2,1]>(t)
           s, r = Split<axis=1, num_outputs=2>(u)  b = Concat<axis=1>(r, s)  y = Conv(b, v)"""
    )
    assert own(layout) == ["x", "a", "b", "y"]
    assert {value.name: source.name for value, source in layout.follows.items()} == {
        "t": "a",
        "u": "t",
        "s": "u",
        "r": "u",
    }
    moved = {node.op_type for node in layout.integer}
    assert moved == {"Conv", "Concat", "Transpose", "Split"}


def test_values_behind_movers_of_a_float_tensor_have_their_own_range() -> None:
    layout = placed("e = Exp(x)  t = Transpose<perm=[0,2,1]>(e)  u = Transpose<perm=[0,2,1]>(t)  y = Conv(u, w)")
    assert own(layout) == ["u", "y"] and not layout.follows


def test_what_cannot_run_in_integers_is_named() -> None:
    layout = placed(
        """a = Conv(x, w)  b = Add(a, g)  c = com.example.Add(b, b)  i = Shape(x)  j = Add(i, i)  y = Identity(a)"""
    )
    assert layout.left == {
        "node_b": "one of its inputs is a constant",
        "node_c": "com.example.Add is a custom operator",
        "node_j": "its inputs are not known to be float32",
    }


def test_scope() -> None:
    layout = placed("a = Conv(x, w)  y = Conv(a, v)", skip="a")
    assert own(layout) == ["a", "y"] and [layer.node.name for layer in layout.layers] == ["node_y"]


def test_relu_inside_a_branch_is_no_end() -> None:
    layout = placed(
        """a = Conv(x, w)  top = ReduceMax<keepdims=0>(x)  c = Greater(top, top)
           y = If(c) < then_branch = t () => (float[2,4,8] p) { p = Relu(a) },
                       else_branch = e () => (float[2,4,8] q) { q = Exp(x) } >"""
    )
    assert own(layout) == ["x", "a"] and not layout.ends


def barred(body: str, name: str) -> Placement:
    return place(graph_from(body), OPERATORS, lambda _: True, {name: "too coarse"})


def test_nodes_that_need_a_pair_where_none_may_stand_are_left() -> None:
    chain = "a = Conv(x, w)  b = Relu(a)  c = Conv(b, v)  d = Add(c, b)  y = Relu(d)"
    layout = barred(chain, "b")
    assert own(layout) == [] and layout.left["node_a"] == layout.left["node_c"] == layout.left["node_d"] == "too coarse"
    layout = barred(chain, "y")
    assert own(layout) == ["x", "b", "c"] and layout.left == {"node_d": "too coarse"}


def test_a_product_may_give_what_no_pair_may_stand_on() -> None:
    layout = barred("a = MatMul(x, m)  b = MatMul(a, m)  y = Softmax(b)", "a")
    assert own(layout) == ["x"] and layout.left == {"node_b": "too coarse"}


def test_what_is_quantized_already_is_left_alone_and_counts_as_integers() -> None:
    model = parse(
        """test (float[2,4,8] x) => (float[2,4,8] y) <float s = {0.1}, uint8 z = {3}, int8 i = {0}> {
            xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)
            k = DequantizeLinear(wq, s, i)  a = Conv(xd, k)
            aq = QuantizeLinear(a, s, z)  ad = DequantizeLinear(aq, s, z)
            b = Conv(ad, v)  y = Add(b, ad) }""",
        wq=np.ones((4, 4, 1), np.int8),
        v=(4, 4, 1),
    )
    layout = place(model.ir.graph, OPERATORS, lambda _: True)
    assert layout.left == {"node_a": ALREADY}
    assert own(layout) == ["ad", "b", "y"]  # the sum reads one that is in integers already
