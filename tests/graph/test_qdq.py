from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from gossamer.graph.edit import add_initializer
from gossamer.graph.qdq import (
    Pair,
    dequantized,
    dequantizer,
    insert_pair,
    pair_of,
    quantized_tensor,
    stored_integers,
)


def parse(body: str, outputs: str = "float[2] y") -> ir.Graph:
    text = f'<ir_version: 10, opset_import: ["" : 21]>\ntest (float[2] x) => ({outputs}) {{ {body} }}'
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    return ir.serde.deserialize_model(proto).graph


def pair_in(graph: ir.Graph) -> Pair:
    return Pair(
        add_initializer(graph, "s", np.array(0.5, np.float32)), add_initializer(graph, "z", np.array(3, np.uint8))
    )


def flow(graph: ir.Graph) -> list[tuple[str, list[str | None], list[str | None]]]:
    return [(n.op_type, [v.name for v in n.inputs if v], [v.name for v in n.outputs]) for n in graph]


def test_pair_takes_over_the_name_and_the_graph_output() -> None:
    graph = parse("a = Relu(x)  y = Add(a, a)", "float[2] a, float[2] y")
    insert_pair(graph, graph[0].outputs[0], pair_in(graph))
    assert flow(graph) == [
        ("Relu", ["x"], ["a_float"]),
        ("QuantizeLinear", ["a_float", "s", "z"], ["a_quantized"]),
        ("DequantizeLinear", ["a_quantized", "s", "z"], ["a"]),
        ("Add", ["a", "a"], ["y"]),
    ]
    assert [value.name for value in graph.outputs] == ["a", "y"]
    assert graph.outputs[0].dtype == ir.DataType.FLOAT and graph.outputs[0].shape == [2]
    assert graph[1].outputs[0].dtype == ir.DataType.UINT8


def test_pair_of_an_input_keeps_its_name_and_passes_it_through() -> None:
    graph = parse("y = Relu(x)", "float[2] y, float[2] x")
    insert_pair(graph, graph.inputs[0], pair_in(graph))
    assert [node[1] for node in flow(graph)] == [["x", "s", "z"], ["x_quantized", "s", "z"], ["x_dequantized"]]
    assert [value.name for value in graph.outputs] == ["y", "x"] and graph.outputs[1] is graph.inputs[0]


def test_pair_for_some_readers_leaves_the_tensor_to_the_others() -> None:
    graph = parse("a = Relu(x)  b = Neg(a)  y = Add(a, b)")
    insert_pair(graph, graph[0].outputs[0], pair_in(graph), {graph[1]})
    inputs = {node[0]: node[1] for node in flow(graph)}
    assert inputs["Neg"] == ["a_dequantized"] and inputs["Add"] == ["a", "b"]


def test_pair_for_all_readers_takes_over_unless_the_graph_hands_the_tensor_out() -> None:
    graph = parse("a = Relu(x)  y = Neg(a)")
    insert_pair(graph, graph[0].outputs[0], pair_in(graph), set(graph))
    assert graph[-1].inputs[0] is not None and graph[-1].inputs[0].name == "a"
    graph = parse("a = Relu(x)  y = Neg(a)", "float[2] y, float[2] a")
    insert_pair(graph, graph[0].outputs[0], pair_in(graph), set(graph))
    assert graph[-1].inputs[0] is not None and graph[-1].inputs[0].name == "a_dequantized"
    assert graph.outputs[1] is graph[0].outputs[0]


def test_stored_weights_come_back_and_are_shared() -> None:
    graph = parse("a = Add(x, x)  y = Add(a, a)")
    integers, scale = np.arange(6, dtype=np.int8).reshape(2, 3), np.array([1, 2], np.float32)
    for node in list(graph):
        node.replace_input_with(1, dequantized(node, "w", integers, scale, 0))
    assert list(graph.initializers) == ["w_quantized", "w_scale", "w_zero_point"]
    producers = [dequantizer(node, 1) for node in graph if node.op_type == "Add"]
    assert producers[0] is not producers[1]
    for producer in producers:
        stored = None if producer is None else stored_integers(producer)
        assert stored is not None and stored.axis == 0
        assert np.array_equal(stored.integers, integers) and np.array_equal(stored.scale, scale)
        assert stored.zero_point.dtype == np.int8 and not stored.zero_point.any()
    assert dequantizer(graph[1], 0) is None and dequantizer(graph[1], 5) is None


def test_a_dequantized_activation_holds_no_weight() -> None:
    graph = parse("a = Relu(x)  y = Neg(a)")
    insert_pair(graph, graph[0].outputs[0], pair_in(graph))
    producer = dequantizer(graph[-1], 0)
    assert producer is not None and stored_integers(producer) is None


def test_second_pair_stands_beside_the_first_on_the_same_tensor() -> None:
    graph = parse("a = Relu(x)  b = Neg(a)  y = Add(a, b)")
    insert_pair(graph, graph[0].outputs[0], pair_in(graph))
    rounded = graph[2].outputs[0]
    assert rounded.name == "a" and quantized_tensor(rounded) is graph[0].outputs[0]
    fine = Pair(add_initializer(graph, "t", np.array(0.1, np.float32)), add_initializer(graph, "u", np.uint16(7)))
    insert_pair(graph, rounded, fine, {graph[3]})
    inputs = {node[2][0]: node[1] for node in flow(graph)}
    assert inputs["b"] == ["a_dequantized"] and inputs["y"] == ["a", "b"]
    assert inputs["a_quantized_1"] == ["a_float", "t", "u"] and inputs["a_quantized"] == ["a_float", "s", "z"]
    assert len({node.name for node in graph if node.name}) == 4
    found = pair_of(rounded)
    assert found is not None and found.scale.name == "s" and pair_of(graph[0].outputs[0]) is None


def test_a_pair_over_all_leaves_other_quantizers_the_tensor_itself() -> None:
    graph = parse("a = Relu(x)  b = Neg(a)  y = Add(a, b)")
    insert_pair(graph, graph[0].outputs[0], pair_in(graph), {graph[1]})
    insert_pair(graph, graph[0].outputs[0], pair_in(graph))
    quantizers = [node for node in graph if node.op_type == "QuantizeLinear"]
    assert [node.inputs[0] for node in quantizers] == [graph[0].outputs[0]] * 2


def test_sixteen_bits_before_opset_21_are_the_runtimes_own() -> None:
    for opset, domain in ((20, "com.microsoft"), (21, "")):
        graph = parse("a = Relu(x)  y = Neg(a)")
        graph.opset_imports[""] = opset
        fine = Pair(add_initializer(graph, "t", np.array(0.1, np.float32)), add_initializer(graph, "u", np.uint16(7)))
        insert_pair(graph, graph[0].outputs[0], fine)
        dequantized(graph[-1], "w", np.zeros((2, 2), np.int16), np.ones((), np.float32), None)
        dequantized(graph[-1], "v", np.zeros((2, 2), np.int8), np.ones((), np.float32), None)
        domains = [node.domain for node in graph if node.op_type.endswith("Linear")]
        assert sorted(domains) == sorted([domain] * 3 + [""])
        assert ("com.microsoft" in graph.opset_imports) is (opset == 20)
