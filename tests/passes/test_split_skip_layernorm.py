from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.passes.contract import Result, run

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.normal(0, 0.25, (16, 16)).astype(np.float32) for name in ("w", "u")}
WEIGHTS |= {name: RNG.normal(size=16).astype(np.float32) for name in ("b", "c", "gamma", "beta")}
WEIGHTS |= {
    "position": RNG.normal(size=(2, 4, 16)).astype(np.float32),
    "table": RNG.normal(size=(9, 16)).astype(np.float32),
}
WEIGHTS |= {"two": np.float32(2).reshape(()), "tiny": np.float32(1e-5).reshape(())}

RESIDUAL = "m = MatMul(x, w) n = Add(m, b) r = Add(n, x) y = LayerNormalization<axis=-1>(r, gamma, beta)"
WRITTEN_OUT = (
    "m = MatMul(x, w) n = Add(m, b) r = Add(n, x) e = ReduceMean<axes=[-1]>(r) d = Sub(r, e) p = Pow(d, two) "
    "v = ReduceMean<axes=[-1]>(p) t = Add(v, tiny) q = Sqrt(t) o = Div(d, q) g = Mul(o, gamma) y = Add(g, beta)"
)


def model(body: str, batch: str = "2", opset: int = 21) -> Model:
    sides = f"(float[{batch},4,16] x) => (float[{batch},4,16] y)"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> t {sides} {{ {body} }}')
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, k) for k, a in WEIGHTS.items() if k in used)
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(proto)
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), "test")


def split(before: Model, skip: tuple[str, ...] = ()) -> Result:
    return run(Step("split_skip_layernorm", scope=Scope(skip=skip)), before)


def run_and_list(any_model: Model, folder: Path) -> tuple[np.ndarray, Counter[str]]:
    """The output for one input, and the operators after the runtime's own optimisation."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    session = ort.InferenceSession(to_bytes(any_model), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(2, 4, 16)).astype(np.float32)
    return session.run(None, {"x": x})[0], Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)


STREAM = (
    "a = Add(x, x) n = LayerNormalization(a, gamma, beta) m = MatMul(n, u) r = Add(a, m) "
    "y = LayerNormalization(r, gamma, beta)"
)


@pytest.mark.parametrize(
    ("body", "batch", "opset"),
    [
        pytest.param(RESIDUAL, "2", 21, id="bias and residual"),
        pytest.param(RESIDUAL, "N", 21, id="free batch"),
        pytest.param(RESIDUAL.replace("Add(n, x)", "Add(x, n)"), "2", 17, id="swapped"),
        pytest.param(RESIDUAL.replace("Add(n, x)", "Add(n, position)"), "2", 21, id="stored positions"),
        pytest.param(WRITTEN_OUT, "2", 17, id="written out"),
        pytest.param(WRITTEN_OUT, "N", 17, id="written out, free batch"),
        pytest.param(STREAM, "2", 21, id="sum read twice"),
    ],
)
def test_the_runtime_no_longer_fuses_and_computes_the_same(body: str, batch: str, opset: int, tmp_path: Path) -> None:
    before = model(body, batch, opset)
    result = split(before)
    wanted, fused = run_and_list(before, tmp_path)
    got, kept = run_and_list(result.model, tmp_path)
    assert fused["SkipLayerNormalization"] > 0  # else this runtime has no such fusion, and the pass no reason
    assert kept["SkipLayerNormalization"] == 0
    assert kept["LayerNormalization"] == fused["SkipLayerNormalization"] + fused["LayerNormalization"]
    assert np.abs(wanted - got).max() <= 1e-5 * np.abs(wanted).max()


def test_fusions_of_biases_stay(tmp_path: Path) -> None:
    body = "m = MatMul(x, w) n = Add(m, b) g = Gelu(n) k = MatMul(g, u) l = Add(k, c) r = Add(l, x)"
    body += " y = LayerNormalization(r, gamma)"
    for batch in ("2", "N"):
        before = model(body, batch)
        fused, kept = run_and_list(before, tmp_path)[1], run_and_list(split(before).model, tmp_path)[1]
        for operator in ("Gemm", "BiasGelu", "Gelu"):
            assert kept[operator] == fused[operator]
        assert kept["Gemm"] + kept["BiasGelu"] > 0


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(x, w) n = Add(m, b) y = LayerNormalization(n, gamma)",  # a bias: better fused with the product
        "r = Add(x, x) y = Relu(r)",
        "r = Sub(x, b) y = LayerNormalization(r, gamma)",
        "r = Add(x, x) y = Sub(x, r)",
    ],
)
def test_other_sums_stay(body: str) -> None:
    before = model(body)
    result = split(before)
    assert not result.modified and result.model is before


def test_scope_leaves_what_it_skips() -> None:
    before = model(RESIDUAL)
    assert not split(before, ("r",)).modified
    assert [node.op_type for node in split(before, ("m",)).model.ir.graph] == [
        "MatMul",
        "Add",
        "Sum",
        "LayerNormalization",
    ]
