"""What forms stand for, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.arith.forms import Dense, Factored, Form, Indexed, floats_of, stored_bits
from gossamer.arith.weight_grid import in_groups, weight_grid

W = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
SPARSE = np.where(np.arange(48).reshape(W.shape) % 4 == 0, W, np.float32(0))


@pytest.mark.parametrize(
    ("form", "bits"),
    [
        (weight_grid(W, (2,), 4), 48 * 4 + 6 * 32),
        (weight_grid(W, (2,), 3, symmetric=False), 48 * 3 + 6 * (32 + 3)),
        (weight_grid(in_groups(W, 2, 4), (3,), 16), 48 * 16 + 12 * 32),
        (Dense(W), 48 * 32),
        (Dense(SPARSE), 12 * 32 + 48),
        (Dense(np.zeros_like(W)), 48),
        (Indexed(np.zeros((2, 3, 8), np.uint8), np.zeros((1, 16, 1), np.float32)), 48 * 4 + 16 * 32),
        (Indexed(np.zeros((2, 3, 8), np.uint8), np.zeros((6, 5, 1), np.float32)), 48 * 3 + 6 * 5 * 32),
        (Indexed(np.zeros((2, 3, 2), np.uint8), np.zeros((1, 256, 4), np.float32)), 12 * 8 + 1024 * 32),
        (Indexed(np.zeros((2, 3, 8), np.uint8), np.zeros((1, 1, 1), np.float32)), 32),
        (Factored(W[:, :, :2], W[:, :2]), (12 + 32) * 32),
        (Factored(weight_grid(W[:, :, :2], (2,), 8), W[:, :2]), 12 * 8 + 6 * 32 + 32 * 32),
    ],
)
def test_bits(form: Form, bits: int) -> None:
    assert stored_bits(form) == bits


def test_floats() -> None:
    tables = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32)
    each = Indexed(np.array([[[0, 1], [1, 1]]], np.uint8), tables)
    assert floats_of(each).tolist() == [[[1, 2, 3, 4], [7, 8, 7, 8]]]
    one = Indexed(each.indices_GOV, tables[:1])
    assert floats_of(one).tolist() == [[[1, 2, 3, 4], [3, 4, 3, 4]]]
    grouped = weight_grid(in_groups(W, 2, 4), (3,), 16)
    assert floats_of(grouped).shape == W.shape and np.abs(floats_of(grouped) - W).max() < 1e-3
    np.testing.assert_allclose(floats_of(Factored(W[:, :, :2], W[:, :2])), W[:, :, :2] @ W[:, :2], rtol=1e-6)
