"""Normalising changes the form of a graph and never what it computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gossamer.errors import ModelError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import load, read
from gossamer.nouns.model import Model, to_bytes
from gossamer.runtimes.onnxruntime import open_session

FLOAT = TensorProto.FLOAT


def weights(seed: int, **shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(seed)
    return [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]


def parsed(text: str, opset: int, tensors: list[onnx.TensorProto] = (), extra: str = "") -> onnx.ModelProto:  # type: ignore[assignment]
    proto = onnx.parser.parse_model(f'<ir_version: 7, opset_import: ["" : {opset}{extra}]>\n{text}')
    proto.graph.initializer.extend(tensors)
    return proto


def convolutional(opset: int) -> onnx.ModelProto:
    """Conv, BatchNormalization, pooling, Softmax: in every opset, attributes where the older ones want them."""
    squeeze = (
        "p2 = Squeeze<axes=[2,3]>(p)"
        if opset < 13
        else "axes = Constant<value: tensor = int64[2] {2,3}>() p2 = Squeeze(p, axes)"
    )
    head = "s = Softmax(g)" if opset < 13 else "s = Softmax<axis=1>(g)"
    return parsed(
        f"""net (float[N,3,8,8] x) => (float[N,5] s, float[N,4] p2) {{
            c = Conv<pads=[1,1,1,1]>(x, w)
            b = BatchNormalization(c, scale, bias, mean, var)
            lo = Constant<value: tensor = float {{0.0}}>()
            hi = Constant<value: tensor = float {{6.0}}>()
            r = Clip(b, lo, hi)
            d = Dropout(r)
            p = GlobalAveragePool(d)
            {squeeze}
            g = Gemm<transB=1>(p2, fc)
            {head}
        }}""",
        opset,
        [
            *weights(opset, w=(4, 3, 3, 3), scale=(4,), bias=(4,), mean=(4,), fc=(5, 4)),
            numpy_helper.from_array(np.array([1, 2, 0.5, 1.5], np.float32), "var"),
        ],
    )


def branching(opset: int) -> onnx.ModelProto:
    """If whose branches read outer values, hold operators that changed, and weights of their own."""
    squeeze = "Squeeze<axes=[1]>(h)" if opset < 13 else "Squeeze(h, ones)"
    return parsed(
        f"""net (float[N,1,4] x, bool choice) => (float[N,4] y) {{
            h = Relu(x)
            ones = Constant<value: tensor = int64[1] {{1}}>()
            y = If(choice) <
                then_branch = yes () => (float[N,4] a) {{
                    k = Constant<value: tensor = float {{2.0}}>() a0 = {squeeze} a = Mul(a0, k)
                }},
                else_branch = no () => (float[N,4] b) {{ b0 = {squeeze} b1 = MatMul(b0, w) b = Softmax(b1) }}
            >
        }}""",
        opset,
        weights(opset, w=(4, 4)),
    )


def looping(opset: int) -> onnx.ModelProto:
    return parsed(
        """net (float[N,4] x, int64 count) => (float[N,4] y, float[M,N,4] steps) {
            go = Constant<value: tensor = bool {1}>()
            y, steps = Loop(count, go, x) <
                body = step (int64 i, bool c, float[N,4] v) => (bool c2, float[N,4] v2, float[N,4] each) {
                    c2 = Identity(c) m = MatMul(v, w) v2 = Tanh(m) each = Add(v2, v)
                }
            >
        }""",
        opset,
        weights(opset, w=(4, 4)),
    )


def tied(opset: int) -> onnx.ModelProto:
    """One table embeds and projects; an Identity hands it on, as exporters write shared parameters."""
    return parsed(
        """net (int64[N,S] ids) => (float[N,S,9] y) {
            e = Gather(table, ids)
            same = Identity(table)
            t = Transpose<perm=[1,0]>(same)
            y = MatMul(e, t)
        }""",
        opset,
        weights(opset, table=(9, 4)),
    )


def many(opset: int) -> onnx.ModelProto:
    """Several inputs and outputs, an input that is an output, Constant weights, unused nodes and weights."""
    split = "l, r = Split<axis=1>(s)" if opset < 18 else "l, r = Split<axis=1, num_outputs=2>(s)"
    return parsed(
        f"""net (float[N,4] x, float[N,4] z) => (float[N,2] l, float[N,2] out, float[N,4] kept, float[2] k) {{
            w = Constant<value: tensor = float[4,4] {{1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}}>()
            s0 = MatMul(x, w)
            s = Add(s0, z)
            {split}
            hidden = Relu(r)
            out = Identity(hidden)
            kept = Identity(z)
            k = Constant<value: tensor = float[2] {{1,2}}>()
            dead = Exp(s)
            deader = Mul(dead, unused)
        }}""",
        opset,
        weights(opset, unused=(4,), forgotten=(3, 3)),
    )


ZOO = {maker.__name__: maker for maker in (convolutional, branching, looping, tied, many)}


def feeds(proto: onnx.ModelProto, batch: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        shape = [d.dim_value or {"N": batch}.get(d.dim_param, 3) for d in tensor.shape.dim]
        if tensor.elem_type == TensorProto.INT64:
            made[value.name] = rng.integers(0, 4, shape)
        elif tensor.elem_type == TensorProto.BOOL:
            made[value.name] = np.array(rng.random(shape) < 0.5)
        else:
            made[value.name] = rng.normal(size=shape).astype(np.float32)
    return made


def assert_same(proto: onnx.ModelProto, model: Model, batch: int = 2, seed: int = 0) -> None:
    before, after = open_session(read(proto)), open_session(model)
    assert before.outputs == after.outputs
    given = {name: array for name, array in feeds(proto, batch, seed).items() if name in after.inputs}
    assert {name: dtype for name, (dtype, _) in after.inputs.items()} == {n: a.dtype for n, a in given.items()}
    for left, right in zip(before.run(given), after.run(given), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", range(11, 22))
@pytest.mark.parametrize("kind", ZOO)
def test_every_opset_computes_the_same_and_ends_clean(kind: str, opset: int) -> None:
    proto = ZOO[kind](opset)
    model = load(proto)
    for seed in range(3):
        assert_same(proto, model, batch=seed + 1, seed=seed)
    graph = model.ir.graph
    assert graph.opset_imports[""] == 21
    assert (f"opset {opset} was converted to 21" in model.notes) == (opset < 21)
    names = [value.name for node in graph for value in node.outputs] + list(graph.initializers)
    names += [value.name for value in graph.inputs]
    assert len(names) == len(set(names)) and all(names)
    node_names = [node.name for node in graph]
    assert len(node_names) == len(set(node_names)) and all(node_names)
    assert not any(value.is_initializer() for value in graph.inputs)
    assert not any(node.op_type == "Constant" and not node.outputs[0].is_graph_output() for node in graph)
    assert all(value.uses() or value.is_graph_output() for value in graph.initializers.values())
    assert all(value.shape is not None and value.dtype is not None for node in graph for value in node.outputs)


@given(kind=st.sampled_from(sorted(ZOO)), opset=st.integers(11, 21), batch=st.integers(1, 4), seed=st.integers(0, 99))
def test_normalising_twice_is_normalising_once(kind: str, opset: int, batch: int, seed: int) -> None:
    proto = ZOO[kind](opset)
    once = load(proto)
    twice = normalise(once)
    assert to_bytes(once) == to_bytes(twice)
    assert_same(proto, twice, batch, seed)


def test_the_given_graph_is_left_alone() -> None:
    raw = read(convolutional(12))
    before = to_bytes(raw)
    normalise(raw)
    assert to_bytes(raw) == before


def test_tied_weights_stay_one_initializer() -> None:
    graph = load(tied(13)).ir.graph
    assert list(graph.initializers) == ["table"]
    assert {node.op_type for node, _ in graph.initializers["table"].uses()} == {"Gather", "Transpose"}


def test_equal_weights_that_are_two_stay_two() -> None:
    one, two = weights(0, a=(4, 4)), weights(0, b=(4, 4))
    proto = parsed("net (float[N,4] x) => (float[N,4] y) { h = MatMul(x, a) y = MatMul(h, b) }", 21, [*one, *two])
    assert sorted(load(proto).ir.graph.initializers) == ["a", "b"]


def test_inputs_with_a_default_become_constants() -> None:
    proto = parsed("net (float[N,4] x, float[4,4] w) => (float[N,4] y) { y = MatMul(x, w) }", 11, weights(0, w=(4, 4)))
    proto.ir_version = 3
    model = load(proto)
    assert [value.name for value in model.ir.graph.inputs] == ["x"]
    assert "1 inputs with a default value are constants now: w" in model.notes
    open_session(model)


def test_functions_are_inlined() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        net (float[N,4] x) => (float[N,4] y) { h = mine.act<k=2.0>(x) y = mine.act<k=3.0>(h) }
        <opset_import: ["" : 17], domain: "mine">
        act <k> (v) => (r) { c = Constant<value_float: float = @k>() m = Mul(v, c) r = Tanh(m) }"""
    )
    model = load(proto)
    assert not model.ir.functions
    assert [node.op_type for node in model.ir.graph] == ["Mul", "Tanh"] * 2
    assert_same(proto, model)


