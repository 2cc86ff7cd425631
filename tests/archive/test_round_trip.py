"""Whatever model goes in comes back to the byte, by the compiled coder and by the plain reader."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.archive.building import number

from gossamer.archive.pack import pack
from gossamer.archive.reader import (
    FEW,
    FLOATS,
    INTEGERS,
    PLANES,
    WIDE,
    WORDS,
    Index,
    parts,
    read_header,
    read_index,
    unpack,
)
from gossamer.archive.tables import Decoder
from gossamer.errors import ArchiveError

# of TensorProto: bits of a number
BITS = {
    TensorProto.FLOAT: 32,
    TensorProto.DOUBLE: 64,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT32: 32,
    TensorProto.UINT32: 32,
    TensorProto.INT64: 64,
    TensorProto.UINT64: 64,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
    TensorProto.BOOL: 8,
    TensorProto.COMPLEX64: 64,
}
SHAPES = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.tuples(st.integers(1, 40), st.integers(1, 60)),
    st.just((0, 3)),
    st.just((1,)),
    st.just((301,)),
)
LOOKS = ("noise", "constant", "zero", "sparse", "few", "bell", "odd floats")


def raw(rng: np.random.Generator, data_type: int, shape: tuple[int, ...], look: str) -> bytes:
    """Numbers of that type as they lie in raw_data; of those smaller than a byte, the last one filled up."""
    count, bits = int(np.prod(shape, dtype=np.int64)), BITS[data_type]
    size = (count * bits + 7) // 8
    unit = max(bits // 8, 1)
    items = size // unit
    if look == "noise":
        return rng.bytes(size)
    if look == "zero":
        return bytes(size)
    if look == "constant":
        return (rng.bytes(unit) * items)[:size]
    if look == "bell":
        floats = {TensorProto.FLOAT: "<f4", TensorProto.DOUBLE: "<f8", TensorProto.FLOAT16: "<f2"}
        kind = floats.get(data_type, f"<i{unit}")
        values = rng.normal(0, 0.05 if "f" in kind else 12, items)
        return values.astype(kind).tobytes()
    if look == "odd floats" and unit > 1:
        odd = [b"\0" * unit, b"\0" * (unit - 1) + b"\x80", b"\1" + b"\0" * (unit - 1), b"\xff" * unit]
        odd += [rng.bytes(unit - 2) + b"\xf0\x7f", rng.bytes(unit - 2) + b"\x80\x7f", rng.bytes(unit)]
        return b"".join(odd[at] for at in rng.integers(0, len(odd), items))
    levels = [rng.bytes(unit) for _ in range(5)]
    chosen = rng.integers(0, 5, items)
    if look == "sparse":
        levels, chosen = [bytes(unit), *levels], np.where(rng.random(items) < 0.9, 0, chosen + 1)
    return b"".join(levels[at] for at in chosen)


def tensor(name: str, data_type: int, shape: tuple[int, ...], data: bytes) -> TensorProto:
    found = TensorProto(name=name, data_type=data_type, raw_data=data)
    found.dims.extend(shape)
    return found


def model_of(*tensors: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> bytes:
    graph = helper.make_graph(list(nodes), "net", [], [], initializer=list(tensors))
    return bytes(helper.make_model(graph, producer_name="test").SerializeToString())


def held(data: bytes) -> Index:
    return read_index(data, read_header(data))


def comes_back(model: bytes, base: bytes | None = None) -> bytes:
    """The archive."""
    data = pack(model, base).data
    assert unpack(data, base, decoder=Decoder) == model
    assert unpack(data, base) == model
    return data


@st.composite
def models(draw: st.DrawFn) -> bytes:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for at in range(draw(st.integers(0, 4))):
        data_type, shape = draw(st.sampled_from(sorted(BITS))), tuple(draw(SHAPES))
        found.append(tensor(f"t{at}", data_type, shape, raw(rng, data_type, shape, draw(st.sampled_from(LOOKS)))))
    place = draw(st.sampled_from(("graph", "constant", "branch")))
    if not found or place == "graph":
        return model_of(*found)
    constant = helper.make_node("Constant", [], ["c"], value=found[0])
    if place == "constant":
        return model_of(*found[1:], nodes=(constant,))
    inner = helper.make_graph([constant], "inner", [], [], initializer=found[1:])
    return model_of(nodes=(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner),))


@given(models())
@settings(max_examples=150)
def test_models_come_back(model: bytes) -> None:
    comes_back(model)


@pytest.mark.parametrize("data_type", BITS, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("look", LOOKS)
def test_every_type_comes_back(data_type: int, look: str) -> None:
    rng = np.random.default_rng(data_type)
    shapes = ((37, 5, 3, 3), (41, 43))
    comes_back(
        model_of(
            *(tensor(str(at), data_type, shape, raw(rng, data_type, shape, look)) for at, shape in enumerate(shapes))
        )
    )


@given(models(), models())
@settings(max_examples=25)
def test_a_version_comes_back_from_its_steps(old: bytes, new: bytes) -> None:
    comes_back(new, old)
    comes_back(new, new)


def test_steps_from_another_version_are_few_bytes_and_need_that_version() -> None:
    rng = np.random.default_rng(1)
    weights = rng.integers(-100, 100, (200, 300), np.int8)
    halves = rng.normal(0, 1, (100, 50)).astype(np.float16)
    changed = weights + (rng.random(weights.shape) < 0.01)

    def version(now: np.ndarray) -> bytes:
        whole = tensor("w", TensorProto.INT8, now.shape, now.astype(np.int8).tobytes())
        return model_of(whole, tensor("h", TensorProto.FLOAT16, halves.shape, halves.tobytes()))

    old, new = version(weights), version(changed)
    data = comes_back(new, old)
    assert len(data) < len(pack(new).data) / 10
    assert any(cut.base for cut in held(data).cuts)
    with pytest.raises(ArchiveError, match="none was given"):
        unpack(data)
    with pytest.raises(ArchiveError, match=f"{sha256(old).hexdigest()[:16]}; the one given begins"):
        unpack(data, new)


def test_large_tensors_come_back_from_each_kind_of_stream() -> None:
    rng = np.random.default_rng(2)
    bell = rng.normal(0, 0.04, (300, 400)).astype(np.float32)
    steps = np.clip(np.round(rng.normal(0, 20, (300, 400))), -128, 127).astype(np.int8)
    codebook = np.sort(rng.normal(0, 1, 16).astype(np.float32))[rng.integers(0, 16, (300, 400))]
    wide = np.round(rng.normal(0, 400, (300, 400))).astype(np.int16)
    bits = np.packbits(rng.integers(0, 2, (3, 120_000)).astype(np.uint8), axis=1, bitorder="little")[:, :, None]
    shape = np.array([300, 400])
    data = comes_back(
        model_of(
            tensor("float", TensorProto.FLOAT, bell.shape, bell.tobytes()),
            tensor("int8", TensorProto.INT8, steps.shape, steps.tobytes()),
            tensor("few", TensorProto.FLOAT, codebook.shape, codebook.tobytes()),
            tensor("where", TensorProto.INT64, (20_000,), rng.integers(0, 2**40, 20_000).tobytes()),
            tensor("int16", TensorProto.INT16, wide.shape, wide.tobytes()),
            tensor("odd_planes", TensorProto.UINT8, bits.shape, bits.tobytes()),
            tensor("odd_shape", TensorProto.INT64, (2,), shape.tobytes()),
        )
    )
    assert {stream.kind for stream in held(data).streams} == {FLOATS, INTEGERS, FEW, WORDS, PLANES, WIDE}


def test_a_tensor_of_many_chunks_is_handed_over_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.archive.pack.CHUNK_BYTES", 5000)
    values = np.random.default_rng(3).integers(-8, 8, (70, 300), np.int8)
    model = model_of(tensor("w", TensorProto.INT8, values.shape, values.tobytes()))
    data = comes_back(model)
    assert len(held(data).streams[0].chunks) >= 4
    assert max(len(piece) for piece in parts(data, decoder=Decoder)) <= 5000


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("data_type", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT16, TensorProto.INT4])
def test_chunks_of_every_kind_come_back(data_type: int, look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.archive.pack.CHUNK_BYTES", 3000)
    rng = np.random.default_rng(data_type)
    old, new = (
        model_of(tensor("w", data_type, (90, 120), raw(rng, data_type, (90, 120), one))) for one in ("bell", look)
    )
    assert all(len(stream.chunks) >= 4 for stream in held(comes_back(new)).streams)
    comes_back(new, old)


def smooth(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> np.ndarray:
    """Kernels whose places are alike."""
    found: np.ndarray = rng.normal(0, 1, shape) + 1.5 * rng.normal(0, 1, (*shape[:2], 1, 1))
    return found * spread * np.exp(rng.normal(0, 0.3, (shape[0], 1, 1, 1)))


@pytest.mark.parametrize("chunk", [1 << 22, 3000])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(40, 30, 3, 3), (700, 1, 5, 5), (50, 24, 1, 7), (60, 90, 1, 3)])
def test_kernels_foretell_each_other(
    shape: tuple[int, ...], sparse: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossamer.archive.pack.CHUNK_BYTES", chunk)
    values = smooth(np.random.default_rng(9), shape, 12)
    values = np.where(np.abs(values) < 20, 0, values / 4) if sparse else values
    steps = np.clip(np.round(values), -128, 127).astype(np.int8)
    size, count = steps.size // 8 * 8, steps.shape[0]
    bits = np.clip(np.round(values / 6), -4, 3).astype(np.int64).reshape(-1)[:size] + 4
    planes = np.packbits((bits >> np.arange(3)[:, None] & 1).astype(np.uint8), axis=1, bitorder="little")
    flat = np.array([count, steps.size // count])
    model = model_of(
        tensor("conv", TensorProto.INT8, shape, steps.tobytes()),
        tensor("odd_planes", TensorProto.UINT8, (3, planes.shape[1], 1), planes.tobytes()),
        tensor("odd_shape", TensorProto.INT64, (2,), flat.tobytes()),
    )
    index = held(comes_back(model))
    plane = index.streams[0].planes[0]
    assert plane.filter and bool(index.filters[plane.filter - 1].thresholds) == sparse
    plain = model_of(tensor("flat", TensorProto.INT8, (steps.size,), steps.tobytes()))
    alone = model_of(tensor("conv", TensorProto.INT8, shape, steps.tobytes()))
    assert len(pack(alone).data) < 0.99 * len(pack(plain).data)


def test_filters_are_not_used_where_kernels_say_nothing() -> None:
    values = np.clip(np.round(np.random.default_rng(10).normal(0, 20, (40, 30, 3, 3))), -128, 127).astype(np.int8)
    index = held(comes_back(model_of(tensor("w", TensorProto.INT8, values.shape, values.tobytes()))))
    assert not index.filters


def test_small_kernels_of_one_size_are_put_together() -> None:
    rng = np.random.default_rng(11)
    tensors = [
        tensor(
            f"{kernel}{at}",
            TensorProto.INT8,
            shape,
            np.round(smooth(rng, shape, 10)).clip(-127, 127).astype(np.int8).tobytes(),
        )
        for at in range(6)
        for kernel in (3, 5)
        for shape in [(60, 1, kernel, kernel)]
    ]
    index = held(comes_back(model_of(*tensors)))
    assert len(index.streams) == 2 and {len(one.taps) for one in index.filters} == {9, 25}


def test_floats_that_are_not_raw_come_back() -> None:
    values = np.random.default_rng(4).normal(0, 1, 5000).astype(np.float32)
    model = model_of(helper.make_tensor("w", TensorProto.FLOAT, (50, 100), values.tolist()))
    assert not onnx.load_from_string(model).graph.initializer[0].raw_data
    assert len(comes_back(model)) < 0.95 * len(model)


def test_bytes_that_no_library_writes_come_back() -> None:
    """Fields in another order and twice, unknown ones, an old group, numbers longer than need be."""

    def field(at: int, data: bytes) -> bytes:
        return number(8 * at + 2) + number(len(data)) + data

    weights = np.random.default_rng(5).normal(0, 1, 3000).astype(np.float32).tobytes()
    group = number(8 * 90 + 3) + number(8 * 2) + number(5) + number(8 * 90 + 4)
    odd = field(9, weights) + field(9, b"not this") + b"\x10\x81\x00" + field(8, b"w\xff") + b"\x08\xb8\x97\x80\x00"
    odd += number(8 * 77 + 1) + bytes(8) + number(8 * 78 + 5) + bytes(4) + group
    graph = field(5, odd) + field(2, b"net") + field(99, weights[:50]) + field(5, odd)
    model = field(200, b"?") + field(7, graph) + b"\x08\x0a" + field(7, graph) + group
    assert len(comes_back(model)) < len(model)


@pytest.mark.parametrize("dims", [(2**63, 2), (-1, 5), (2**40, 2**40), (7,)])
def test_shapes_that_do_not_fit_come_back(dims: tuple[int, ...]) -> None:
    inner = b"".join(b"\x08" + number(dim % 2**64) for dim in dims) + b"\x10\x03"
    data = bytes(range(200)) * 20
    inner += b"\x4a" + number(len(data)) + data
    graph = b"\x2a" + number(len(inner)) + inner
    comes_back(b"\x3a" + number(len(graph)) + graph)


def test_what_holds_nothing_comes_back() -> None:
    comes_back(b"")
    comes_back(model_of())
