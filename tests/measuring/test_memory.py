"""Peak activation memory: on graphs small enough to count by hand, and on any chain."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from gossamer.measuring.memory import peak_activation_bytes
from gossamer.measuring.shapes import static_shapes
from gossamer.nouns.model import Model


def peak(text: str, **initializers: np.ndarray) -> int | None:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in initializers.items())
    model = Model(ir.from_proto(proto), "m")
    return peak_activation_bytes(model.ir.graph, static_shapes(model))


def test_a_chain_holds_two_tensors_at_a_time() -> None:
    text = "g (float[10] x) => (float[10] y) { a = Relu(x) b = Relu(a) c = Relu(b) y = Relu(c) }"
    assert peak(text) == 2 * 40


def test_a_residual_holds_a_third() -> None:
    text = "g (float[10] x) => (float[10] y) { a = Relu(x) b = Relu(a) c = Relu(b) y = Add(c, a) }"
    assert peak(text) == 3 * 40


def test_an_output_lives_to_the_end() -> None:
    text = "g (float[10] x) => (float[10] a, float[10] y) { a = Relu(x) b = Relu(a) c = Relu(b) y = Relu(c) }"
    assert peak(text) == 3 * 40


def test_weights_and_what_comes_of_them_are_not_counted() -> None:
    text = "g (float[2, 10] x) => (float[2, 9] y) { t = Transpose(w) y = MatMul(x, t) }"
    assert peak(text, w=np.ones((9, 10), np.float32)) == 80 + 72


def test_views_share_memory() -> None:
    text = "g (float[2, 5] x) => (float[10] y) { a = Relu(x) b = Reshape(a, s) c = Identity(b) y = Relu(c) }"
    assert peak(text, s=np.array([10])) == 2 * 40


def test_a_view_keeps_its_source_alive() -> None:
    text = "g (float[10] x) => (float[10] y) { a = Relu(x) v = Identity(a) b = Relu(x) c = Relu(b) y = Add(c, v) }"
    assert peak(text) == 3 * 40


def test_a_fused_pair_is_counted_in_integers() -> None:
    text = """g (float[400] x) => (float[400] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        a = Relu(d) aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z)
        b = Relu(ad) bq = QuantizeLinear(b, s, z) y = DequantizeLinear(bq, s, z)
    }"""
    scale, zero = np.array(0.1, np.float32), np.array(0, np.uint8)
    assert peak(text, s=scale, z=zero) == 400 + 400


def test_what_a_subgraph_reads_from_outside_is_alive() -> None:
    branches = (
        "<then_branch = t () => (float[10] p) { p = Relu(a) }, else_branch = e () => (float[10] r) { r = Neg(a) }>"
    )
    body = f"a = Relu(x) b = Relu(x) d = Relu(b) i = If(c) {branches} y = Add(i, d)"
    # while If runs: the flag, a (read inside), d, and its own output
    assert peak(f"g (bool c, float[10] x) => (float[10] y) {{ {body} }}") == 1 + 3 * 40


def test_an_unknown_shape_gives_no_figure() -> None:
    assert peak("g (float[n, t] x) => (float[n, t] y) { y = Relu(x) }") is None


@given(st.lists(st.integers(1, 50), min_size=2, max_size=8), st.lists(st.integers(0, 7), min_size=0, max_size=4))
def test_a_growing_chain_is_what_its_definition_says(sizes: list[int], kept: list[int]) -> None:
    """Each tensor as long as the last or twice; some of them outputs too."""
    names = [f"t{index}" for index in range(len(sizes))]
    outputs = sorted({names[index] for index in kept if 0 < index < len(names)} | {names[-1]})
    nodes = [
        onnx.helper.make_node("Tile", [names[index], f"r{index}"], [names[index + 1]])
        for index in range(len(names) - 1)
    ]
    lengths = np.cumprod([1, *[1 + size % 2 for size in sizes[1:]]]).tolist()
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info(names[0], 1, [lengths[0]])],
        [onnx.helper.make_tensor_value_info(name, 1, None) for name in outputs],
        [
            onnx.numpy_helper.from_array(np.array([lengths[index + 1] // lengths[index]]), f"r{index}")
            for index in range(len(names) - 1)
        ],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    model = Model(ir.from_proto(proto), "m")
    found = peak_activation_bytes(model.ir.graph, static_shapes(model))
    # by definition: at each step everything that was made and is an output or still to be read
    steps = [
        sum(4 * lengths[index] for index in range(step + 2) if index in (step, step + 1) or names[index] in outputs)
        for step in range(len(names) - 1)
    ]
    assert found == max(steps)
