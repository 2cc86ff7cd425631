"""Weights with a scale for each input: the file computes with the floats that the constraint has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.graph.layers_with_weights import NAMES, an_input, layers, matrix_of, uses_in
from tests.passes.graphs import array_of, operators, parse, run

from gossamer.constraints.grid import Grid
from gossamer.errors import OptionError
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope, Step
from gossamer.passes import contract

DEPTHWISE = "test (float[1,12,9,9] x) => (float[1,24,A,B] y) { y = Conv<pads=[1,1,1,1], group=12>(x, w) }"


def constrained(model: Model, constraint: str, **config: str) -> Model:
    step = Step("constrain_weights", {"constraint": constraint, "solver": "nearest", "form": "cast", **config})
    return contract.run(step, model).model


def projected(model: Model, grid: Grid) -> Model:
    """The same in floats."""
    clone = model.clone()
    for value, (use, *_) in uses_in(clone).items():
        floats = grid.project(matrix_of(use), use.k_shape).real()
        value.const_value = ir.tensor(use.from_matrix(floats), name=value.name)
    return clone


@pytest.mark.parametrize("name", [*NAMES, "depthwise"])
@pytest.mark.parametrize("grid", [Grid(8, granularity="input"), Grid(4, False, "input")])
def test_the_file_computes_with_its_floats(name: str, grid: Grid) -> None:
    model = parse(DEPTHWISE, w=(24, 1, 3, 3)) if name == "depthwise" else layers()[name]
    result = constrained(model, "grid:8:input" if grid.symmetric else "grid:4:asymmetric:input")
    assert operators(result)["Mul"] >= len(uses_in(model))
    x = an_input(model)
    for wanted, got in zip(run(projected(model, grid), x=x), run(result, True, x=x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "shape"),
    [("conv", (1, 12, 1, 1)), ("transposed", (12, 1, 1, 1)), ("product", (48, 1)), ("gemm, outputs first", (1, 48))],
)
def test_there_is_one_scale_an_input(name: str, shape: tuple[int, ...]) -> None:
    assert array_of(constrained(layers()[name], "grid:8:input"), "w_scale").shape == shape


def test_of_a_depthwise_layer_it_is_one_a_channel() -> None:
    result = constrained(parse(DEPTHWISE, w=(24, 1, 3, 3)), "grid:8:input")
    assert len(np.unique(array_of(result, "w_scale"))) == 12


@pytest.mark.parametrize("form", ["matmulnbits", "dequantize"])
def test_forms_without_a_place_for_them_say_so(form: str) -> None:
    step = Step(
        "constrain_weights", {"constraint": "grid:8:input", "solver": "nearest", "form": form}, Scope(only=("node_y",))
    )
    with pytest.raises(OptionError, match=r"inputs.*form cast"):
        contract.run(step, layers()["product"])
