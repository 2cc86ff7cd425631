from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.measuring.autocorrelation import Offsets, Patches, offsets_are_cheaper
from gossamer.measuring.offsets import Axis, Way, by_positions, by_shifts, by_spectrum, convolved, transposed


def seen(x_GCS: np.ndarray, kernel: tuple[int, ...], place: tuple[int, ...], at: list[list[int]]) -> np.ndarray:
    """One patch (G, C * taps): `at` says for each axis and tap which position the output `place` reads, or one off."""
    values = np.zeros((*x_GCS.shape[:2], *kernel))
    for taps in product(*map(range, kernel)):
        where = [at[axis][tap] for axis, tap in enumerate(taps)]
        if all(0 <= p < size for p, size in zip(where, x_GCS.shape[2:], strict=True)):
            values[(slice(None), slice(None), *taps)] = x_GCS[(slice(None), slice(None), *where)]
    return values.reshape(len(x_GCS), -1)


def brute_force(x_BGCS: np.ndarray, kernel: tuple[int, ...], reads: list[list[list[int]]]) -> np.ndarray:
    total = 0.0
    for x_GCS in x_BGCS.astype(np.float64):
        for place in product(*(range(len(outputs)) for outputs in reads)):
            values = seen(x_GCS, kernel, place, [reads[axis][q] for axis, q in enumerate(place)])
            total = total + values[:, :, None] * values[:, None]
    return np.asarray(total)


@st.composite
def cases(draw: st.DrawFn, strided: bool) -> tuple[np.ndarray, list[Axis], tuple[int, ...], list[list[list[int]]]]:
    rank = draw(st.integers(1, 3))
    axes, reads, sizes, kernel = [], [], [], []
    for _ in range(rank):
        size, taps = draw(st.integers(1, 7 if rank < 3 else 4)), draw(st.integers(1, 4 if rank < 3 else 2))
        dilation = draw(st.integers(1, 2))
        before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        stride = draw(st.integers(1, 3)) if strided else 1
        reach = (taps - 1) * dilation + 1
        outputs = max(0, (size + before + after - reach)) // stride + 1
        if size + before + after < reach:
            before, outputs = reach - size, 1
        axes.append(convolved(size, taps, stride, dilation, before, outputs))
        reads.append([[q * stride + t * dilation - before for t in range(taps)] for q in range(outputs)])
        sizes.append(size)
        kernel.append(taps)
    groups, channels, batch = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    x = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(batch, groups, channels, *sizes))
    return x.astype(np.float32), axes, tuple(kernel), reads


def by_offsets(batches: list[np.ndarray], axes: list[Axis]) -> np.ndarray:
    groups, channels = batches[0].shape[1:3]
    k = channels * int(np.prod([len(axis.spans) for axis in axes]))
    sums = Offsets(groups, channels, np.zeros)
    for x in batches:
        sums.add(x, axes)
    return sums.result(axes, np.zeros((groups, k, k), np.float32))


def forced(way: Way) -> AbstractContextManager[object]:
    return patch("gossamer.measuring.autocorrelation.cheapest", lambda shape, axes: (way, 0.0))


def by_patches(batches: list[np.ndarray], axes: list[Axis]) -> np.ndarray:
    groups, channels = batches[0].shape[1:3]
    k = channels * int(np.prod([len(axis.spans) for axis in axes]))
    sums = Patches(np.zeros((groups, k, k), np.float32))
    for x in batches:
        sums.add(x, axes)
    return sums.h_GKK


def close(got: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.allclose(got, expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected).max())))


@pytest.mark.parametrize("way", [by_spectrum, by_shifts, by_positions])
@given(case=cases(strided=True))
def test_offsets_are_exact(
    way: Way, case: tuple[np.ndarray, list[Axis], tuple[int, ...], list[list[list[int]]]]
) -> None:
    x, axes, kernel, reads = case
    with forced(way):
        got = by_offsets([x], axes)
    assert close(got, brute_force(x, kernel, reads))
    assert np.array_equal(got, got.swapaxes(1, 2))


@given(cases(strided=True))
def test_patches_are_exact(case: tuple[np.ndarray, list[Axis], tuple[int, ...], list[list[list[int]]]]) -> None:
    x, axes, kernel, reads = case
    assert close(by_patches([x], axes), brute_force(x, kernel, reads))