@pytest.mark.parametrize("opset", [12, 17, 21])
def test_unknown_operators_are_kept_and_noted(opset: int) -> None:
    proto = parsed(
        "net (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Mystery<k=3>(a) c = my.own.Op(b) y = Softmax(c) }",
        opset,
        extra=', "my.own" : 2',
    )
    model = load(proto)
    assert {(node.domain, node.op_type) for node in model.ir.graph} >= {("", "Mystery"), ("my.own", "Op")}
    assert model.ir.graph.opset_imports == {"": 21, "my.own": 2}
    assert "1 nodes Mystery of an unknown kind are kept as they are" in model.notes
    assert "1 nodes Op of domain my.own are kept as they are" in model.notes


def test_unsorted_nodes_are_sorted_and_sorted_ones_stay() -> None:
    proto = parsed("net (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Exp(a) c = Tanh(a) y = Add(b, c) }", 21)
    names = [node.op_type for node in load(proto).ir.graph]
    assert names == ["Relu", "Exp", "Tanh", "Add"]
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    sorted_model = load(proto)
    assert next(iter(sorted_model.ir.graph)).op_type == "Relu"
    open_session(sorted_model)


def test_a_cycle_is_an_error() -> None:
    proto = parsed("net (float[N,4] x) => (float[N,4] y) { a = Add(x, y) y = Relu(a) }", 21)
    with pytest.raises(ModelError, match="the graph has a cycle"):
        load(proto)


