from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arith.moments import Moments, loss
from gossamer.errors import DataError, ModelError
from gossamer.graph.weight_matrix import matrices_by_weight
from gossamer.measuring.gathering import Counted, Gathering
from gossamer.measuring.moments import fetch, find_batching, moments
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.runtimes.onnxruntime import open_session

RNG = np.random.default_rng(5)


def network(text: str, **weights: np.ndarray) -> Model:
    """Parsed text between `{` and `}`; its first line the signature; weights become initializers."""
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> test ' + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return Model(ir.serde.deserialize_model(proto), "test")


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def changed(model: Model, name: str, array: np.ndarray) -> Model:
    clone = model.clone()
    clone.ir.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return clone


def check_against_outputs(model: Model, name: str, samples: Samples, got: Moments) -> None:
    """tr(E H E^T) is what adding E to the weight does to the output, in squares, a sample."""
    use = matrices_by_weight(model.ir.graph)[name][0]
    w = use.value.const_value
    assert w is not None
    error = RNG.normal(size=use.shape).astype(np.float32)
    outputs = []
    for variant in (model, changed(model, name, w.numpy() + error)):
        session = open_session(variant)
        outputs.append([session.run(b.feeds)[0].astype(np.float64) for b in samples.batches(session.static_batch or 1)])
    expected = sum(np.square(a - b).sum() for a, b in zip(*outputs, strict=True)) / len(samples)
    assert loss(use.to_matrix(error), got).sum() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def one(model: Model, samples: Samples, name: str = "w") -> Moments:
    return moments(model, [name], samples)[name]


@settings(max_examples=80)
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    draw, rank = data.draw, data.draw(st.integers(1, 3))
    op = draw(st.sampled_from(["Conv", "Conv", "ConvTranspose"]))
    group, inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    few = st.integers(1, 3 if rank < 3 else 2)
    kernel, strides, dilations = (draw(st.lists(few, min_size=rank, max_size=rank)) for _ in range(3))
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    auto = "NOTSET" if op == "ConvTranspose" and auto != "VALID" and rank == 3 else auto
    dilations = [1] * rank if auto != "NOTSET" else dilations
    attributes = f'group={group}, strides={strides}, dilations={dilations}, auto_pad="{auto}"'
    if auto == "NOTSET":
        pads = [draw(st.integers(0, k - 1)) for k in kernel * 2]
        attributes += f", pads={pads}"
        if op == "ConvTranspose":
            extra = [draw(st.integers(0, stride - 1)) for stride in strides]
            attributes += f", output_padding={extra}"
    sizes = [draw(st.integers((k - 1) * d + 1, 8 if rank < 3 else 5)) for k, d in zip(kernel, dilations, strict=True)]
    w_shape = (group * outputs, inputs) if op == "Conv" else (group * inputs, outputs)
    dims = ",".join(["N", str(group * inputs), *map(str, sizes)])
    model = network(f"(float[{dims}] x) => (float y) {{ y = {op}<{attributes}>(x, w) }}", w=normal(*w_shape, *kernel))
    samples = samples_from_arrays({"x": normal(3, group * inputs, *sizes)})
    check_against_outputs(model, "w", samples, one(model, samples))


def test_a_transposed_convolution_with_its_output_shape_given() -> None:
    text = "(float[N,2,4,5] x) => (float y) { y = ConvTranspose<strides=[2,2], output_shape=[7,11]>(x, w) }"
    model, samples = network(text, w=normal(2, 3, 3, 3)), samples_from_arrays({"x": normal(2, 2, 4, 5)})
    check_against_outputs(model, "w", samples, one(model, samples))


@pytest.mark.parametrize(
    ("text", "w_shape", "x_shape"),
    [
        ("(float[N,3,4] x) => (float y) { y = MatMul(x, w) }", (4, 5), (3, 4)),
        ("(float[N,4,3] x) => (float y) { y = MatMul(w, x) }", (5, 4), (4, 3)),
        ("(float[N,4] x) => (float y) { y = Gemm<alpha=0.5>(x, w) }", (4, 5), (4,)),
        ("(float[N,4] x) => (float y) { y = Gemm<transB=1>(x, w) }", (5, 4), (4,)),
        ("(float[N,4] x) => (float y) { t = Transpose(x) y = Gemm<transA=1>(t, w) }", (4, 5), (4,)),
        ("(float[1,4] x) => (float y) { y = MatMul(x, w) }", (4, 5), (4,)),
        ("(float[3,2,4] x) => (float y) { y = MatMul(x, w) }", (4, 5), (2, 4)),  # 7 samples in batches of 3
        ("(float[N,3] x) => (float y) { a = Greater(x, x) b = Cast<to=7>(a) y = Gather(w, b) }", (6, 2), (3,)),
    ],
)
def test_products_and_tables(text: str, w_shape: tuple[int, ...], x_shape: tuple[int, ...]) -> None:
    model, samples = network(text, w=normal(*w_shape)), samples_from_arrays({"x": normal(7, *x_shape)})
    got = one(model, samples)
    assert got.samples == 7 and got.source == "samples"
    check_against_outputs(model, "w", samples, got)


