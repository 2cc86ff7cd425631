from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.graph.edit import (
    add_initializer,
    add_node,
    attribute_float,
    attribute_int,
    constant,
    drop_unused,
    fresh_name,
    graph_of,
    is_float,
    shared_initializer,
    take_over,
)


def parse(text: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}'))


MODEL = """test (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
    a = Add(x, w)
    y = If(c) < then_branch = t () => (float[2] inner) { unused = Relu(a)  inner = Neg(a) },
                else_branch = e () => (float[2] other) <float[2] deep = {3, 4}> { other = Mul(a, deep) } >
}"""


def test_fresh_name_looks_everywhere() -> None:
    graph = parse(MODEL).graph
    for name in ("x", "w", "a", "y", "inner", "unused", "deep"):
        assert fresh_name(graph, name) == f"{name}_1"
    assert fresh_name(graph, "new") == "new"
    add_initializer(graph, "a_1", np.zeros(1, np.float32))
    assert fresh_name(graph, "a") == "a_2"


def test_shared_initializer_needs_equal_numbers_of_one_type() -> None:
    graph = parse(MODEL).graph
    first = shared_initializer(graph, "k", np.zeros(3, np.int8))
    assert shared_initializer(graph, "k", np.zeros(3, np.int8)) is first
    for other in (np.zeros(3, np.int32), np.ones(3, np.int8), np.zeros(2, np.int8)):
        assert shared_initializer(graph, "k", other) is not first
    assert shared_initializer(graph, "x", np.zeros(2, np.float32)).name == "x_1"  # an input is no constant


def test_constant() -> None:
    graph = parse(MODEL).graph
    assert np.array_equal(np.asarray(constant(graph.initializers["w"])), [1, 2])
    assert constant(None) is None and constant(graph.inputs[0]) is None and constant(graph[0].outputs[0]) is None
    assert is_float(graph.inputs[0]) and not is_float(graph.inputs[1]) and not is_float(None)
    overridable = parse(MODEL).graph
    overridable.inputs.append(overridable.initializers["w"])
    assert constant(overridable.initializers["w"]) is None  # the caller may feed another


def test_add_node_and_take_over() -> None:
    model = parse(MODEL)
    graph = model.graph
    add = graph[0]
    neg = add_node(add, "Neg", [graph.inputs[0]], "a", ir.DataType.FLOAT, ir.Shape([2]))
    node = neg.producer()
    assert node is not None and graph[0] is node and neg.name == "a_1" and node.name == "a_1/Neg"
    take_over(add, neg)
    assert neg.name == "a" and add.graph is None
    assert all(use.node.graph is not graph for use in neg.uses()), "the readers in the branches follow"
    assert len(neg.uses()) == 3
    with pytest.raises(ValueError, match="in no graph"):
        graph_of(add)


def test_take_over_of_a_graph_output() -> None:
    graph = parse("test (float[2] x) => (float[2] y) { y = Relu(x) }").graph
    relu = graph[0]
    take_over(relu, add_node(relu, "Neg", [graph.inputs[0]], "n", ir.DataType.FLOAT, None))
    assert [value.name for value in graph.outputs] == ["y"] and graph[0].op_type == "Neg"


def test_drop_unused_leaves_subgraphs_alone() -> None:
    model = parse(MODEL.replace("a = Add(x, w)", "a = Add(x, w)  dead = Exp(x)  deader = Mul(dead, v)"))
    add_initializer(model.graph, "v", np.zeros(2, np.float32))
    drop_unused(model)
    assert [node.op_type for node in model.graph] == ["Add", "If"]
    assert list(model.graph.initializers) == ["w"]
    branch = model.graph[1].attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Relu", "Neg"]


def test_attributes() -> None:
    graph = parse("test (float[2,2] x) => (float[2,2] y) { y = Gemm<transB=1, alpha=0.5>(x, x) }").graph
    assert attribute_int(graph[0], "transB", 0) == 1 and attribute_int(graph[0], "transA", 7) == 7
    assert attribute_float(graph[0], "alpha", 1.0) == 0.5 and attribute_float(graph[0], "beta", 2.0) == 2.0


def test_many_names_cost_no_search_each() -> None:
    """A clone does not know the names its original gave away without using them."""
    graph = parse(MODEL).graph
    assert [fresh_name(graph, "n") for _ in range(3)] == ["n", "n_1", "n_2"]
    assert fresh_name(graph.clone(), "n") == "n"
