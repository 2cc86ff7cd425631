"""Graphs for the tests of several passes: made from text or nodes, changed by one pass, run and looked into."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper

from gossamer.graph.edit import constant
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Step
from gossamer.passes import contract
from gossamer.runtimes.onnxruntime import open_session


def parse(text: str, opset: int = 21, **weights: Any) -> Model:
    """A float model from ONNX's text form; a weight is an array, or a shape to be filled from a seed."""
    rng = np.random.default_rng(7)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    for name, weight in weights.items():
        if isinstance(weight, tuple):
            weight = rng.normal(size=weight).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    for node in proto.graph.node:
        node.name = node.name or f"node_{node.output[0]}"
    onnx.checker.check_model(proto)
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), "test")


def make(
    nodes: list[Any], x_shape: tuple[int, ...], weights: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",)
) -> Model:
    """A float model of these nodes, with one input `x`."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), "test")


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def applied(step: Step, model: Model, evidence: Evidence | None = None) -> contract.Result:
    """The pass run, and what it made checked as ONNX."""
    result = contract.run(step, model, evidence)
    onnx.checker.check_model(onnx.load_from_string(to_bytes(result.model)), full_check=True)
    return result


def run(model: Model, optimize: bool = False, **feeds: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(array) for array in open_session(model, optimize=optimize).run(feeds)]


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.ir.graph)


def optimized(model: Model, folder: Path) -> Counter[str]:
    """The operators that are left when onnxruntime has fused and folded what it can."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def array_of(model: Model, name: str) -> np.ndarray:
    return np.asarray(constant(model.ir.graph.initializers[name]))


def assert_equal_outputs(before: Model, after: Model, x: np.ndarray) -> None:
    pairs = zip(*(open_session(model).run({"x": x}) for model in (before, after)), strict=True)
    for wanted, got in pairs:
        assert np.abs(wanted - got).max() <= 1e-5 * np.abs(wanted).max()
