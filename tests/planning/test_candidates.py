from __future__ import annotations

from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.nouns.budget import Minimize
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.record import Candidate
from gossamer.passes import contract
from gossamer.planning.candidates import ORIGINAL, RANGES, features, propose, refine
from gossamer.runtimes import onnxruntime


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


def runtime(**changes: Any) -> ModuleType:
    """A runtime of which only the constants are known."""
    fake = ModuleType("fake")
    constants = {
        "ACTIVATION": "int8",
        "INTEGER_OPERATORS": ("Conv", "Gemm"),
        "INTEGER_PRODUCTS": ("Gemm",),
        "FAST_DYNAMIC": True,
        "SLOW_FUSIONS": (),
    }
    for name, value in {**constants, **changes}.items():
        setattr(fake, name, value)
    return fake


def step(plan: Plan, method: str) -> Step:
    return next(step for step in plan.steps if step.method == method)


def by_name(plans: tuple[Plan, ...]) -> dict[str, Plan]:
    assert len({plan.name for plan in plans}) == len(plans)
    assert len({msgspec.json.encode(plan.steps) for plan in plans}) == len(plans), "two plans do the same"
    return {plan.name: plan for plan in plans}


def test_features() -> None:
    found = features(cnn())
    assert (found.convolutions, found.products, found.depthwise, found.layer_norms, found.tables) == (
        2,
        1,
        True,
        0,
        False,
    )
    assert found.narrow_stems == ("stem",)
    found = features(encoder())
    assert (found.convolutions, found.products, found.depthwise, found.layer_norms, found.tables) == (
        0,
        1,
        False,
        1,
        True,
    )


@pytest.mark.parametrize("model", [cnn(), encoder()])
@pytest.mark.parametrize("minimize", ["latency", "size"])
def test_every_proposed_step_is_a_sentence_the_passes_understand(model: Model, minimize: Minimize) -> None:
    for plan in propose(model, onnxruntime, minimize):
        for sentence in plan.steps:
            contract.configure(sentence)
            contract.check_scope(sentence, model)


def test_network_of_convolutions() -> None:
    plans = by_name(propose(cnn(), onnxruntime, "latency"))
    assert list(plans) == [ORIGINAL, "float", "int8", "int8, stem in float", "dynamic int8"]
    assert plans[ORIGINAL].steps == ()
    assert [s.method for s in plans["int8"].steps] == [
        "fold_constants",
        "fold_batchnorm",
        "quantize_static",
        "correct_bias",
    ]
    assert step(plans["int8"], "quantize_static").config["activation"] == "uint8"
    assert step(plans["int8, stem in float"], "quantize_static").scope.skip == ("stem",)


def test_encoder_tries_dynamic_before_static() -> None:
    plans = by_name(propose(encoder(), onnxruntime, "latency"))
    assert list(plans) == [ORIGINAL, "float", "dynamic int8", "int8 products"]
    assert [s.method for s in plans["float"].steps] == ["fold_constants", "fold_batchnorm", "split_skip_layernorm"]
    assert step(plans["int8 products"], "quantize_static").config["operators"] == ["Gemm", "MatMul"]


def test_the_runtime_says_what_it_profits_from() -> None:
    slow = runtime(FAST_DYNAMIC=False, INTEGER_OPERATORS=("Conv",))
    for model in (cnn(), encoder()):
        assert not any(s.method == "quantize_dynamic" for plan in propose(model, slow, "latency") for s in plan.steps)
    config = step(by_name(propose(cnn(), slow, "latency"))["int8"], "quantize_static").config
    assert config == {"activation": "int8", "operators": ["Conv"]}
    plans = by_name(propose(encoder(), slow, "latency"))
    assert step(plans["int8 products"], "quantize_static").config["operators"] == ["Gemm"]
    assert [s.method for s in plans["float"].steps] == ["fold_constants", "fold_batchnorm"]


