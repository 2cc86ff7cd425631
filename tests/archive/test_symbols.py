"""Symbols: zero lies in the middle, tensors of one kind look alike, and what is too small is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.archive.reader import FEW, FLOATS, INTEGERS, PLANES, WIDE, WORDS
from gossamer.archive.spans import Span
from gossamer.archive.symbols import EXPONENT_BITS, Taken, taken

INT8, UINT8, FLOAT16, FLOAT, INT16, INT64, UINT4, INT4 = 3, 2, 10, 1, 5, 7, 21, 22


def span(data: bytes, data_type: int, shape: tuple[int, ...], name: str = "w") -> Span:
    return Span(0, len(data), data_type, shape, name)


def of(array: np.ndarray, data_type: int, shape: tuple[int, ...] | None = None) -> Taken:
    data = array.tobytes()
    found = taken(data, span(data, data_type, array.shape if shape is None else shape), {})
    assert found is not None
    return found


def nibbles(values: np.ndarray) -> np.ndarray:
    return (values[0::2] & 15 | values[1::2] << 4).astype(np.uint8)


@given(st.lists(st.integers(-128, 127), min_size=64, max_size=200))
def test_signed_integers_have_zero_in_the_middle(values: list[int]) -> None:
    found = of(np.array(values, np.int8), INT8)
    assert (found.kind, found.unit, found.low) == (INTEGERS, 8, 128)
    assert np.array_equal(found.planes[0].values.astype(np.int64) - 128, values)
    assert found.planes[0].level[128] == 0


@pytest.mark.parametrize("zero", range(16))
def test_the_zero_of_a_sparse_codebook_is_put_in_the_middle(zero: int) -> None:
    rng = np.random.default_rng(zero)
    values = np.where(rng.random(512) < 0.8, zero, rng.integers(0, 16, 512)).astype(np.uint8)
    found = of(nibbles(values), UINT4, (16, 32))
    plane = found.planes[0]
    assert np.array_equal((plane.values.astype(np.int64) + found.low) % 16, values)
    assert np.bincount(plane.values).argmax() == 8 and plane.level[8] == 0 and plane.width == 32


def test_a_dense_codebook_stays_where_it_is() -> None:
    values = np.random.default_rng(0).binomial(15, 0.5, 4096).astype(np.uint8)
    found = of(nibbles(values), UINT4, (64, 64))
    assert found.low == 0
    assert found.planes[0].level.argmin() in (7, 8)


@given(st.integers(1, 8), st.integers(0, 9))
def test_bit_planes_become_integers(bits: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, 800)
    raw = np.packbits((values[None] >> np.arange(bits)[:, None] & 1).astype(np.uint8), axis=1, bitorder="little")
    data = raw.tobytes()
    found = taken(data, span(data, UINT8, (bits, 100, 1), "w_planes"), {"w_shape": (20, 40)})
    assert found is not None and (found.kind, found.unit) == (PLANES, bits)
    assert np.array_equal((found.planes[0].values.astype(np.int64) + found.low) % (1 << bits), values)
    assert found.planes[0].width == 40


@pytest.mark.parametrize(("data_type", "dtype"), [(FLOAT, np.float32), (FLOAT16, np.float16), (11, np.float64)])
def test_levels_of_the_first_plane_of_floats_are_octaves(data_type: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    mean = []
    for octaves in (0, 8):
        found = of((rng.normal(0, 1, (64, 64)) * 2.0 ** (octaves - 4)).astype(dtype), data_type)
        assert found.kind == FLOATS and found.planes[0].logarithmic
        mean.append(float(found.planes[0].level[found.planes[0].values].mean()))
    assert mean[1] - mean[0] == pytest.approx(8, abs=0.3)
    assert EXPONENT_BITS.get(data_type, 8) in (5, 8, 11)


def test_numbers_that_repeat_become_indices_by_size() -> None:
    values = np.random.default_rng(0).choice(np.array([-1.5, 0.25, 0, 3], np.float32), 400)
    found = of(values, FLOAT)
    table = np.frombuffer(found.values, "<f4")
    assert found.kind == FEW and np.array_equal(table[found.planes[0].values], values)
    assert np.array_equal(np.argsort(found.planes[0].level), np.argsort(np.abs(table)))


@pytest.mark.parametrize("spread", [20, 300, 9000])
def test_wide_integers_are_eight_bits_and_the_rest(spread: int) -> None:
    values = np.clip(np.round(np.random.default_rng(0).normal(0, spread, (60, 200))), -32768, 32767).astype(np.int16)
    found = of(values, INT16)
    assert found.kind == WIDE
    first, rest = (plane.values.astype(np.int64) for plane in found.planes)
    assert np.array_equal((first - 128) * 2**found.low + rest, values.ravel())
    assert rest.max() < 2**found.low and found.planes[0].width == 200
    assert np.abs(first - 128).max() >= 64 or found.low == 0


def test_wide_integers_of_few_values_are_indices() -> None:
    values = np.random.default_rng(0).choice(np.array([-9000, 0, 7, 12000], np.int16), 4000)
    assert of(values, INT16).kind == FEW


def test_signalling_nans_make_no_noise() -> None:
    values = np.full(64, 0x7F800001, np.uint32)
    found = of(values, FLOAT)
    assert found.kind in (FEW, FLOATS)


def test_a_zero_of_floats_leaves_the_other_planes_out() -> None:
    values = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    values[::4] = 0
    found = of(values, FLOAT)
    assert found.low == 1 and [len(plane.values) for plane in found.planes] == [2000, 1500, 1500, 1500]


@pytest.mark.parametrize(("data_type", "dtype", "numbers"), [(INT8, np.int8, 63), (INT64, np.int64, 31)])
def test_what_is_too_small_for_tables_is_not_taken(data_type: int, dtype: type, numbers: int) -> None:
    small = np.arange(numbers).astype(dtype).tobytes()
    more = np.arange(numbers + 1).astype(dtype).tobytes()
    assert taken(small, span(small, data_type, (numbers,)), {}) is None
    found = taken(more, span(more, data_type, (numbers + 1,)), {})
    assert found is not None and found.kind in (INTEGERS, WORDS, FEW, WIDE)
