"""Low rank: optimal for matrices, three factors for kernels, and plain words where it cannot apply."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.forms import Chained, Factored, stored_bits
from gossamer.constraints.low_rank import LowRank
from gossamer.errors import OptionError

KERNEL = (6, 3, 3)
W = np.random.default_rng(0).normal(size=(1, 8, 54)).astype(np.float32)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 8), st.integers(0, 99))
def test_two_factors_are_truncated_singular_vectors(outputs: int, width: int, rank: int, seed: int) -> None:
    w = np.random.default_rng(seed).normal(size=(2, outputs, width)).astype(np.float32)
    low = LowRank(rank)
    if rank >= min(outputs, width):
        assert low.obstacle(w.shape)
        return
    form = low.project(w)
    assert isinstance(form, Factored)
    left, value, right = np.linalg.svd(w, full_matrices=False)
    best = (left[:, :, :rank] * value[:, None, :rank]) @ right[:, :rank]
    error = np.linalg.norm(form.real() - w)
    assert error == pytest.approx(np.linalg.norm(best - w), rel=1e-4)
    assert low.contains(form.real()) and not low.contains(w)


@pytest.mark.parametrize("split", ["svd", "tucker", "cp"])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_inside_and_the_same_again(split: str, rank: int) -> None:
    low = LowRank(rank, split=split)  # type: ignore[arg-type]
    form = low.project(W, KERNEL)
    assert isinstance(form, Factored if split == "svd" else Chained)
    real = form.real()
    assert real.dtype == np.float32 and real.shape == W.shape
    assert ((real - W) ** 2).sum() < (W**2).sum() and stored_bits(form) < 32 * W.size
    assert low.contains(real, KERNEL) and not low.contains(W, KERNEL)
    again = low.project(real, KERNEL).real()
    np.testing.assert_allclose(again, real, atol=(1e-2 if split == "cp" else 1e-5) * np.abs(real).max())


def test_factors_are_laid_out_as_convolutions_take_them() -> None:
    tucker, cp = (LowRank(3, split=split).project(W, KERNEL) for split in ("tucker", "cp"))
    assert isinstance(tucker, Chained) and isinstance(cp, Chained)
    assert [part.shape for part in tucker] == [(8, 3), (3, 3, 9), (3, 6)]
    assert [part.shape for part in cp] == [(8, 3), (3, 1, 9), (3, 6)]
    outer, core, inner = cp
    slow = sum(np.einsum("o,i,s->ois", outer[:, r], inner[r], core[r, 0]) for r in range(3))
    np.testing.assert_allclose(cp.real(), np.reshape(slow, (1, 8, 54)), atol=1e-5)
    slow = np.einsum("or,rqs,qi->ois", *tucker).reshape(1, 8, 54)
    np.testing.assert_allclose(tucker.real(), slow, atol=1e-5)


@pytest.mark.parametrize("split", ["svd", "tucker"])
def test_a_share_of_the_energy(split: str) -> None:
    for ratio in (0.3, 0.6, 0.9):
        real = LowRank(energy_ratio=ratio, split=split).project(W, KERNEL).real()  # type: ignore[arg-type]
        kept = 1 - ((real - W) ** 2).sum() / (W**2).sum()
        assert ratio - 1e-6 <= kept < ratio + 0.25
        assert LowRank(energy_ratio=ratio, split=split).contains(real, KERNEL)  # type: ignore[arg-type]


def test_groups_share_a_rank() -> None:
    w = np.random.default_rng(1).normal(size=(3, 6, 20)).astype(np.float32) * np.array([1, 2, 3])[:, None, None]
    form = LowRank(energy_ratio=0.7).project(w)
    assert isinstance(form, Factored) and isinstance(form.left_GOR, np.ndarray)
    assert form.left_GOR.shape[0] == 3 and ((form.real() - w) ** 2).sum() <= 0.3 * (w**2).sum()


@pytest.mark.parametrize(
    ("low", "shape", "k_shape", "said"),
    [
        (LowRank(8), (1, 8, 54), KERNEL, "rank 8 is not below that of any weight of 8 x 54"),
        (LowRank(1), (30, 1, 9), (1, 3, 3), "1 x 9 a group has rank 1 as it is"),
        (LowRank(2, split="cp"), (1, 8, 54), (), "cp takes apart kernels of more than one position"),
        (LowRank(2, split="tucker"), (1, 8, 54), (54, 1, 1), "tucker takes apart kernels of more than one position"),
        (LowRank(2, split="tucker"), (2, 4, 54), KERNEL, "kernels of one group, not of 2"),
        (LowRank(2), (1, 0, 54), (), "holds no weights"),
    ],
)
def test_it_says_what_stands_in_the_way(
    low: LowRank, shape: tuple[int, int, int], k_shape: tuple[int, ...], said: str
) -> None:
    assert said in low.obstacle(shape, k_shape)
    with pytest.raises(OptionError, match=said):
        low.project(np.ones(shape, np.float32), k_shape)
    assert not low.contains(np.ones(shape, np.float32), k_shape)


def test_one_of_rank_and_ratio() -> None:
    with pytest.raises(OptionError, match="one of them; got None and None"):
        LowRank()
    with pytest.raises(OptionError, match=r"one of them; got 3 and 0\.5"):
        LowRank(3, 0.5)
    with pytest.raises(OptionError, match="cp takes a rank"):
        LowRank(energy_ratio=0.5, split="cp")
