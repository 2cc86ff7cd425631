"""Every pass keeps the contract of `gossamer.passes.contract`, on a gallery of small graphs.

Passes are found by name, so a new file in `gossamer/passes` is tested here without an edit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.errors import OptionError
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.passes import contract
from gossamer.runtimes.onnxruntime import open_session

SAMPLES = 8
MIN_SNR_DB = 10.0


class Graph:
    """Writes a small float graph: `text` in ONNX's text form, weights from a seed, as normalised models have them."""

    def __init__(self, text: str, **weights: Any) -> None:
        rng = np.random.default_rng(7)
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
        for name, weight in weights.items():
            if isinstance(weight, tuple):
                spread = 1 / np.sqrt(max(1, np.prod(weight[1:]) if len(weight) != 2 else weight[0]))
                weight = rng.normal(0, spread, weight).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        for node in proto.graph.node:
            node.name = node.name or f"node_{node.output[0]}"
        onnx.checker.check_model(proto)
        self.proto = onnx.shape_inference.infer_shapes(proto)

    def model(self, name: str) -> Model:
        return Model(ir.serde.deserialize_model(self.proto), name)


def normal(*shape: int) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.normal(size=shape).astype(np.float32) for _ in range(SAMPLES)]


def positive(n: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(0.5, 2, n).astype(np.float32)


def residual() -> tuple[Graph, Samples]:
    """Convolutions with batch norm, a residual sum and a head; the batch axis is free."""
    graph = Graph(
        """residual (float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv<pads=[1,1,1,1]>(x, w1)
            b = BatchNormalization(a, g1, b1, m1, v1)
            c = Relu(b)
            d = Conv<pads=[1,1,1,1]>(c, w2, c2)
            e = BatchNormalization(d, g2, b2, m2, v2)
            f = Add(e, c)
            h = Relu(f)
            p = GlobalAveragePool(h)
            q = Flatten(p)
            y = Gemm<transB=1>(q, w3, c3)
        }""",
        **{"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "c2": (8,), "w3": (5, 8), "c3": (5,)},
        **{"b1": (8,), "m1": (8,), "b2": (8,), "m2": (8,)},
        **{name: positive(8) for name in ("g1", "v1", "g2", "v2")},
    )
    return graph, samples_from_arrays({"x": normal(3, 8, 8)})


def depthwise() -> tuple[Graph, Samples]:
    """Pointwise, depthwise, pointwise with uneven channels, behind a narrow stem."""
    rng = np.random.default_rng(5)
    uneven = (rng.normal(0, 0.5, (12, 8, 1, 1)) * np.logspace(-1, 1, 12).reshape(-1, 1, 1, 1)).astype(np.float32)
    graph = Graph(
        """depthwise (float[N,3,8,8] x) => (float[N,4] y)
            <float low = {0}, float six = {6}> {
            s = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w0, c0)
            t = Clip(s, low, six)
            a = Conv(t, w1, c1)
            b = Relu(a)
            c = Conv<pads=[1,1,1,1], group=12>(b, w2, c2)
            d = Relu(c)
            e = Conv(d, w3)
            p = GlobalAveragePool(e)
            y = Flatten(p)
        }""",
        **{"w0": (8, 3, 3, 3), "c0": (8,), "w1": uneven, "c1": (12,), "w2": (12, 1, 3, 3), "c2": (12,)},
        **{"w3": (4, 12, 1, 1)},
    )
    return graph, samples_from_arrays({"x": normal(3, 8, 8)})


def mlp() -> tuple[Graph, Samples]:
    """Two fully connected layers and a softmax; one weight is transposed at run time from a constant."""
    graph = Graph(
        """mlp (float[N,16] x) => (float[N,6] y) {
            a = Gemm(x, w1, c1)
            b = BatchNormalization(a, g, bb, m, v)
            c = Relu(b)
            t = Transpose<perm=[1,0]>(w2)
            d = MatMul(c, t)
            e = Add(d, c2)
            y = Softmax<axis=-1>(e)
        }""",
        **{"w1": (16, 24), "c1": (24,), "w2": (6, 24), "c2": (6,), "g": positive(24), "v": positive(24)},
        **{"bb": (24,), "m": (24,)},
    )
    return graph, samples_from_arrays({"x": normal(16)})


ATTENTION = """
            q = MatMul(x, wq)
            qb = Add(q, bq)
            k = MatMul(x, wk)
            kt = Transpose<perm=[0,2,1]>(k)
            v = MatMul(x, wv)
            s = MatMul(qb, kt)
            scaled = Mul(s, factor)
            p = Softmax<axis=-1>(scaled)
            o = MatMul(p, v)
            oo = MatMul(o, wo)
            ob = Add(oo, bo)
            r = Add(ob, x)
            n = LayerNormalization<axis=-1>(r, gamma, beta)
            u = MatMul(n, w1)
            ub = Add(u, b1)
            ug = Gelu(ub)
            z = MatMul(ug, w2)
            zb = Add(z, b2)
            r2 = Add(zb, n)
            y = LayerNormalization<axis=-1>(r2, gamma2, beta2)"""


def attention_weights() -> dict[str, Any]:
    square = dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16))
    rows = dict.fromkeys(("bq", "bo", "b2", "beta", "beta2"), (16,))
    rest = {"w1": (16, 32), "b1": (32,), "w2": (32, 16), "gamma": positive(16), "gamma2": positive(16)}
    return {**square, **rows, **rest, "factor": np.array(0.25, np.float32)}


