from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.passes.graphs import applied, normal, parse

from gossamer.archive.pack import pack
from gossamer.errors import OptionError
from gossamer.graph.edit import constant
from gossamer.nouns.model import to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.passes.round_floats import to_bits

TEXT = "test (float[N,64] x) => (float[N,32] y) { a = MatMul(x, w)  b = Add(a, c)  y = MatMul(b, v) }"


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)), st.integers(2, 23))
def test_the_nearest_number_of_so_many_bits(x: np.ndarray, bits: int) -> None:
    found = to_bits(x, bits)
    assert found.shape == x.shape and found.dtype == np.float32
    np.testing.assert_array_equal(to_bits(found, bits), found)
    same = ~np.isfinite(x)
    np.testing.assert_array_equal(found[same], x[same])
    mantissa, _ = np.frexp(found[np.isfinite(found) & (np.abs(x) < 1e38)].astype(np.float64))
    normal_ones = np.abs(found[np.isfinite(found) & (np.abs(x) < 1e38)]) >= np.finfo(np.float32).tiny
    assert (mantissa[normal_ones] * 2**bits % 1 == 0).all()
    finite = np.isfinite(x) & (np.abs(x) >= np.finfo(np.float32).tiny) & (np.abs(x) < 1e38)
    with np.errstate(over="ignore"):
        error = np.abs(found[finite].astype(np.float64) - x[finite])
    assert (error <= np.abs(x[finite].astype(np.float64)) * 2.0**-bits).all()


def test_ties_go_to_the_even_number() -> None:
    np.testing.assert_array_equal(to_bits(np.float32([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)]), 8), [1, 1 + 2**-6, -1])


def test_what_is_left_takes_half_of_an_archive_and_large_tensors_stay() -> None:
    model = parse(TEXT, w=normal(64, 64), c=normal(64), v=normal(64, 32))
    result = applied(Step("round_floats", {"largest_size": 3000}, Scope()), model)
    arrays = {name: np.asarray(constant(value)) for name, value in result.model.ir.graph.initializers.items()}
    np.testing.assert_array_equal(arrays["w"], normal(64, 64))
    np.testing.assert_array_equal(arrays["v"], to_bits(normal(64, 32), 11))
    sizes = [
        sum(one.coded_bytes for one in pack(to_bytes(each)).tensors if one.name == "v")
        for each in (model, result.model)
    ]
    assert sizes[1] < 0.75 * sizes[0]
    assert len(to_bytes(result.model)) <= len(to_bytes(model))
    assert not applied(Step("round_floats", {"largest_size": 3000}, Scope()), result.model).modified


def test_only_what_is_in_scope() -> None:
    model = parse(TEXT, w=normal(64, 64), c=normal(64), v=normal(64, 32))
    add = next(node.name for node in model.ir.graph if node.op_type == "Add")
    result = applied(Step("round_floats", {}, Scope(only=(add,))), model)
    arrays = {name: np.asarray(constant(value)) for name, value in result.model.ir.graph.initializers.items()}
    np.testing.assert_array_equal(arrays["v"], normal(64, 32))
    assert not np.array_equal(arrays["c"], normal(64))


def test_bits_are_checked() -> None:
    with pytest.raises(OptionError, match="bits"):
        applied(
            Step("round_floats", {"bits": 1}, Scope()), parse(TEXT, w=normal(64, 64), c=normal(64), v=normal(64, 32))
        )
