from __future__ import annotations

from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

import pytest
from tests.planning.graphs import by_name, cnn, encoder, parse, step

from gossamer.nouns.budget import Minimize
from gossamer.nouns.model import Model
from gossamer.nouns.plan import ORIGINAL, Step
from gossamer.passes import contract
from gossamer.planning.candidates import propose
from gossamer.planning.features import features
from gossamer.runtimes import onnxruntime


def runtime(**changes: Any) -> ModuleType:
    """A runtime of which only the constants are known."""
    fake = ModuleType("fake")
    constants = {
        "ACTIVATION": "int8",
        "INTEGER_OPERATORS": ("Conv", "Gemm"),
        "INTEGER_PRODUCTS": ("Gemm",),
        "INTEGER_ATTENTION": True,
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
        (),
    )
    assert found.narrow_stems == ("stem",)
    found = features(encoder())
    assert (found.convolutions, found.products, found.depthwise, found.layer_norms, found.tables) == (
        0,
        1,
        False,
        1,
        ("node_x",),
    )


@pytest.mark.parametrize("model", [cnn(), encoder()])
@pytest.mark.parametrize("minimize", ["latency", "size", "download"])
def test_every_proposed_step_is_a_sentence_the_passes_understand(model: Model, minimize: Minimize) -> None:
    for plan in propose(features(model), onnxruntime, minimize):
        for sentence in plan.steps:
            contract.configure(sentence)
            contract.check_names((*sentence.scope.only, *sentence.scope.skip), model, sentence.method)


def test_network_of_convolutions() -> None:
    plans = by_name(propose(features(cnn()), onnxruntime, "latency"))
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
    plans = by_name(propose(features(encoder()), onnxruntime, "latency"))
    smoothed = ["dynamic int8, smoothed", "int8 products, smoothed"]
    fused = [f"{name}, fuse attention" for name in smoothed]
    assert list(plans) == [ORIGINAL, "float", "dynamic int8", "int8 products", *smoothed, *fused]
    methods = [step.method for step in plans[fused[0]].steps]
    assert methods[2:] == ["split_skip_layernorm", "smooth_activations", "fuse_attention", "quantize_dynamic"]
    assert [s.method for s in plans["float"].steps] == ["fold_constants", "fold_batchnorm", "split_skip_layernorm"]
    assert step(plans["int8 products"], "quantize_static").config["operators"] == ["Gemm", "MatMul"]


def test_the_runtime_says_what_it_profits_from() -> None:
    slow = runtime(FAST_DYNAMIC=False, INTEGER_OPERATORS=("Conv",))
    for model in (cnn(), encoder()):
        plans = propose(features(model), slow, "latency")  # rows of tables apart, which cost no runtime any time
        assert not any(s.method == "quantize_dynamic" and not s.scope.only for plan in plans for s in plan.steps)
    config = step(by_name(propose(features(cnn()), slow, "latency"))["int8"], "quantize_static").config
    assert config == {"activation": "int8", "operators": ["Conv"], "free_float": ["Gemm"], "rounding": "sums"}
    named = by_name(propose(features(encoder()), slow, "latency"))
    assert step(named["int8 products"], "quantize_static").config["operators"] == ["Gemm"]
    assert [s.method for s in named["float"].steps] == ["fold_constants", "fold_batchnorm"]


def test_attention_stays_in_float_where_integers_do_not_pay() -> None:
    model = parse(
        """test (float[N,5,8] x) => (float[N,5,8] y) {
            v = MatMul(x, w)  t = Transpose<perm=[0,2,1]>(v)  [scores] s = MatMul(v, t)  y = MatMul(s, v)
        }""",
        w=(8, 8),
    )
    for pays, skipped in ((True, 0), (False, 2)):
        plan = by_name(propose(features(model), runtime(INTEGER_ATTENTION=pays), "latency"))["int8 products"]
        assert len(step(plan, "quantize_static").scope.skip) == skipped


