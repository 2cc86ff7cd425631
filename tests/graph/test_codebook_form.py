"""Indices and tables in the graph: the floats that they stand for, few bytes, and nothing left to do at run time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.graph.layers_with_weights import NAMES, an_input, layers, uses_in, with_numbers
from tests.passes.graphs import operators, optimized, parse, run

from gossamer.arith.forms import Indexed, stored_bits
from gossamer.constraints.codebook import Codebook
from gossamer.graph.codebook_form import obstacle, store_indexed
from gossamer.graph.edit import drop_unused
from gossamer.nouns.model import Model, save, to_bytes

LAYERS = layers()


def indexed(
    model: Model, k: int, own_tables: bool, dimension: int, seed: int = 0
) -> tuple[Model, dict[str, np.ndarray], int]:
    """The model with random indices and tables; the floats they stand for, and their bits."""
    rng, clone, reals, bits = np.random.default_rng(seed), model.clone(), {}, 0
    for weight, uses in uses_in(clone).items():
        groups, outputs, width = uses[0].shape_GOK
        tables = rng.normal(size=(groups * outputs if own_tables else 1, k, dimension)).astype(np.float32)
        indices = rng.integers(0, k, (groups, outputs, width // dimension)).astype(np.uint8 if k <= 256 else np.uint16)
        form = Indexed(indices, tables)
        store_indexed(uses, form)
        reals[weight.name or ""] = form.real()
        bits += stored_bits(form)
    drop_unused(clone.ir)
    return clone, reals, bits


@given(
    st.sampled_from(NAMES),
    st.sampled_from([2, 5, 16, 32, 256, 300]),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 99),
)
def test_the_file_computes_with_the_floats_of_the_form(name: str, k: int, own: bool, dimension: int, seed: int) -> None:
    model = LAYERS[name]
    dimension = 1 if "grouped" in name and dimension == 4 else dimension  # 54 weights a row
    result, reals, _ = indexed(model, k, own, dimension, seed)
    onnx.checker.check_model(onnx.load_from_string(to_bytes(result)), full_check=True)
    x = an_input(model)
    (wanted, *_), (got, *_) = run(with_numbers(model, reals), x=x), run(result, x=x)
    assert got.shape == wanted.shape and np.allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_folded_when_the_file_is_opened(name: str, tmp_path: Path) -> None:
    before = optimized(LAYERS[name], tmp_path)
    for k, own, dimension in ((16, False, 1), (5, False, 1), (32, True, 1), (256, False, 2)):
        assert optimized(indexed(LAYERS[name], k, own, dimension)[0], tmp_path) == before


@pytest.mark.parametrize("k", [2, 3, 8, 16, 20, 32, 100, 256, 1000])
@pytest.mark.parametrize("dimension", [1, 2])
def test_bytes_are_those_of_the_bits(k: int, dimension: int, tmp_path: Path) -> None:
    model = parse("test (float[M,512] x) => (float[M,384] y) { y = MatMul(x, w) }", w=(512, 384))
    result, _, bits = indexed(model, k, False, dimension)
    extra = sum(4 * count for count in (512, 2))  # shapes, masks, and the worth of every bit
    assert bits / 8 <= result.weight_bytes() <= bits / 8 + extra
    assert save(result, tmp_path / "a.onnx") < bits / 8 + extra + 2000


def test_few_indices_are_not_worth_the_nodes_of_bit_planes() -> None:
    few, many = (parse(f"test (float[M,{n}] x) => (float[M,32] y) {{ y = MatMul(x, w) }}", w=(n, 32)) for n in (8, 800))
    assert not operators(indexed(few, 5, False, 1)[0])["BitwiseAnd"]
    assert operators(indexed(many, 5, False, 1)[0])["BitwiseAnd"]


def test_what_would_not_shrink_or_cannot_be_read() -> None:
    (uses,) = uses_in(LAYERS["product"]).values()
    assert not obstacle(uses, Codebook(16), 21)
    assert "the floats 6144" in obstacle(uses, Codebook(256, "channel"), 21)
    table = next(
        iter(uses_in(parse("t (int64[N] x) => (float[N,16] y) { y = Gather(w, x) }", 17, w=(900, 16))).values())
    )
    assert obstacle(table, Codebook(5), 17) == "indices of 3 bits need opset 18, the graph has 17"
