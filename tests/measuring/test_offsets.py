from __future__ import annotations

import numpy as np
import pytest

from gossamer.measuring.offsets import (
    Way,
    by_positions,
    by_shifts,
    by_spectrum,
    cheapest,
    convolved,
    dealt_out,
    dealt_shape,
    transposed,
)


def test_a_stride_deals_positions_out() -> None:
    x = np.arange(7, dtype=np.float32).reshape(1, 1, 1, 7)
    dealt = dealt_out(x, [convolved(7, 3, 2, 1, 1, 4)])
    assert dealt.tolist() == [[[[0, 2, 4, 6], [1, 3, 5, 0]]]]
    assert dealt_out(x, [convolved(7, 1, 3, 1, 0, 3)]).tolist() == [[[[0, 3, 6]]]]  # the others nobody reads
    assert dealt_out(x, [transposed(7, 3, 2, 1, 1, 13)]) is x


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_shape_is_known_beforehand(stride: int) -> None:
    axes = [convolved(9, 3, stride, 1, 1, 8 // stride + 1), convolved(8, 1, stride, 1, 0, 7 // stride + 1)]
    x = np.zeros((2, 3, 4, 9, 8), np.float32)
    assert dealt_out(x, axes).shape == dealt_shape(x.shape, axes)


def test_positions_are_counted_group_by_group_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    x, axes = np.random.default_rng(0).normal(size=(3, 5, 2, 6)).astype(np.float32), [convolved(6, 3, 1, 1, 1, 6)]
    whole = [part for _, _, part in by_positions(x, axes)]
    monkeypatch.setattr("gossamer.measuring.offsets.POSITION_BYTES", 1200)
    for got, expected in zip(by_positions(x, axes), whole, strict=True):
        assert np.allclose(got[2], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "taps", "way"),
    [
        ((32, 1, 64, 56, 56), 3, by_spectrum),
        ((64, 1, 512, 7, 7), 3, by_spectrum),
        ((16, 8, 8, 28, 28), 3, by_spectrum),
        ((8, 144, 1, 56, 56), 3, by_shifts),  # depthwise
        ((32, 1152, 1, 7, 7), 5, by_positions),
        ((4, 1, 16, 60_000), 3, by_shifts),  # a transform that long costs more than it saves
    ],
)
def test_the_cheapest_way(shape: tuple[int, ...], taps: int, way: Way) -> None:
    axes = [convolved(size, taps, 1, 1, taps // 2, size) for size in shape[3:]]
    assert cheapest(shape, axes)[0] is way