def test_weights_keep_to_seven_bits_where_sixteen_would_overflow() -> None:
    for model, name in ((cnn(), "int8"), (encoder(), "int8 products, smoothed")):
        usual, reduced = (by_name(propose(features(model), onnxruntime, "latency", bits))[name] for bits in (8, 7))
        assert "weight_bits" not in step(usual, "quantize_static").config
        assert step(reduced, "quantize_static").config["weight_bits"] == 7


def test_size_adds_float16() -> None:
    plans = by_name(propose(features(cnn()), onnxruntime, "size"))
    assert {"float16", "int8, rest float16", "int8, stem in float, rest float16"} <= set(plans)
    assert plans["int8, rest float16"].steps[-1] == Step("store_float16")
    assert not any("float16" in name for name in by_name(propose(features(cnn()), onnxruntime, "latency")))


def test_a_download_is_not_made_of_integers_between_layers() -> None:
    assert [plan.name for plan in propose(features(cnn()), onnxruntime, "download")] == [ORIGINAL, "float"]


def test_a_table_alone_is_worth_a_plan() -> None:
    model = parse("test (int64[N] rows) => (float[N,8] y) { y = Gather(table, rows) }", table=(30, 8))
    assert "dynamic int8" in by_name(propose(features(model), onnxruntime, "size"))


def test_stem_whose_name_reads_like_a_pattern() -> None:
    model = cnn()
    model.ir.graph[0].name = "layers[0]*conv?"
    (pattern,) = step(
        by_name(propose(features(model), onnxruntime, "latency"))["int8, stem in float"], "quantize_static"
    ).scope.skip
    assert fnmatchcase("layers[0]*conv?", pattern) and not fnmatchcase("layers0xxconvx", pattern)


def test_a_stem_that_is_the_whole_net_is_not_left_out() -> None:
    model = parse("test (float[N,3,8] x) => (float[N,8,8] y) { y = Conv(x, w) }", w=(8, 3, 1))
    assert "int8, stem in float" not in by_name(propose(features(model), onnxruntime, "latency"))


RECURRENT = """recurrent (float[N,5,6] x) => (float[N,4] y) <int64[1] first = {0}> {
    s = Transpose<perm=[1,0,2]>(x)
    [cell] a, b, c = LSTM<hidden_size=8>(s, w, r)
    d = Squeeze(b, first)
    y = Gemm<transB=1>(d, v) }"""


@pytest.mark.parametrize(("fast", "form"), [(True, "fastest"), (False, "cast")])
def test_recurrent_layers_are_stored_in_integers(fast: bool, form: str) -> None:
    model = parse(RECURRENT, w=(1, 32, 6), r=(1, 32, 8), v=(4, 8))
    cell = next(node.name for node in model.ir.graph if node.op_type == "LSTM")
    assert features(model).recurrent == (cell,)
    for minimize, others in (("latency", {"float", "int8 products"}), ("size", {"float"})):
        plans = by_name(propose(features(model), runtime(FAST_DYNAMIC=fast), minimize))  # type: ignore[arg-type]
        for name in {"float", "int8 products"}:
            last = plans[f"{name}, recurrent int8"].steps[-1]
            assert (last.method, last.config, last.scope.only) == (
                "constrain_weights",
                {"constraint": "grid:8", "solver": "nearest", "form": form},
                (cell,),
            )
        assert others <= set(plans) and ("int8 products" in plans) is ("int8 products" in others)


def test_products_of_few_weights_behind_convolutions_are_not_worth_a_dynamic_plan() -> None:
    """They do at most that share of the multiply-adds; but bytes they save as well as others."""
    text = """test (float[N,3,8,8] x) => (float[N,2] y) {
        a = Conv(x, w0)  p = GlobalAveragePool(a)  f = Flatten(p)  y = Gemm(f, w1) }"""
    head = features(parse(text, w0=(64, 3, 3, 3), w1=(64, 1)))
    assert head.product_share == pytest.approx(64 / (64 * 27 + 64))
    assert "dynamic int8" not in by_name(propose(head, onnxruntime, "latency"))
    assert "dynamic int8" in by_name(propose(head, onnxruntime, "size"))
    assert features(encoder()).product_share == 1.0
