from __future__ import annotations

import numpy as np
import pytest
from tests.passes.graphs import operators, parse, run

from gossamer.graph.channel_scales import can_scale, scale_channels
from gossamer.graph.edit import drop_unused
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Step
from gossamer.passes import contract

SHAPES = {
    "Conv": (6, 4, 3, 3),
    "ConvTranspose": (4, 6, 2, 2),
    "Gemm": (16, 6),
    "Gemm transposed": (6, 16),
    "MatMul": (16, 6),
}


def layer(kind: str) -> Model:
    """One layer without a bias, of 6 outputs."""
    operator, _, transposed = kind.partition(" ")
    option = "<transB=1>" if transposed else ""
    x = "float[2,4,5,5] x" if operator.startswith("Conv") else "float[2,16] x"
    y = "float[2,6,a,b] y" if operator.startswith("Conv") else "float[2,6] y"
    w = np.random.default_rng(1).normal(size=SHAPES[kind]).astype(np.float32)
    return parse(f"layer ({x}) => ({y}) {{ y = {operator}{option}(x, w) }}", w=w)


def constrained(kind: str, constraint: str, form: str) -> Model:
    if not constraint:
        return layer(kind)
    form = "cast" if form == "matmulnbits" and kind.startswith("Conv") else form  # it is no convolution
    config = {"constraint": constraint, "form": form, "solver": "nearest"}
    return contract.run(Step("constrain_weights", config), layer(kind)).model


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    ("constraint", "form"),
    [("", ""), ("grid:8", "cast"), ("grid:8:tensor", "cast"), ("grid:8", "dequantize"), ("grid:8", "matmulnbits")],
)
def test_channels_are_scaled_where_they_are_stored(kind: str, constraint: str, form: str) -> None:
    before = constrained(kind, constraint, form)
    after, scale_O = before.clone(), np.linspace(0.5, 2, 6)
    product = next(node for node in after.ir.graph if node.outputs[0].name == "y")
    assert can_scale(product)
    scale_channels(product, scale_O)
    drop_unused(after.ir)
    x = np.random.default_rng(2).normal(size=(2, 4, 5, 5) if kind.startswith("Conv") else (2, 16)).astype(np.float32)
    old, new = (run(m, x=x)[0] for m in (before, after))
    shape = (6, 1, 1) if kind.startswith("Conv") else (6,)
    np.testing.assert_allclose(new, old * scale_O.reshape(shape), rtol=1e-4, atol=1e-4)
    assert operators(after) == operators(before)
    assert to_bytes(before) == to_bytes(before.clone())


def test_what_cannot_be_scaled() -> None:
    grouped = parse(
        "g (float[1,4,5,5] x) => (float[1,6,a,b] y) { y = ConvTranspose<group=2>(x, w) }",
        w=np.ones((4, 3, 2, 2), np.float32),
    )
    assert not can_scale(grouped.ir.graph[0])


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("constraint", ["codebook:4", "grid:8:tensor"])
def test_what_has_no_place_for_scales_is_not_scaled(kind: str, constraint: str) -> None:
    model = constrained(kind, constraint, "dequantize" if "grid" in constraint else "fastest")
    assert not can_scale(next(node for node in model.ir.graph if node.outputs[0].name == "y"))
