from __future__ import annotations

from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

import pytest
from tests.planning.graphs import by_name, cnn, encoder, parse, step

from gossamer.nouns.budget import Minimize
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Step
from gossamer.passes import contract
from gossamer.planning.candidates import ORIGINAL, features, propose
from gossamer.runtimes import onnxruntime


def runtime(**changes: Any) -> ModuleType:
    """A runtime of which only the constants are known."""
    fake = ModuleType("fake")
    constants = {
        "ACTIVATION": "int8",
        "INTEGER_OPERATORS": ("Conv", "Gemm"),
        "INTEGER_PRODUCTS": ("Gemm",),
        "FAST_DYNAMIC": True,
        "SLOW_FUSIONS": (),
        "FAST_FORMS": (),
    }
    for name, value in {**constants, **changes}.items():
        setattr(fake, name, value)
    return fake


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
    base = ["float", "dynamic int8", "int8 products"]
    assert list(plans) == [ORIGINAL, *base, *(f"{name}, fuse attention" for name in base)]
    fused = [step.method for step in plans["dynamic int8, fuse attention"].steps]
    assert fused.index("split_skip_layernorm") < fused.index("fuse_attention") < fused.index("quantize_dynamic")
    assert [s.method for s in plans["float"].steps] == ["fold_constants", "fold_batchnorm", "split_skip_layernorm"]
    assert step(plans["int8 products"], "quantize_static").config["operators"] == ["Gemm", "MatMul"]


def test_the_runtime_says_what_it_profits_from() -> None:
    slow = runtime(FAST_DYNAMIC=False, INTEGER_OPERATORS=("Conv",))
    for model in (cnn(), encoder()):
        assert not any(s.method == "quantize_dynamic" for plan in propose(model, slow, "latency") for s in plan.steps)
    config = step(by_name(propose(cnn(), slow, "latency"))["int8"], "quantize_static").config
    assert config == {"activation": "int8", "operators": ["Conv"], "rounding": "sums"}
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
