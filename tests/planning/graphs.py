"""Two small graphs that both rounds of planning are tested on, and plans by their name."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, Step


def parse(text: str, **shapes: tuple[int, ...]) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    for name, shape in shapes.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    for node in proto.graph.node:
        node.name = node.name or f"node_{node.output[0]}"
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), "test")


CNN = """test (float[N,3,8,8] x) => (float[N,5] y) {
    [stem] a = Conv(x, w0)  b = Conv<group=8>(a, w1)  p = GlobalAveragePool(b)  f = Flatten(p)  y = Gemm(f, w2) }"""
ENCODER = """test (int64[N,T] rows) => (float[N,T,8] y) {
    x = Gather(table, rows)  a = MatMul(x, w)  b = Add(a, x)  y = LayerNormalization(b, g) }"""


def cnn() -> Model:
    return parse(CNN, w0=(8, 3, 3, 3), w1=(8, 1, 3, 3), w2=(8, 5))


def encoder() -> Model:
    return parse(ENCODER, table=(30, 8), w=(8, 8), g=(8,))


def by_name(plans: tuple[Plan, ...]) -> dict[str, Plan]:
    assert len({plan.name for plan in plans}) == len(plans)
    assert len({msgspec.json.encode(plan.steps) for plan in plans}) == len(plans), "two plans do the same"
    return {plan.name: plan for plan in plans}


def step(plan: Plan, method: str) -> Step:
    return next(step for step in plan.steps if step.method == method)
