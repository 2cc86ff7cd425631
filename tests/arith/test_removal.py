"""Masks by score: sums over blocks, and N of every M against a brute force."""

from __future__ import annotations

import numpy as np

from gossamer.arith.removal import block_sums, keep_of_blocks, keep_of_every, removed_count


def test_block_sums_and_smaller_ones_at_the_edges() -> None:
    x = np.arange(15).reshape(1, 3, 5)
    assert block_sums(x, 2, 2).tolist() == [[[0 + 1 + 5 + 6, 2 + 3 + 7 + 8, 4 + 9], [10 + 11, 12 + 13, 14]]]
    kept = keep_of_blocks(x, 1 / 6, 2, 2)
    assert kept.shape == x.shape and (~kept).sum() == 4 and not kept[0, :2, :2].any()


def test_counts_are_the_nearest() -> None:
    assert [removed_count(ratio, 10) for ratio in (0, 0.04, 0.05, 0.7, 0.96)] == [0, 0, 1, 7, 10]


def test_equal_scores_keep_the_last() -> None:
    assert keep_of_every(np.ones((1, 1, 4)), 2, 4).tolist() == [[[False, False, True, True]]]
    assert keep_of_every(np.array([[[5, 1, 3, 4.0]]]), 1, 2).tolist() == [[[True, False, False, True]]]
