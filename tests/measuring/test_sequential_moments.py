from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.arith.float_target import pooled
from gossamer.errors import DataError, ModelError
from gossamer.graph.weight_matrix import matrices_by_weight
from gossamer.measuring.fetching import with_outputs
from gossamer.measuring.moments import moments
from gossamer.measuring.sequential_moments import Walk
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays
from gossamer.runtimes.onnxruntime import open_session

TEXT = """<ir_version: 10, opset_import: ["" : 21]> test (float[N,6,4] x, int64[N,6] ids) => (float[N,6,4] y) {
    e = Gather(table, ids)
    [one] a = MatMul(x, w1)
    b = Relu(a)
    [two] c = MatMul(b, w2)
    [tied] t = MatMul(b, tie)
    d = Add(c, x)
    [three] f = MatMul(d, w3)
    [again] g = MatMul(f, tie)
    h = Add(g, e)
    p = Transpose<perm=[1,0,2]>(h)
    [cell] , last = LSTM<hidden_size=4>(p, wx, wh)
    l = Squeeze(last, zero)
    z = Gemm(l, w4)
    u = Unsqueeze(z, one)
    s = Add(u, t)
    y = Add(s, d)
}"""
WEIGHTS = {
    **dict.fromkeys(("w1", "w2", "w3", "w4", "tie"), (4, 4)),
    **dict.fromkeys(("wx", "wh"), (1, 16, 4)),
    "table": (5, 4),
}
STAGES = (("tie",), ("table", "w1"), ("w2",), ("w3",), ("wx", "wh"), ("w4",))


