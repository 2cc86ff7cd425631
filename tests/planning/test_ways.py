from __future__ import annotations

from math import inf

import numpy as np
import onnx_ir as ir
import pytest
from tests.planning.graphs import cnn, parse

from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.graph.layers import Layer, layer_of
from gossamer.measuring.kernels import Kernel
from gossamer.measuring.prices import Price
from gossamer.measuring.shapes import static_shapes
from gossamer.nouns.model import Model
from gossamer.planning.ways import Shaped, Way, cost_ms, parts, shaped, ways
from gossamer.runtimes import onnxruntime


def layers(model: Model) -> list[Shaped]:
    dims = static_shapes(model).dims
    found = [layer_of(node) for node in model.ir.graph]
    return [one for layer in found if isinstance(layer, Layer) and (one := shaped(layer, dims)) is not None]


WIDE = "test (float[N,16,8,8] x) => (float[N,32,4,4] y) { y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w) }"
PRODUCT = "test (float[N,5,64] x) => (float[N,5,32] y) { y = MatMul(x, w) }"


def test_a_product_may_become_blocks_thin_factors_and_integers() -> None:
    (one,) = layers(parse(PRODUCT, w=(64, 32)))
    found = ways(one, onnxruntime)
    assert found[0] == Way()
    assert {Way(None, True), Way(Grid(4, granularity=32)), Way(LowRank(8)), Way(LowRank(8), True)} <= set(found)
    assert str(Way(LowRank(8), True)) == "low_rank:8 in int8" and str(Way()) == "float"


def test_a_grouped_convolution_is_not_taken_apart() -> None:
    grouped = layers(cnn())[1]
    assert ways(grouped, onnxruntime) == (Way(), Way(None, True))


def test_the_factors_of_a_convolution_have_its_shapes() -> None:
    (one,) = layers(parse(WIDE, w=(32, 16, 3, 3)))
    thin, back = (part for part, _ in parts(one, Way(LowRank(4))))
    assert (thin.x_shape, thin.w_shape) == ((1, 16, 8, 8), (4, 16, 3, 3))
    assert (back.x_shape, back.w_shape) == ((1, 4, 4, 4), (32, 4, 1, 1))
    reduce, core, expand = (part for part, _ in parts(one, Way(LowRank(8, split="tucker"), True)))
    assert (reduce.x_shape, reduce.w_shape) == ((1, 16, 8, 8), (8, 16, 1, 1))
    assert (core.x_shape, core.w_shape, core.attributes) == ((1, 8, 8, 8), (8, 8, 3, 3), one.signature.attributes)
    assert (expand.x_shape, expand.w_shape) == ((1, 8, 4, 4), (32, 8, 1, 1))


def test_what_has_no_price_costs_without_limit() -> None:
    (one,) = layers(parse(PRODUCT, w=(64, 32)))
    both = parts(one, Way(LowRank(8), True))
    assert [kernel for _, kernel in both] == [Kernel("int8")] * 2
    assert cost_ms(both, {both[0]: Price(1.0, 0.5)}) == inf
    assert cost_ms(both, {both[0]: Price(1.0, 0.5), both[1]: Price(2.0, 0.25)}) == pytest.approx(1.0)
    assert cost_ms(both, {both[0]: Price(1.0, None), both[1]: Price(2.0, 0.25)}) == inf


def test_a_layer_of_unknown_shape_has_no_ways() -> None:
    model = parse("test (float[N,T,64] x) => (float[N,T,32] y) { y = MatMul(x, w) }", w=(64, 32))
    layer = layer_of(next(iter(model.ir.graph)))
    assert isinstance(layer, Layer) and shaped(layer, {}) is None
    assert isinstance(model.ir, ir.Model) and np.prod(layer.channels) == 32