def test_columns_that_are_samples_are_cut_as_columns() -> None:
    """8 samples in batches of 3, of which the last is filled up."""
    model = network("(float[3,4] x) => (float y) <float[4,3] t> { t = Transpose(x) y = MatMul(w, t) }", w=normal(5, 4))
    x = normal(8, 4)
    got = one(model, samples_from_arrays({"x": x}))
    assert got.h_GKK is not None and np.allclose(got.h_GKK[0], x.T @ x / 8, rtol=1e-4)


def test_look_ups_are_counted_a_sample() -> None:
    model = network("(int64[N,3] ids) => (float y) { y = Gather(w, ids) }", w=normal(5, 2))
    got = one(model, samples_from_arrays({"ids": np.array([[0, 1, 1], [-1, 4, 1]])}))
    assert got.h_GKK is None and got.rows_GO is not None
    assert got.rows_GO.tolist() == [[0.5, 1.5, 0, 0, 1.0]]


def test_what_no_sample_changes_counts_once_for_each() -> None:
    """Positions are looked up once a batch, however many samples it has."""
    text = "(float[N,3] x) => (float y) { s = Shape<start=1>(x) z = ConstantOfShape(s) m = MatMul(z, w) y = Add(x, m) }"
    model = network(text.replace("m = MatMul", "o = Exp(z) m = MatMul").replace("(z, w)", "(o, w)"), w=normal(3, 3))
    got = one(model, samples_from_arrays({"x": normal(6, 3)}))
    assert got.h_GKK is not None and np.allclose(got.h_GKK, 1.0)


def test_shared_weights_are_summed_over_their_uses() -> None:
    text = "(float[N,3] x) => (float y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    w, x = normal(3, 3), normal(6, 3)
    samples = samples_from_arrays({"x": x})
    got = one(network(text, w=w), samples)
    behind = np.maximum(x @ w, 0)
    assert got.h_GKK is not None and np.allclose(got.h_GKK[0], (x.T @ x + behind.T @ behind) / 6, rtol=1e-4)


def test_a_weight_that_is_matrix_and_table() -> None:
    """Its look-ups count as if all rows were looked up equally often."""
    text = "(int64[N,2] ids) => (float y) { e = Gather(w, ids) s = Relu(e) y = Gemm<transB=1>(f, w) }"
    text = text.replace("y = Gemm", "f = ReduceSum<keepdims=0>(s, one) y = Gemm")
    w = normal(4, 3)
    model = network(text, w=w, one=np.array([1]))
    got = one(model, samples_from_arrays({"ids": np.array([[0, 1], [3, 3], [2, 1]])}))
    sums = np.maximum(w, 0)[np.array([[0, 1], [3, 3], [2, 1]])].sum(axis=1)
    assert got.rows_GO is None and got.h_GKK is not None
    assert np.allclose(got.h_GKK[0], sums.T @ sums / 3 + 0.5 * np.eye(3), rtol=1e-4)


def test_layers_that_read_the_same_share_one_array() -> None:
    text = "(float[N,3] x) => (float y) { q = MatMul(x, wq) k = MatMul(x, wk) y = Add(q, k) }"
    model = network(text, wq=normal(3, 3), wk=normal(3, 3))
    got = moments(model, ["wq", "wk"], samples_from_arrays({"x": normal(2, 3)}))
    assert got["wq"].h_GKK is got["wk"].h_GKK


CELL = """(float[N,T,3] x) => (float last) {{
    t = Transpose<perm=[1,0,2]>(x)
    {lengths}
    {y}, last = {op}<hidden_size=4, direction="{way}">(t, w, r, , {given}, {h0})
}}"""
LENGTHS = "s = ReduceSum(x, axes) p = Greater(s, zero) c = Cast<to=6>(p) n = ReduceSum<keepdims=0>(c, axes)"


