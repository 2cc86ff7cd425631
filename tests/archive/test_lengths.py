"""Code lengths of integers are those that an archive comes to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from gossamer.archive.lengths import lengths
from gossamer.archive.pack import pack


def drawn(shape: tuple[int, ...], seed: int, density: float = 1.0, most: int = 7) -> np.ndarray:
    """Integers whose rows and columns differ in size."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(size=(shape[0], 1))) * np.exp(rng.normal(size=(1, shape[1])))
    there = rng.random(shape) < density
    return np.clip(np.round(rng.normal(size=shape) * spread * there), -most, most).astype(np.int64)


def packed_bytes(tensors: list[np.ndarray]) -> float:
    """Of int4 tensors in a model, as `pack` codes them."""
    stored = []
    for number, tensor in enumerate(tensors):
        raw = (tensor.reshape(-1) & 15).astype(np.uint8)
        data = (raw[::2] | raw[1::2] << 4).tobytes()
        stored.append(helper.make_tensor(f"w{number}", TensorProto.INT4, tensor.shape, data, raw=True))
    nodes = [helper.make_node("Cast", [f"w{number}"], [f"y{number}"], to=1) for number in range(len(tensors))]
    outputs = [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, t.shape) for n, t in enumerate(tensors)]
    graph = helper.make_graph(nodes, "g", [], outputs, stored)
    return sum(one.coded_bytes for one in pack(helper.make_model(graph).SerializeToString()).tensors)


@pytest.mark.parametrize("density", [1.0, 0.3, 0.05])
def test_they_add_up_to_what_pack_writes(density: float) -> None:
    tensors = [drawn(shape, seed, density) for seed, shape in enumerate([(300, 200), (120, 300), (90, 120)])]
    found = lengths(tensors, 4)
    total = sum(float(one.of(tensor).sum()) for one, tensor in zip(found, tensors, strict=True)) / 8
    assert total == pytest.approx(packed_bytes(tensors), rel=0.03)


@settings(max_examples=30, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    tensors=st.lists(
        hnp.arrays(np.int64, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9), elements=st.integers(-2, 1)),
        min_size=1,
        max_size=3,
    ),
)
def test_every_integer_has_a_length_whatever_the_tensors(bits: int, tensors: list[np.ndarray]) -> None:
    for one, tensor in zip(lengths(tensors, bits), tensors, strict=True):
        assert one.low == -(1 << (bits - 1)) and one.bits_CV.shape[1] == 1 << bits
        assert one.classes.shape == tensor.shape and one.classes.min() >= 0
        assert np.isfinite(one.bits_CV).all() and (one.bits_CV >= 0).all()
        assert (one.of(tensor) <= 24).all()
        assert np.exp2(-one.bits_CV.astype(np.float64)).sum(axis=1) == pytest.approx(1.0, rel=1e-3)  # codes that exist


def test_what_is_rare_is_long() -> None:
    (found,) = lengths([np.array([[0] * 90 + [1] * 9 + [-1]])], 4)
    zero, one, minus, never = (found.bits_CV[0, value - found.low] for value in (0, 1, -1, 7))
    assert zero < one < minus < never
