"""Small layers of every kind that has a weight, each with an input to run it on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from tests.passes.graphs import normal, parse

from gossamer.graph.edit import constant
from gossamer.graph.weight_matrix import WeightMatrix
from gossamer.graph.weight_uses import weight_uses
from gossamer.nouns.model import Model

CONV = "test (float[1,12,9,9] x) => (float[1,16,A,B] y) { y = Conv<pads=[1,1,1,1], GROUP>(x, w, c) }"
TRANSPOSED = (
    "test (float[1,12,9,9] x) => (float[1,16,A,B] y) "
    "{ y = ConvTranspose<pads=[1,1,1,1], strides=[2,2], GROUP>(x, w, c) }"
)
LSTM = """test (float[4,2,24] x) => (float[4,2,2,16] y) {
    y, a, b = LSTM<hidden_size=16, direction="bidirectional">(x, w, r) }"""


def layers() -> dict[str, Model]:
    """By name; the weight is `w`, of the recurrent one also `r`."""
    return {
        "conv": parse(CONV.replace("GROUP", "group=1"), w=(16, 12, 3, 3), c=(16,)),
        "grouped": parse(CONV.replace("GROUP", "group=2"), w=(16, 6, 3, 3), c=(16,)),
        "transposed": parse(TRANSPOSED.replace("GROUP", "group=1"), w=(12, 16, 3, 3), c=(16,)),
        "transposed grouped": parse(TRANSPOSED.replace("GROUP", "group=2"), w=(12, 8, 3, 3), c=(16,)),
        "product": parse("test (float[2,5,48] x) => (float[2,5,32] y) { y = MatMul(x, w) }", w=(48, 32)),
        "product from the left": parse("test (float[2,48,5] x) => (float[2,32,5] y) { y = MatMul(w, x) }", w=(32, 48)),
        "gemm": parse("test (float[5,48] x) => (float[5,32] y) { y = Gemm<alpha=0.5>(x, w, c) }", w=(48, 32), c=(32,)),
        "gemm, outputs first": parse(
            "test (float[48,5] x) => (float[5,32] y) { y = Gemm<transA=1, transB=1>(x, w, c) }", w=(32, 48), c=(32,)
        ),
        "table": parse("test (int64[2,N] x) => (float[2,N,16] y) { y = Gather(w, x) }", w=(300, 16)),
        "recurrent": parse(LSTM, w=(2, 64, 24), r=(2, 64, 16)),
    }


NAMES = tuple(layers())


def an_input(model: Model) -> np.ndarray:
    value = model.ir.graph.inputs[0]
    if value.dtype == ir.DataType.INT64:
        return np.array([[0, 5, -1], [299, 3, 2]])
    assert value.shape is not None
    return normal(*value.shape.numpy())


def uses_in(model: Model) -> dict[ir.Value, list[WeightMatrix]]:
    return weight_uses(list(model.ir.graph), True).uses


def matrix_of(use: WeightMatrix) -> np.ndarray:
    return use.to_matrix(np.asarray(constant(use.value)))


def with_numbers(model: Model, numbers: Mapping[str, np.ndarray]) -> Model:
    """The float model with other weights, (G, O, K) by name."""
    clone = model.clone()
    for weight, (use, *_) in uses_in(clone).items():
        if weight.name in numbers:
            real = use.from_matrix(numbers[weight.name or ""].astype(np.float32))
            weight.const_value = ir.tensor(real, name=weight.name)
    return clone