def test_size_adds_float16() -> None:
    plans = by_name(propose(cnn(), onnxruntime, "size"))
    assert {"float16", "int8, rest float16", "int8, stem in float, rest float16"} <= set(plans)
    assert plans["int8, rest float16"].steps[-1] == Step("store_float16")
    assert not any("float16" in name for name in by_name(propose(cnn(), onnxruntime, "latency")))


def test_a_table_alone_is_worth_a_plan() -> None:
    model = parse("test (int64[N] rows) => (float[N,8] y) { y = Gather(table, rows) }", table=(30, 8))
    assert "dynamic int8" in by_name(propose(model, onnxruntime, "size"))


def test_stem_whose_name_reads_like_a_pattern() -> None:
    model = cnn()
    model.ir.graph[0].name = "layers[0]*conv?"
    (pattern,) = step(
        by_name(propose(model, onnxruntime, "latency"))["int8, stem in float"], "quantize_static"
    ).scope.skip
    assert fnmatchcase("layers[0]*conv?", pattern) and not fnmatchcase("layers0xxconvx", pattern)


def test_a_stem_that_is_the_whole_net_is_not_left_out() -> None:
    model = parse("test (float[N,3,8] x) => (float[N,8,8] y) { y = Conv(x, w) }", w=(8, 3, 1))
    assert "int8, stem in float" not in by_name(propose(model, onnxruntime, "latency"))


def tried(plan: Plan, speed: float, size: int = 500) -> Candidate:
    accuracy = Accuracy("top1", 0.9, 0.9, 0.0, 0.0, 0.0, 100, 30.0)
    return Candidate(plan, Facts(accuracy, Bytes(1000, size), Latency(1, 1 / speed, speed, speed, speed, 1, "r")), True)


def test_refine_varies_the_fastest_static_plan() -> None:
    plans = by_name(propose(cnn(), onnxruntime, "latency"))
    first = [tried(plans["int8"], 2.0), tried(plans["int8, stem in float"], 2.5), tried(plans["dynamic int8"], 9.0)]
    second = by_name(refine(cnn(), [*first, Candidate(plans["float"], error="no")]))
    others = [ranges for ranges in RANGES if ranges != "minmax"]
    base = "int8, stem in float"
    assert list(second) == [
        *(f"{base}, {ranges} ranges" for ranges in others),
        f"{base}, equalized",
        *(f"{base}, {ranges} ranges, equalized" for ranges in others),
        f"{base}, biases as they were",
    ]
    assert not set(second) & set(plans)
    equalized = [s.method for s in second[f"{base}, equalized"].steps]
    assert equalized.index("equalize_channels") == equalized.index("quantize_static") - 1
    assert step(second[f"{base}, l2 ranges"], "quantize_static").scope.skip == ("stem",)
    assert "correct_bias" not in [s.method for s in second[f"{base}, biases as they were"].steps]


def test_refine_does_not_repeat_the_ranges_of_its_base() -> None:
    plans = by_name(propose(encoder(), onnxruntime, "latency"))
    second = by_name(refine(encoder(), [tried(plans["int8 products"], 2.0)]))
    configs = [step(plan, "quantize_static").config["ranges"] for plan in second.values() if "ranges" in plan.name]
    assert sorted(configs) == sorted(set(RANGES) - {"percentile"})
    assert not any("equalized" in name for name in second)


def test_refine_for_size_varies_the_smallest() -> None:
    plans = by_name(propose(cnn(), onnxruntime, "size"))
    first = [tried(plans["int8"], 3.0, 300), tried(plans["int8, rest float16"], 2.0, 200)]
    assert all(plan.name.startswith("int8, rest float16") for plan in refine(cnn(), first, "size"))
    assert not any(plan.name.startswith("int8, rest") for plan in refine(cnn(), first, "latency"))


def test_refine_without_a_static_plan() -> None:
    plans = by_name(propose(encoder(), onnxruntime, "latency"))
    assert refine(encoder(), [tried(plans["dynamic int8"], 3.0), Candidate(plans["int8 products"], error="no")]) == ()
