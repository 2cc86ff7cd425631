"""Shares of the learning rate by name: who gets which, what is frozen stays to the bit, norms of it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import parse  # noqa: E402

from gossamer.errors import ModelError, OptionError  # noqa: E402
from gossamer.graph.edit import constant  # noqa: E402
from gossamer.graph.new_head import with_new_head  # noqa: E402
from gossamer.intake.onnx_file import read  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.runtimes.onnxruntime import open_session  # noqa: E402
from gossamer.training.command import train_model  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402
from gossamer.training.options import Options, RatePart, rates_of  # noqa: E402
from gossamer.training.rates import set_rates  # noqa: E402
from gossamer.training.watching import Watch  # noqa: E402


def network(classes: int = 3) -> Model:
    graph = f"""g (float[N,2,4,4] x) => (float[N,{classes}] scores) {{
        a = Conv(x, stem_weight)
        n = BatchNormalization(a, stem_scale, stem_shift, stem_mean, stem_variance)
        r = Relu(n)
        c = Conv(r, deep_weight)
        d = BatchNormalization(c, deep_scale, deep_shift, deep_mean, deep_variance)
        p = GlobalAveragePool(d)
        f = Flatten(p)
        scores = Gemm<transB=1>(f, head_weight, head_bias)
    }}"""
    norm = {f"{place}_{name}": (6,) for place in ("stem", "deep") for name in ("scale", "shift", "mean")}
    ones = {f"{place}_variance": np.ones(6, np.float32) for place in ("stem", "deep")}
    shapes = {"stem_weight": (6, 2, 3, 3), "deep_weight": (6, 6, 1, 1), "head_weight": (classes, 6)}
    return parse(graph, **shapes, **norm, **ones, **{"head_bias": (classes,)})


def few() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((20, 2, 4, 4)).astype(np.float32), "labels": rng.integers(0, 3, 20)}


def shares(rates: str) -> dict[str, float]:
    model = network()
    module = lower(model)
    set_rates(module, model, rates)
    return {
        name: getattr(value, "rate_ratio", 1.0) if value.requires_grad else 0.0
        for name, value in module.named_parameters()
    }


def of(names: dict[str, float], start: str) -> set[float]:
    return {share for name, share in names.items() if name.startswith(start)}


@pytest.mark.parametrize(
    ("rates", "stem", "deep", "head"),
    [
        ("body:0", 0, 0, 1),
        ("body:0.1", 0.1, 0.1, 1),
        ("stem*:0", 0, 1, 1),
        ("falling:0.5", 0.25, 0.5, 1),
        ("falling:0.5,stem*:0", 0, 0.5, 1),
        ("*:0.5, deep*:2", 0.5, 2, 0.5),
        ("", 1, 1, 1),
    ],
)
def test_each_weight_gets_its_share(rates: str, stem: float, deep: float, head: float) -> None:
    got = shares(rates)
    assert (of(got, "stem"), of(got, "deep"), of(got, "head")) == ({stem}, {deep}, {head})


def test_a_layer_can_be_called_by_its_node() -> None:
    got = shares("node_c:0.25")
    assert (got["deep_weight"], got["deep_scale"]) == (0.25, 1.0)


def test_what_is_frozen_stays_to_the_bit_and_so_do_its_norms(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((60, 2, 4, 4)).astype(np.float32), "labels": rng.integers(0, 3, 60)}
    options = Options(epochs=2, batch=16, rate=0.01, device="cpu", rates="stem*:0,deep*:0.1")
    said: list[str] = []
    train_model(network(), data, tmp_path, options=options, watch=Watch(said.append))
    before, after = network().ir.graph.initializers, read(tmp_path / "model.onnx").ir.graph.initializers
    for name, value in before.items():
        same = np.array_equal(constant(value), constant(after[name]))
        assert same == name.startswith("stem"), name
    assert (
        "of 8 weights and biases 2 at 1 of the rate, 3 at 0.1 of the rate; 3 are frozen, with the statistics of 1 norms"
        in said
    )


def test_a_new_head_on_a_frozen_body_learns_other_classes(tmp_path: Path) -> None:
    """Labels are another head's on the same body, which is not at hand."""
    x = np.random.default_rng(0).standard_normal((300, 2, 4, 4)).astype(np.float32)
    scores = open_session(with_new_head(network(), 4, seed=9)).run({"x": x})[0]
    data = {"x": x, "labels": (scores - scores.mean(0)).argmax(1)}
    options = Options(epochs=8, batch=16, rate=0.1, device="cpu", rates="body:0")
    summary = train_model(network(), data, tmp_path, options=options, head=4)
    assert summary.accuracy.result > max(0.7, summary.accuracy.original + 0.2)
    assert any("Gemm node_scores, was drawn anew for 4 classes" in note for note in summary.notes)
    body = read(tmp_path / "model.onnx").ir.graph.initializers["deep_weight"]
    assert np.array_equal(constant(body), constant(network().ir.graph.initializers["deep_weight"]))


# --- what is refused


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (
            "stemm.weight:0",
            r"rates: 'stemm.weight' names no weight or layer with weights of test; did you mean stem_weight",
        ),
        ("zzz*:0", "names no weight .*; `gossamer inspect` lists the names; allowed are patterns such as 'layer1"),
        ("*:0", r"rates \*:0 freezes all weights of test; leave one part above 0"),
    ],
)
def test_a_part_that_names_nothing_is_refused_before_anything_is_done(rates: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        train_model(network(), few(), tmp_path, options=Options(rates=rates))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spelled", ["body", "body:", ":0", "body:-1", "body:x", "body:101"])
def test_a_part_that_is_no_pattern_and_share_is_refused(spelled: str) -> None:
    with pytest.raises(
        OptionError, match=r"is no PATTERN:SHARE with a share from 0 \(frozen\) to 100; for instance body"
    ):
        Options(rates=spelled)


def test_names_may_hold_colons() -> None:
    assert rates_of("onnx::Conv_1:0.5, body:0") == (RatePart("onnx::Conv_1", 0.5), RatePart("body", 0.0))


def test_body_without_a_last_layer_is_refused() -> None:
    model = parse("g (float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) y = Mul(a, x) }", w=(4, 4))
    with pytest.raises(ModelError, match="rates body: test: Mul node_y, the last node before the scores, is no layer"):
        set_rates(lower(model), model, "body:0")


def test_teacher_self_is_refused_for_a_new_head(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="teacher self knows nothing of the new classes"):
        train_model(network(), few(), tmp_path, "self", head=5)
