"""Bit planes hold any integers of their bits, without a gap, and come out of the runtime as they went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.passes.graphs import operators, optimized, parse, run

from gossamer.graph.packed_bits import planes_of, stored_integers
from gossamer.nouns.model import Model


def packed(values: np.ndarray, bits: int, signed: bool) -> Model:
    """A model that gives the integers, as floats, in place of a constant."""
    model = parse("test (float[1] x) => (float[A] y) { y = Add(x, w) }", opset=18, w=np.zeros(3, np.float32)).clone()
    (node,) = model.ir.graph
    node.replace_input_with(1, stored_integers(node, "w", values, bits, signed))
    return model


@given(st.integers(1, 16), st.booleans(), st.integers(1, 40), st.integers(0, 999))
def test_integers_come_back(bits: int, signed: bool, size: int, seed: int) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    values = np.random.default_rng(seed).integers(low, high, size)
    assert planes_of(values, bits).shape == (bits, -(-size // 8), 1)
    (y,) = run(packed(values, bits, signed), x=np.zeros(1, np.float32))
    assert np.array_equal(y, values.astype(np.float32))


def test_rows_are_packed_each_by_itself() -> None:
    table = np.random.default_rng(0).integers(-4, 4, (5, 24))
    planes = planes_of(table, 3)
    assert planes.shape == (5, 3, 3, 1)
    assert np.array_equal(planes[2], planes_of(table[2], 3))


@pytest.mark.parametrize("size", [16, 17])
def test_nothing_is_left_to_do_once_the_file_is_open(size: int, tmp_path: Path) -> None:
    model = packed(np.arange(size), 5, False)
    assert operators(model)["Slice"] == (size % 8 > 0)
    assert optimized(model, tmp_path) == {"Add": 1}
