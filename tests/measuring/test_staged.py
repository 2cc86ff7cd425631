from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.errors import CandidateError
from gossamer.measuring.staged import Held, batches_of, cut, depths
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays
from gossamer.runtimes.onnxruntime import open_session

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
test (float[N,4] x) => (float[N,4] y) <float[4] w = {1,2,3,4}, float one = {1}> {
    [first] a = Mul(x, w)
    b = Relu(a)
    [second] c = Mul(b, w)
    [third] d = Mul(b, one)
    e = Add(c, d)
    k = Neg(w)
    s = ReduceSum<keepdims=0>(e)
    t = Greater(s, one)
    f = If(t) < then_branch = g1 () => (float[N,4] p) { p = Add(a, k) },
                else_branch = g2 () => (float[N,4] q) { q = Neg(e) } >
    [last] g = Mul(f, w)
    y = Add(g, x)
}"""
LAYERS = ("first", "second", "third", "last")


def graph() -> Model:
    return Model(ir.serde.deserialize_model(onnx.parser.parse_model(TEXT)), "test")


def held(limit_bytes: int, n: int = 5) -> Held:
    x = np.random.default_rng(1).normal(size=(n, 4)).astype(np.float32)
    return Held(batches_of(samples_from_arrays({"x": x}), None), limit_bytes)


def test_depths_and_cuts() -> None:
    model = graph()
    depth = depths(model, LAYERS)
    expected = {"x": 0, "a": 1, "b": 1, "c": 2, "d": 2, "e": 2, "f": 2, "g": 3, "y": 3, "k": -1}
    assert {name: depth[name] for name in expected} == expected
    assert [set(cut(model, depth, level)) for level in range(4)] == [{"x"}, {"x", "a", "b"}, {"x", "f"}, set()]


@pytest.mark.parametrize("limit_bytes", [10**6, 200, 0])
def test_pieces_give_what_the_whole_graph_gives(limit_bytes: int) -> None:
    model, pieces = graph(), held(limit_bytes)
    whole = open_session(model)
    expected = [whole.run(feeds)[0] for feeds in pieces.batches]
    depth = depths(model, LAYERS)
    kept = [pieces.advance(model, cut(model, depth, level)) for level in range(3)]
    assert all(kept) == (limit_bytes == 10**6) and kept[0] is (limit_bytes > 0)
    assert set(pieces.batches[0]) == ({"x", "f"} if kept[2] else {"x"})
    for index, (got,) in zip((3, 1), pieces.run(model, ["y"], (3, 1)), strict=True):
        assert np.array_equal(got, expected[index])


def test_of_a_quantized_tensor_the_integers_are_held() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        test (float[N,4] x) => (float[N,4] y) <float s = {0.5}, uint8 z = {128}, float[4] w = {1,2,3,4}> {
        [first] a = Mul(x, w)  q = QuantizeLinear(a, s, z)  d = DequantizeLinear(q, s, z)  [second] y = Mul(d, w) }"""
    model = Model(ir.serde.deserialize_model(onnx.parser.parse_model(text)), "test")
    assert cut(model, depths(model, ("first", "second")), 1) == ("q",)
    pieces = held(100)
    assert pieces.advance(model, ["q"]) and pieces.batches[0]["q"].dtype == np.uint8


def test_a_fixed_batch_is_filled_up() -> None:
    x = np.arange(5, dtype=np.float32).reshape(5, 1)
    batches = batches_of(samples_from_arrays({"x": x}), 2)
    assert [batch["x"].ravel().tolist() for batch in batches] == [[0, 1], [2, 3], [4, 4]]


def test_failure_is_told() -> None:
    pieces = held(100)
    pieces.batches[2] = {"x": np.zeros((1, 3), np.float32)}
    with pytest.raises(CandidateError, match="onnxruntime fails on a piece of test: "):
        list(pieces.run(graph(), ["e"], (0, 2)))