def attention() -> tuple[Graph, Samples]:
    """One encoder block at a fixed length."""
    text = f"attention (float[N,6,16] x) => (float[N,6,16] y) {{{ATTENTION}\n}}"
    return Graph(text, **attention_weights()), samples_from_arrays({"x": normal(6, 16)})


def ragged() -> tuple[Graph, Samples]:
    """The same block with a free length, fed with samples of different lengths, and an Embedding in front."""
    text = f"""ragged (int64[N,T] ids) => (float[N,T,16] y) {{
            x = Gather(table, ids){ATTENTION}
        }}"""
    rng = np.random.default_rng(2)
    ids = [rng.integers(0, 20, length) for length in (3, 5, 5, 2, 7, 3, 3, 4)]
    return Graph(text, table=np.float32(rng.normal(size=(20, 16))), **attention_weights()), samples_from_arrays(
        {"ids": ids}
    )


def heads() -> tuple[Graph, Samples]:
    """Attention with four heads, a free length and a mask that is smaller than the scores."""
    graph = Graph(
        """heads (float[N,T,16] x, float[N,1,1,T] mask) => (float[N,T,16] y)
            <int64[4] split = {0,0,4,4}, int64[3] merge = {0,0,16}> {
            q0 = MatMul(x, wq)
            q1 = Reshape(q0, split)
            q = Transpose<perm=[0,2,1,3]>(q1)
            k0 = MatMul(x, wk)
            k1 = Reshape(k0, split)
            k = Transpose<perm=[0,2,3,1]>(k1)
            v0 = MatMul(x, wv)
            v1 = Reshape(v0, split)
            v = Transpose<perm=[0,2,1,3]>(v1)
            s = MatMul(q, k)
            t = Div(s, factor)
            u = Add(t, mask)
            p = Softmax<axis=-1>(u)
            o = MatMul(p, v)
            r = Transpose<perm=[0,2,1,3]>(o)
            z = Reshape(r, merge)
            y = MatMul(z, wo)
        }""",
        **dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)),
        factor=np.array(2, np.float32),
    )
    return graph, samples_from_arrays({"x": normal(6, 16), "mask": normal(1, 1, 6)})


def branches() -> tuple[Graph, Samples]:
    """An If whose branches read weights and values of the main graph."""
    graph = Graph(
        """branches (float[N,8] x) => (float[N,8] y)
            <float zero = {0}> {
            a = MatMul(x, w)
            m = ReduceSum<keepdims=0>(a)
            c = Greater(m, zero)
            b = If(c) <
                then_branch = then_graph () => (float[N,8] t) { t1 = MatMul(a, w)  t = Relu(t1) },
                else_branch = else_graph () => (float[N,8] e) { one = Constant<value_float = 0.5>()  e = Mul(a, one) }
            >
            y = Gemm(b, w2, c2)
        }""",
        **{"w": (8, 8), "w2": (8, 8), "c2": (8,)},
    )
    return graph, samples_from_arrays({"x": normal(8)})


