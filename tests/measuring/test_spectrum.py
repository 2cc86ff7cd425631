from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.measuring.spectrum import shifted_products

ERROR = 2e-6  # beside the sum of all squares


def shifted_one_by_one(x_BGCS: np.ndarray, offsets: list[tuple[int, ...]]) -> np.ndarray:
    sizes, result = x_BGCS.shape[3:], []
    for offset in offsets:
        shifted = np.zeros(x_BGCS.shape)
        here = tuple(slice(max(0, -by), max(0, size - max(0, by))) for by, size in zip(offset, sizes, strict=True))
        there = tuple(slice(max(0, by), max(0, size - max(0, -by))) for by, size in zip(offset, sizes, strict=True))
        shifted[(..., *here)] = x_BGCS[(..., *there)]
        flat = (*x_BGCS.shape[:3], -1)
        result.append(np.einsum("bgcn,bgdn->gcd", x_BGCS.astype(np.float64).reshape(flat), shifted.reshape(flat)))
    return np.stack(result)


def error(x_BGCS: np.ndarray, gaps: list[int]) -> float:
    """The largest, beside the sum of all squares of a group's largest channel."""
    offsets = list(product(*(range(-gap, gap + 1) for gap in gaps)))
    expected = shifted_one_by_one(x_BGCS, offsets)
    energy = np.square(x_BGCS.astype(np.float64)).sum((0, *range(3, x_BGCS.ndim))).max()
    return float(np.abs(shifted_products(x_BGCS, gaps, offsets) - expected).max() / energy)


@given(st.data())
def test_all_offsets_at_once(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    shape = [data.draw(st.integers(1, most)) for most in (3, 3, 4, *(9 if rank < 3 else 4,) * rank)]
    gaps = [data.draw(st.integers(0, 4 if rank < 3 else 2)) for _ in range(rank)]  # a gap may exceed the map
    mean = data.draw(st.sampled_from([0.0, 100.0]))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).normal(mean, size=shape).astype(np.float32)
    assert error(x, gaps) < ERROR


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("shape", [(2, 1, 6, 61, 40), (2, 3, 2, 500), (1, 1, 4, 12, 9, 11)])
def test_errors_of_large_maps(shape: tuple[int, ...], mean: float) -> None:
    x = np.random.default_rng(1).normal(mean, size=shape).astype(np.float32)
    assert error(x, [2] * (len(shape) - 3)) < ERROR


@pytest.mark.parametrize("block_bytes", [1, 1500])
def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    x, offsets = np.random.default_rng(2).normal(size=(3, 2, 3, 9, 8)).astype(np.float32), [(0, 0), (1, -2), (2, 1)]
    whole = shifted_products(x, [2, 2], offsets)
    monkeypatch.setattr("gossamer.measuring.spectrum.BLOCK_BYTES", block_bytes)
    assert np.allclose(shifted_products(x, [2, 2], offsets), whole, rtol=1e-5, atol=1e-3)


def test_samples_that_are_no_whole_array() -> None:
    x = np.random.default_rng(3).normal(size=(3, 2, 7, 8, 4)).astype(np.float32)
    turned = np.moveaxis(x, -1, 2)  # (3, 2, 4, 7, 8), not contiguous
    assert error(turned, [1, 1]) < ERROR