def test_duplicate_and_missing_node_names() -> None:
    proto = parsed("net (float[N,4] x) => (float[N,4] y) { [n] a = Relu(x) [n] b = Exp(a) y = Tanh(b) }", 20)
    names = [node.name for node in load(proto).ir.graph]
    assert names[0] == "n" and len(set(names)) == 3 and all(names)


def test_training_dropout_is_kept() -> None:
    proto = parsed(
        "net (float[N,4] x) => (float[N,4] y) { r = Constant<value: tensor = float {0.5}>() "
        "t = Constant<value: tensor = bool {1}>() y = Dropout(x, r, t) }",
        14,
    )
    assert [node.op_type for node in load(proto).ir.graph] == ["Dropout"]


def test_a_stale_shape_in_the_file_does_not_win() -> None:
    proto = parsed("net (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) y = Relu(h) }", 17, weights(0, w=(4, 4)))
    proto.graph.value_info.append(helper.make_tensor_value_info("h", FLOAT, ["N", 512]))
    hidden = next(iter(load(proto).ir.graph)).outputs[0]
    assert hidden.shape == ir.Shape(["N", 4])


def test_a_shape_only_the_file_knows_is_kept() -> None:
    proto = parsed("net (float[N,4] x) => (float[N,7] y) { h = a.b.Op(x) y = Relu(h) }", 17, extra=', "a.b" : 1')
    proto.graph.value_info.append(helper.make_tensor_value_info("h", FLOAT, ["N", 7]))
    hidden = next(iter(load(proto).ir.graph)).outputs[0]
    assert hidden.shape == ir.Shape(["N", 7])


def test_what_onnx_converts_wrongly_keeps_its_opset() -> None:
    """Found by comparing outputs: GroupNormalization's scale went from groups to channels in opset 21."""
    proto = parsed(
        "net (float[N,4,3] x) => (float[N,4,3] y) { y = GroupNormalization<num_groups=2>(x, scale, bias) }",
        18,
        weights(0, scale=(2,), bias=(2,)),
    )
    model = load(proto)
    assert model.ir.graph.opset_imports[""] == 18
    assert model.notes == (
        "opset 18 stays, as conversion to 21 failed: onnx does not convert GroupNormalization of this opset rightly",
    )
    assert_same(proto, model)


def test_an_old_opset_that_cannot_be_kept_is_an_error() -> None:
    proto = parsed("net (float[N,4,3] x) => (float[N,4,3] y) { y = Hardmax(x) }", 12)
    with pytest.raises(
        ModelError, match=r"opset 12 cannot be converted to 21 .onnx does not convert Hardmax.*export it"
    ):
        load(proto)


def test_a_higher_opset_stays() -> None:
    proto = parsed("net (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", 22)
    model = load(proto)
    assert model.ir.graph.opset_imports[""] == 22 and not model.notes


def test_big_weights_do_not_go_through_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to onnx's C++ parts must stay small, or models over 2 GB could not be read."""
    sizes = []
    serialize = ir.serde.serialize_model

    def spy(model: ir.Model) -> onnx.ModelProto:
        proto = serialize(model)
        sizes.append(proto.ByteSize())
        return proto

    raw = read(parsed("net (float[N,512] x) => (float[N,512] y) { y = MatMul(x, w) }", 11, weights(0, w=(512, 512))))
    monkeypatch.setattr(ir.serde, "serialize_model", spy)
    model = normalise(raw)
    assert sizes and max(sizes) < 10_000
    assert model.ir.graph.initializers["w"].const_value is raw.ir.graph.initializers["w"].const_value