def tied() -> tuple[Graph, Samples]:
    """One table read by Gather and, transposed, by a product; one convolution weight used twice."""
    graph = Graph(
        """tied (int64[N,8] ids, float[N,4,8] image) => (float[N,8,20] y, float[N,4,8] z) {
            x = Gather(table, ids)
            h = Tanh(x)
            t = Transpose<perm=[1,0]>(table)
            y = MatMul(h, t)
            a = Conv<pads=[1,1]>(image, w, c)
            b = Relu(a)
            d = Conv<pads=[1,1]>(b, w, c)
            z = BatchNormalization(d, g, c, c, g)
        }""",
        **{"table": (20, 12), "w": (4, 4, 3), "c": (4,), "g": positive(4)},
    )
    rng = np.random.default_rng(4)
    ids = [rng.integers(0, 20, 8) for _ in range(SAMPLES)]
    return graph, samples_from_arrays({"ids": ids, "image": normal(4, 8)})


def recurrent() -> tuple[Graph, Samples]:
    """A two-way LSTM and a GRU behind it, with rows of different size, and a head on the last state."""
    rows = np.exp(np.random.default_rng(6).normal(0, 0.7, (2, 32, 1)))
    uneven = (np.random.default_rng(8).normal(0, 0.3, (2, 32, 6)) * rows).astype(np.float32)
    graph = Graph(
        """recurrent (float[N,5,6] x) => (float[N,4] y)
            <int64[3] merge = {0,0,16}, int64[1] first = {0}> {
            s = Transpose<perm=[1,0,2]>(x)
            a, b, c = LSTM<hidden_size=8, direction="bidirectional">(s, w1, r1, c1)
            d = Transpose<perm=[0,2,1,3]>(a)
            e = Reshape(d, merge)
            f, g = GRU<hidden_size=12>(e, w2, r2, c2)
            h = Squeeze(g, first)
            y = Gemm<transB=1>(h, w3, c3)
        }""",
        **{"w1": uneven, "r1": (2, 32, 8), "c1": (2, 64)},
        **{"w2": (1, 36, 16), "r2": (1, 36, 12), "c2": (1, 72), "w3": (4, 12), "c3": (4,)},
    )
    return graph, samples_from_arrays({"x": normal(5, 6)})


def constants() -> tuple[Graph, Samples]:
    """Arithmetic on constants and on a static shape, in front of a layer."""
    graph = Graph(
        """constants (float[2,6] x) => (float[2,3] y)
            <int64[1] last = {1}, float[6,3] w0 = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18}> {
            shape = Shape(x)
            columns = Gather(shape, last)
            count = Cast<to=1>(columns)
            w = Div(w0, count)
            y = MatMul(x, w)
        }"""
    )
    return graph, Samples({"x": normal(6)}, None, np.arange(SAMPLES))


def pruned() -> tuple[Graph, Samples]:
    """Fully connected layers of which half the hidden channels have no reader."""
    rng = np.random.default_rng(9)
    read = rng.normal(0, 0.4, (4, 12)).astype(np.float32)
    read[:, ::2] = 0
    graph = Graph(
        """pruned (float[N,10] x) => (float[N,4] y) {
            a = Gemm<transB=1>(x, w1, c1)
            b = Relu(a)
            y = Gemm<transB=1>(b, w2, c2)
        }""",
        **{"w1": (12, 10), "c1": (12,), "w2": read, "c2": (4,)},
    )
    return graph, samples_from_arrays({"x": normal(10)})


GALLERY: dict[str, Callable[[], tuple[Graph, Samples]]] = {
    build.__name__: build
    for build in (residual, depthwise, mlp, attention, heads, ragged, branches, tied, recurrent, constants, pruned)
}


# A pass may also stand behind another one that changed the function, and some have work to do only there.
PRESERVING = [method for method in contract.names() if contract.find(method).PRESERVES_FUNCTION]
COMPRESSING = [method for method in contract.names() if method not in PRESERVING]
BEHIND = [f"{name} behind {method}" for method in COMPRESSING for name in ("residual", "attention")]


def build(name: str) -> tuple[Model, Samples]:
    base, _, before = name.partition(" behind ")
    graph, samples = GALLERY[base]()
    model = graph.model(base)
    return (contract.run(Step(before), model, Evidence(samples, 1)).model if before else model), samples


exhibit = cache(build)


def evidence_for(method: str, name: str) -> Evidence:
    """What passes may ask; for one that trains also a school, in which the float graph teaches."""
    samples = exhibit(name)[1]
    if method != "train_weights":
        return Evidence(samples, 1)
    pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
    from gossamer.training.school import open_school

    return Evidence(samples, 1, open_school(exhibit(name.partition(" behind ")[0])[0], more(samples)))