def graph() -> Model:
    rng = np.random.default_rng(8)
    proto = onnx.parser.parse_model(TEXT)
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in WEIGHTS.items()}
    constants |= {"zero": np.array([0]), "one": np.array([1])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"node_{index}"
    return Model(ir.serde.deserialize_model(proto), "test")


def rounded(model: Model, names: tuple[str, ...]) -> Model:
    clone = model.clone()
    for name in names:
        value = clone.ir.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(np.round(value.const_value.numpy()), name=name)
    return clone


RNG = np.random.default_rng(9)
SAMPLES = samples_from_arrays(
    {
        "x": RNG.normal(size=(7, 6, 4)).astype(np.float32),
        "ids": RNG.integers(0, 5, size=(7, 6)),
    }
)


@pytest.mark.parametrize("held_bytes", [10**6, 1500, 0])
@pytest.mark.parametrize("fixed", [False, True])
def test_each_stage_sees_the_stages_in_front_of_it_compressed(held_bytes: int, fixed: bool) -> None:
    model = graph()
    if fixed:
        for value in model.ir.graph.inputs:
            assert value.shape is not None
            value.shape = ir.Shape([3, *list(value.shape)[1:]])
    walk = Walk(model, list(WEIGHTS), SAMPLES, held_bytes=held_bytes)
    assert {frozenset(names) for names in walk.stages} == {frozenset(names) for names in STAGES}
    for stage, names in enumerate(walk.stages):
        assert set(names) == set(STAGES[stage])
        got, expected = walk.moments(model, stage), moments(model, names, SAMPLES)
        for name in names:
            assert got[name].samples == 7
            for one, other in zip(got[name][:2], expected[name][:2], strict=True):
                assert (one is None) == (other is None)
                assert one is None or np.allclose(one, np.asarray(other), rtol=1e-4, atol=1e-4)
        model = rounded(model, names)


def test_layers_that_are_not_named_make_no_stage() -> None:
    assert Walk(graph(), ["w3", "w4"], SAMPLES).stages == (("w3",), ("w4",))


def test_errors() -> None:
    with pytest.raises(DataError, match="no samples to take moments from"):
        Walk(graph(), ["w1"], SAMPLES.first(0))
    with pytest.raises(ModelError, match="'w9' is no weight that moments are of"):
        Walk(graph(), ["w9"], SAMPLES)


# --- beside the float graph

KINDS = """<ir_version: 10, opset_import: ["" : 21]> test (float[N,4,8,8] x) => (float[N,12] y) {
    [stem] a = Conv<pads=[1,1,1,1]>(x, stem)
    b = Relu(a)
    [depthwise] c = Conv<group=8, pads=[1,1,1,1]>(b, depthwise)
    [grouped] d = Conv<group=2, pads=[0,0,1,1]>(b, grouped)
    [strided] e = Conv<strides=[2,2]>(c, strided)
    [transposed] f = ConvTranspose<strides=[2,2]>(d, transposed)
    g = ReduceMean<keepdims=0>(e, axes)
    h = ReduceMean<keepdims=0>(f, axes)
    [gemm] i = Gemm<transB=1, alpha=0.5>(g, gemm)
    k = Transpose<perm=[1,0]>(h)
    [turned] l = Gemm<transA=1>(k, turned)
    j = Add(i, l)
    [product] m = MatMul(j, product)
    n = Unsqueeze(m, last)
    [left] o = MatMul(left, n)
    y = Squeeze(o, last)
}"""
SHAPES = {
    "stem": (8, 4, 3, 3),
    "depthwise": (8, 1, 3, 3),
    "grouped": (6, 4, 2, 2),
    "strided": (6, 8, 3, 3),
    "transposed": (6, 5, 3, 3),
    "gemm": (7, 6),
    "turned": (5, 7),
    "product": (7, 9),
    "left": (12, 9),
}


def kinds() -> Model:
    rng = np.random.default_rng(4)
    proto = onnx.parser.parse_model(KINDS)
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    constants |= {"axes": np.array([2, 3]), "last": np.array([2])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"node_{index}"
    return Model(ir.serde.deserialize_model(proto), "kinds")


MAPS = samples_from_arrays({"x": np.random.default_rng(5).normal(size=(13, 4, 8, 8)).astype(np.float32)})


@pytest.mark.parametrize("held_bytes", [10**7, 0])
def test_the_shift_is_by_which_the_layers_outputs_differ(held_bytes: int) -> None:
    """tr(W D W^T) is what the outputs' shift W (x - x^) and those outputs have in common, as the graphs say."""
    model = kinds()
    walk = Walk(model, list(SHAPES), MAPS, held_bytes=held_bytes, beside_float=True)
    trial, compared = model, set()
    for stage, names in enumerate(walk.stages):
        seen = walk.seen(trial, stage)
        plain = moments(trial, names, MAPS)
        assert set(seen.drifts) == (set(names) if stage else set())
        for name in names:
            assert seen.moments[name].samples == 13
            found, wanted = (np.asarray(each[name].h_GKK) for each in (seen.moments, plain))
            assert np.allclose(found, wanted, rtol=1e-3, atol=1e-3)
        for name, (fitted, held) in seen.drifts.items():
            assert held is not None and (fitted.samples, held.samples) == (10, 3)
            (use,) = matrices_by_weight(model.ir.graph, {name})[name]
            then, now = (_outputs(each, use.node.outputs[0].name or "") for each in (model, trial))
            weights = use.to_matrix(_number(model, name)).astype(np.float64)
            shift_GKK = pooled([fitted, held]).shift_GKK
            common = float(np.vdot(weights @ shift_GKK, weights))
            assert common == pytest.approx(float(np.vdot(then - now, now)) / 13, rel=1e-3, abs=1e-2)
            compared.add(name)
        trial = rounded(trial, names)
    assert compared == set(SHAPES) - {"stem"}


def test_nothing_shifts_in_a_model_that_stays_as_it_is() -> None:
    for model, samples, weights in ((graph(), SAMPLES, WEIGHTS), (kinds(), MAPS, SHAPES)):
        walk = Walk(model, list(weights), samples, beside_float=True)
        for stage, names in enumerate(walk.stages):
            seen = walk.seen(model, stage)
            assert not any(np.any(part.shift_GKK) for parts in seen.drifts.values() for part in parts if part)
            assert not set(seen.drifts) & {"table", "wx", "wh", "tie"} and set(seen.moments) == set(names)


def _number(model: Model, name: str) -> np.ndarray:
    tensor = model.ir.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def _outputs(model: Model, name: str) -> np.ndarray:
    session = open_session(with_outputs(model, [name], "outputs"), 1)
    feeds = next(MAPS.batches(13)).feeds
    return np.asarray(session.run(feeds, [name])[0], np.float64)