def recurrent(op: str, way: str, y: str = "", h0: str = "", masked: bool = False) -> Model:
    gates, dirs = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 1 + (way == "bidirectional")
    given = {"lengths": LENGTHS.replace("axes)", "last_axes)", 1) if masked else "", "given": "n" if masked else ""}
    weights = {"w": normal(dirs, gates * 4, 3), "r": normal(dirs, gates * 4, 4), "h0": normal(dirs, 1, 4)}
    if masked:
        weights |= {"zero": np.float32([-50]), "axes": np.array([1, 2]), "last_axes": np.array([2])}
    model = network(CELL.format(op=op, way=way, y=y, h0=h0, **given), **weights)
    next(node for node in model.ir.graph if node.op_type == op).name = "cell"
    return model


def states_before_each_step(model: Model, x_TI: np.ndarray, direction: int, backwards: bool, h0: bool) -> np.ndarray:
    """What is left after so many steps: the last state of a sequence cut short."""
    session = open_session(model)
    parts = [x_TI[len(x_TI) - t :] if backwards else x_TI[:t] for t in range(1, len(x_TI))]
    states = [session.run({"x": part[None]})[0][direction] for part in parts]
    begin = model.ir.graph.initializers["h0"].const_value
    assert begin is not None
    return np.concatenate([*states, begin.numpy()[direction] if h0 else np.zeros((1, 4), np.float32)])