def more(samples: Samples) -> Samples:
    """Sixteen times as many: floats with a little noise, integers moved on."""
    rng = np.random.default_rng(2)
    columns = {
        name: [
            np.roll(array, turn, -1)
            if array.dtype.kind == "i"
            else array + rng.normal(0, 0.1, array.shape).astype(array.dtype)
            for turn in range(16)
            for array in column
        ]
        for name, column in samples.columns.items()
    }
    return samples_from_arrays(columns)


def attempt(method: str, name: str, model: Model) -> contract.Result:
    """Run the pass with its default config. Behind another pass it may refuse, with the reason; alone it may not."""
    try:
        return contract.run(Step(method), model, evidence_for(method, name))
    except OptionError as error:
        if " behind " not in name:
            raise
        pytest.skip(f"refused: {error}")


@cache
def applied(method: str, name: str) -> contract.Result:
    """The pass run once; shared by the tests of one graph."""
    return attempt(method, name, exhibit(name)[0])


def outputs(model: Model, samples: Samples) -> list[list[np.ndarray]]:
    """All outputs for every batch; the batch size is 2, which every graph of the gallery takes."""
    session = open_session(model)
    return [session.run(batch.feeds) for batch in samples.batches(2)]


every_pass = pytest.mark.parametrize("method", contract.names())
every_graph = pytest.mark.parametrize("name", [*GALLERY, *BEHIND])


@every_pass
def test_config_round_trip(method: str) -> None:
    kind = contract.find(method).Config
    config = kind()
    assert msgspec.json.decode(msgspec.json.encode(config), type=kind) == config
    with pytest.raises(OptionError, match="no_such_option"):
        contract.configure(Step(method, {"no_such_option": 1}))


@every_pass
def test_config_is_frozen(method: str) -> None:
    config = contract.find(method).Config()
    for field in config.__struct_fields__:
        with pytest.raises(AttributeError, match="immutable"):
            setattr(config, field, None)


@every_pass
@every_graph
def test_input_is_not_mutated_and_modified_is_honest(method: str, name: str) -> None:
    model = exhibit(name)[0]
    before = to_bytes(model)
    result = attempt(method, name, model)
    assert to_bytes(model) == before
    assert (to_bytes(result.model) != before) is result.modified
    assert result.modified or result.model is model


@every_pass
@every_graph
def test_deterministic(method: str, name: str) -> None:
    again = attempt(method, name, build(name)[0])
    assert to_bytes(again.model) == to_bytes(applied(method, name).model)
    assert again.notes == applied(method, name).notes


@every_pass
@every_graph
def test_result_is_valid_and_close(method: str, name: str) -> None:
    model, samples = exhibit(name)
    result = applied(method, name)
    onnx.checker.check_model(onnx.load_from_string(to_bytes(result.model)), full_check=True)
    for side in ("inputs", "outputs"):
        old, new = ([value.name for value in getattr(m.ir.graph, side)] for m in (model, result.model))
        assert old == new
    for wanted, got in zip(outputs(model, samples), outputs(result.model, samples), strict=True):
        for a, b in zip(wanted, got, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            if contract.find(method).PRESERVES_FUNCTION:
                assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
    assert snr_db(outputs(model, samples), outputs(result.model, samples)) > MIN_SNR_DB


@pytest.mark.parametrize("method", PRESERVING)
@every_graph
def test_second_run_changes_nothing(method: str, name: str) -> None:
    once = applied(method, name).model
    again = attempt(method, name, once)
    assert not again.modified and again.model is once


@every_pass
def test_empty_scope_changes_nothing(method: str) -> None:
    model = exhibit("residual")[0]
    result = contract.run(Step(method, scope=Scope(skip=("*",))), model, evidence_for(method, "residual"))
    assert not result.modified and result.model is model


@every_pass
def test_some_graph_is_changed(method: str) -> None:
    """A pass that never does anything would keep every other promise."""
    assert any(changes(method, name) for name in [*GALLERY, *BEHIND])


def changes(method: str, name: str) -> bool:
    try:
        return contract.run(Step(method), exhibit(name)[0], evidence_for(method, name)).modified
    except OptionError:
        return False


def snr_db(wanted: list[list[np.ndarray]], got: list[list[np.ndarray]]) -> float:
    """Power of the outputs over the power of their error; infinite if there is none, NaN if they are not finite."""
    pairs = [
        (a.astype(np.float64), b.astype(np.float64))
        for w, g in zip(wanted, got, strict=True)
        for a, b in zip(w, g, strict=True)
    ]
    power = sum(float((a**2).sum()) for a, _ in pairs)
    error = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return float("inf") if error == 0 else 10 * float(np.log10(power / error))
