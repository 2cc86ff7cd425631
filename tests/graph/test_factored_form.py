"""Thin layers in the place of one: the same floats, fewer weights, and kept whole where that would not pay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.graph.layers_with_weights import NAMES, an_input, layers, uses_in, with_numbers
from tests.passes.graphs import operators, parse, run

from gossamer.arith.forms import Chained, Factored
from gossamer.constraints.grid import Grid
from gossamer.graph.edit import drop_unused
from gossamer.graph.factored_form import obstacle, parts_of, saving_obstacle, store_factored
from gossamer.nouns.model import Model, to_bytes

LAYERS = layers()
KERNELS = ("conv", "transposed")


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def check(model: Model, result: Model, real: np.ndarray) -> None:
    """The file is valid, and computes with these floats."""
    drop_unused(result.ir)
    onnx.checker.check_model(onnx.load_from_string(to_bytes(result)), full_check=True)
    x = an_input(model)
    (wanted, *_), (got, *_) = run(with_numbers(model, {"w": real}), x=x), run(result, x=x)
    assert got.shape == wanted.shape and np.allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert [value.name for value in result.ir.graph.outputs] == [value.name for value in model.ir.graph.outputs]


@given(st.sampled_from([name for name in NAMES if name != "recurrent"]), st.integers(1, 5), st.integers(0, 99))
def test_two_layers_compute_what_one_did(name: str, rank: int, seed: int) -> None:
    rng, model = np.random.default_rng(seed), LAYERS[name]
    result = model.clone()
    ((uses),) = uses_in(result).values()
    groups, outputs, width = uses[0].shape_GOK
    form = Factored(normal(rng, groups, outputs, rank), normal(rng, groups, rank, width))
    assert not obstacle(uses) and not saving_obstacle(uses[0], parts_of(uses[0], form))
    store_factored(uses, form)
    check(model, result, form.real())
    taken = 4 * groups * rank * (outputs + width)
    assert result.weight_bytes() == model.weight_bytes() - 4 * groups * outputs * width + taken


@given(st.sampled_from(KERNELS), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_three_convolutions_compute_what_one_did(name: str, r: int, q: int, diagonal: bool, seed: int) -> None:
    rng, model = np.random.default_rng(seed), LAYERS[name]
    result = model.clone()
    (uses,) = uses_in(result).values()
    _, outputs, _ = uses[0].shape_GOK
    core = normal(rng, r, 1, 9) if diagonal else normal(rng, r, q, 9)
    form = Chained(normal(rng, outputs, r), core, normal(rng, r if diagonal else q, uses[0].k_shape[0]))
    store_factored(uses, form)
    check(model, result, form.real())
    assert sum(operators(result).values()) == 3
    assert result.weight_bytes() == model.weight_bytes() - 4 * outputs * uses[0].shape_GOK[2] + 4 * sum(
        map(np.size, form)
    )


@pytest.mark.parametrize("name", ["conv", "grouped", "product", "gemm, outputs first", "table"])
@pytest.mark.parametrize("granularity", ["channel", "tensor", 4])
def test_factors_on_a_grid(name: str, granularity: str | int) -> None:
    rng, model = np.random.default_rng(1), LAYERS[name]
    result = model.clone()
    (uses,) = uses_in(result).values()
    groups, outputs, width = uses[0].shape_GOK
    grid = Grid(8, granularity=granularity) if width % 4 == 0 else Grid(8)  # type: ignore[arg-type]  # one of the words
    left = grid.project(normal(rng, groups, outputs, 4))
    form = Factored(left, grid.project(normal(rng, groups, 4, width)))
    store_factored(uses, form, "cast")
    check(model, result, form.real())
    floats = 4 * groups * 4 * (outputs + width)
    assert result.weight_bytes() < model.weight_bytes() - 4 * groups * outputs * width + 0.75 * floats


def test_what_would_not_pay_is_kept_whole() -> None:
    (uses,) = uses_in(LAYERS["conv"]).values()
    rng = np.random.default_rng(0)
    thick = Factored(normal(rng, 1, 16, 15), normal(rng, 1, 15, 108))
    assert (
        saving_obstacle(uses[0], parts_of(uses[0], thick))
        == "at rank 15 its factors have 1860 weights, and it has 1728"
    )
    strided = parse("t (float[1,12,9,9] x) => (float[1,16,3,3] y) { y = Conv<strides=[3,3]>(x, w) }", w=(16, 12, 3, 3))
    (uses,) = uses_in(strided).values()
    chained = Chained(normal(rng, 16, 8), normal(rng, 8, 11, 9), normal(rng, 11, 12))
    reason = saving_obstacle(uses[0], parts_of(uses[0], chained))
    assert reason == "at rank 8 its factors multiply 2108 times for an output position, and it 1728 times"


def test_recurrent_layers_cannot_be_taken_apart() -> None:
    for uses in uses_in(LAYERS["recurrent"]).values():
        assert obstacle(uses) == "a recurrent layer's weights cannot be taken apart"