@pytest.mark.parametrize("way", [by_spectrum, by_shifts, by_positions])
@given(data=st.data())
def test_transposed_convolutions_are_exact(way: Way, data: st.DataObject) -> None:
    """Output q is reached from position p by tap t where p * stride + t * dilation - before = q."""
    axes, reads, sizes, kernel = [], [], [], []
    rank = data.draw(st.integers(1, 3))
    for _ in range(rank):
        size, taps = data.draw(st.integers(1, 5 if rank < 3 else 3)), data.draw(st.integers(1, 4 if rank < 3 else 2))
        stride, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
        whole = stride * (size - 1) + (taps - 1) * dilation + 1
        before, extra = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
        outputs = max(1, whole - before + extra)
        axes.append(transposed(size, taps, stride, dilation, before, outputs))
        starts = [[q + before - t * dilation for t in range(taps)] for q in range(outputs)]
        reads.append([[n // stride if n % stride == 0 else -1 for n in row] for row in starts])
        sizes.append(size)
        kernel.append(taps)
    x = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(2, 2, 2, *sizes)).astype(np.float32)
    with forced(way):
        assert close(by_offsets([x], axes), brute_force(x, tuple(kernel), reads))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("way", [by_offsets, by_patches])
def test_chunks_and_sizes_do_not_matter(way: Callable[..., np.ndarray], stride: int) -> None:
    rng = np.random.default_rng(3)
    axes = [convolved(9, 3, stride, 1, 1, 9 // stride), convolved(8, 3, stride, 1, 1, 8 // stride)]
    x = rng.normal(size=(5, 2, 3, 9, 8)).astype(np.float32)
    assert close(way([x[:1], x[1:4], x[4:]], axes), way([x], axes))


@pytest.mark.parametrize("stride", [1, 2])
def test_maps_of_other_sizes_are_summed_with_the_same_kernel(stride: int) -> None:
    rng = np.random.default_rng(4)
    sums, expected = Offsets(1, 2, np.zeros), np.zeros((1, 6, 6))
    for size in (2, 5, 9):
        x = rng.normal(size=(1, 1, 2, size)).astype(np.float32)
        outputs = -(-size // stride)
        axes = [convolved(size, 3, stride, 1, 1, outputs)]
        sums.add(x, axes)
        expected += brute_force(x, (3,), [[[q * stride + t - 1 for t in range(3)] for q in range(outputs)]])
    assert close(sums.result(axes, np.zeros((1, 6, 6), np.float32)), expected)


@pytest.mark.parametrize("way", [by_spectrum, by_shifts, by_positions])
def test_errors_are_small_beside_the_largest_moment_even_where_the_mean_is_large(way: Way) -> None:
    x = (np.random.default_rng(5).normal(size=(4, 1, 5, 20, 17)) + 30).astype(np.float32)
    axes = [convolved(20, 3, 1, 1, 1, 20), convolved(17, 3, 2, 1, 1, 9)]
    reads = [[[q * stride + t - 1 for t in range(3)] for q in range(n)] for stride, n in ((1, 20), (2, 9))]
    expected = brute_force(x, (3, 3), reads)
    with forced(way):
        assert np.abs(by_offsets([x], axes) - expected).max() < 3e-6 * expected.max()


def test_rows_of_many_channels_are_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(6).normal(size=(2, 2, 7, 6)).astype(np.float32)
    axes = [convolved(6, 3, 2, 1, 1, 3)]
    whole = by_offsets([x], axes)
    monkeypatch.setattr("gossamer.measuring.autocorrelation.PATCH_BYTES", 2000)
    assert np.array_equal(by_offsets([x], axes), whole) and np.array_equal(whole, whole.swapaxes(1, 2))


def test_the_cheaper_way_is_taken() -> None:
    def cheaper(shape: tuple[int, ...], taps: int, stride: int = 1) -> bool:
        size = shape[-1]
        axis = convolved(size, taps, stride, 1, taps // 2, -(-size // stride))
        return offsets_are_cheaper(shape, [axis, axis])

    assert cheaper((4, 1, 64, 56, 56), 3) and cheaper((8, 1, 512, 7, 7), 3) and cheaper((4, 144, 1, 56, 56), 3)
    assert cheaper((8, 1, 3, 224, 224), 7, 2) and not cheaper((8, 1, 3, 224, 224), 3, 2)
    assert not cheaper((4, 1, 64, 56, 56), 1) and not cheaper((4, 1, 64, 56, 56), 3, 2)
    assert not cheaper((1, 1, 4, 2, 2), 3)
    assert offsets_are_cheaper((1, 1, 64, 2, 2), [transposed(2, 2, 2, 1, 0, 4)] * 2)