@pytest.mark.parametrize("h0", ["", "h0"])
@pytest.mark.parametrize("y", ["", "steps"])
@pytest.mark.parametrize("way", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(op: str, way: str, y: str, h0: str) -> None:
    model, x = recurrent(op, way, y, h0), normal(4, 5, 3)
    got = moments(model, ["w", "r"], samples_from_arrays({"x": x}))
    w, r = got["w"].h_GKK, got["r"].h_GKK
    assert w is not None and r is not None and len(w) == len(r) == 1 + (way == "bidirectional")
    for direction in range(len(w)):
        backwards = way == "reverse" or direction == 1
        begun = [states_before_each_step(model, sample, direction, backwards, bool(h0)) for sample in x]
        assert np.allclose(r[direction], sum(rows.T @ rows for rows in begun) / 4, rtol=1e-4, atol=1e-5)
        assert np.allclose(w[direction], x.reshape(-1, 3).T @ x.reshape(-1, 3) / 4, rtol=1e-4)


@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_steps_beyond_a_length_do_not_count(way: str) -> None:
    """The model takes a step whose numbers sum to less than -50 for padding."""
    x = normal(3, 5, 3)
    lengths = (2, 5, 1)
    for sample, length in zip(x, lengths, strict=True):
        sample[length:] = -100
    model = recurrent("LSTM", way, masked=True)
    got = moments(model, ["w", "r"], samples_from_arrays({"x": x}))
    short = [sample[:length] for sample, length in zip(x, lengths, strict=True)]
    assert got["w"].h_GKK is not None and got["r"].h_GKK is not None
    assert np.allclose(got["w"].h_GKK[0], sum(s.T @ s for s in short) / 3, rtol=1e-4)
    begun = [states_before_each_step(model, sample, 0, way == "reverse", False) for sample in short]
    assert np.allclose(got["r"].h_GKK[0], sum(rows.T @ rows for rows in begun) / 3, rtol=1e-4, atol=1e-5)


SMALL = """(float[N,3,9,9] x) => (float y) {
    [stem] a = Conv<pads=[1,1,1,1]>(x, w1)  b = Relu(a)
    [wide] c = Conv<strides=[2,2]>(b, w2)  m = GlobalAveragePool(c)  f = Flatten(m)
    [head] y = Gemm<transB=1>(f, w3)
}"""
NAMES = ("w1", "w2", "w3")


def small() -> Model:
    return network(SMALL, w1=normal(8, 3, 3, 3), w2=normal(5, 8, 3, 3), w3=normal(4, 5))


def test_one_pass_for_all_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = small(), samples_from_arrays({"x": normal(11, 3, 9, 9)})
    whole = moments(model, NAMES, samples)
    monkeypatch.setattr("gossamer.measuring.moments.LARGEST_BATCH", 3)
    parts = moments(model, NAMES, samples)
    model.ir.graph.inputs[0].shape = ir.Shape([4, 3, 9, 9])
    fixed = moments(model, NAMES, samples)
    check_against_outputs(model, "w3", samples, whole["w3"])
    for name in NAMES:
        a, b, c = (found[name].h_GKK for found in (whole, parts, fixed))
        assert a is not None and np.allclose(a, b, rtol=1e-4, atol=1e-4) and np.allclose(a, c, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("waiting_bytes", [0, 4000])
def test_what_waits_is_bounded_and_does_not_matter(monkeypatch: pytest.MonkeyPatch, waiting_bytes: int) -> None:
    model, samples = small(), samples_from_arrays({"x": normal(11, 3, 9, 9)})
    whole = moments(model, NAMES, samples)
    monkeypatch.setattr("gossamer.measuring.gathering.WAITING_BYTES", waiting_bytes)
    monkeypatch.setattr("gossamer.measuring.moments.LARGEST_BATCH", 1)
    gathering = Gathering(model, NAMES)
    batching = find_batching(gathering, samples, 1)
    for sample in samples.batches(1):
        fetched = fetch(batching.session, gathering.fetched, sample.feeds)
        gathering.add(Counted(sample.feeds | fetched, 1, "a sample"), batching)
        waits = [array.nbytes for own in gathering.waiting.values() for arrays in own for array in arrays.values()]
        assert sum(waits) <= waiting_bytes
    parts = gathering.result(len(samples))
    for name in NAMES:
        a, b = whole[name].h_GKK, parts[name].h_GKK
        assert a is not None and b is not None and np.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_ragged_samples() -> None:
    model = network("(float[N,2,H,W] x) => (float y) { y = Conv<pads=[1,1,1,1]>(x, w) }", w=normal(3, 2, 3, 3))
    samples = samples_from_arrays({"x": [normal(2, size, size + 1) for size in (1, 6, 6, 3, 9)]})
    check_against_outputs(model, "w", samples, one(model, samples))


def test_sums_beyond_the_limit_lie_in_files() -> None:
    model, samples = small(), samples_from_arrays({"x": normal(3, 3, 9, 9)})
    here, mapped = moments(model, NAMES, samples), moments(model, NAMES, samples, memory_bytes=0)
    for name in NAMES:
        h = mapped[name].h_GKK
        assert isinstance(h, np.memmap) and not isinstance(here[name].h_GKK, np.memmap)
        assert np.array_equal(h, here[name].h_GKK)


@pytest.mark.parametrize("batch", ["N", "1", "3"])
def test_masked_positions_do_not_count(batch: str) -> None:
    text = f"(int64[{batch},4] ids, int64[{batch},4] attention_mask) => (float m, float n) {{"
    text += " e = Gather(table, ids) f = Reshape(e, flat) m = MatMul(e, w) n = MatMul(f, v) }"
    table, ids = normal(9, 3), RNG.integers(0, 9, size=(5, 4))
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    model = network(text, table=table, w=normal(3, 3), v=normal(3, 3), flat=np.array([-1, 3]))
    got = moments(model, ["table", "w", "v"], samples_from_arrays({"ids": ids, "attention_mask": mask}))
    rows = table[ids[mask > 0]]
    for name in ("w", "v"):
        h = got[name].h_GKK
        assert h is not None and np.allclose(h[0], rows.T @ rows / 5, rtol=1e-4)
    counts = got["table"].rows_GO
    assert counts is not None and np.allclose(counts[0], np.bincount(ids[mask > 0], minlength=9) / 5)


def test_an_input_that_is_always_zero() -> None:
    model = network("(float[N,3] x) => (float y) { z = Sub(x, x) y = MatMul(z, w) }", w=normal(3, 3))
    got = one(model, samples_from_arrays({"x": normal(2, 3)}))
    assert got.h_GKK is not None and got.h_GKK.shape == (1, 3, 3) and not got.h_GKK.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_numbers_that_are_none(bad: float) -> None:
    x = normal(3, 3)
    x[1] = bad
    model = network("(float[1,3] x) => (float y) { a = Abs(x) [head] y = MatMul(a, w) }", w=normal(3, 3))
    with pytest.raises(DataError, match=r"input 'a' of MatMul 'head' is NaN, infinite or too large .* on sample 1 of"):
        one(model, samples_from_arrays({"x": x}))


def test_other_errors() -> None:
    model = small()
    samples = samples_from_arrays({"x": normal(2, 3, 9, 9)})
    with pytest.raises(DataError, match="no samples to take moments from"):
        one(model, samples.first(0), "w1")
    with pytest.raises(ModelError, match="'w9' is no weight that moments are of: the main graph has no such init"):
        one(model, samples, "w9")
    model = network(
        "(float[N,3] x) => (float y) { [one] a = MatMul(x, w) [two] y = Gemm<transB=1>(a, w) }", w=normal(3, 3)
    )
    with pytest.raises(ModelError, match="nodes 'one' and 'two' sum over different axes of the weight 'w'"):
        one(model, samples_from_arrays({"x": normal(2, 3)}))
    model = network("(float[N,3] x) => (float y) { y = Mul(x, w) }", w=normal(3))
    with pytest.raises(ModelError, match="'w' is no weight that moments are of: Mul has no weight matrix"):
        one(model, samples_from_arrays({"x": normal(2, 3)}))
