from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from tests.passes.graphs import assert_equal_outputs, make

from gossamer.graph.edit import constant
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope, Step
from gossamer.passes.contract import Result, run


def norm(source: str, output: str = "y", name: str = "norm") -> Any:
    return helper.make_node("BatchNormalization", [source, "gamma", "beta", "mean", "variance"], [output], name)


def statistics(rng: np.random.Generator, channels: int) -> dict[str, np.ndarray]:
    return {
        "gamma": rng.normal(1, 0.5, channels).astype(np.float32),
        "beta": rng.normal(size=channels).astype(np.float32),
        "mean": rng.normal(size=channels).astype(np.float32),
        "variance": rng.uniform(0.1, 2, channels).astype(np.float32),
    }


def fold(model: Model, **scope: tuple[str, ...]) -> Result:
    return run(Step("fold_batchnorm", scope=Scope(**scope)), model)


def operators(model: Model) -> list[str]:
    return [node.op_type for node in model.ir.graph]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Model, np.ndarray]:
    """Conv or ConvTranspose in 1 to 3 dimensions, grouped, depthwise or plain, with or without bias."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    axes, groups = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    operator = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    shape = (outputs, inputs // groups) if operator == "Conv" else (inputs, outputs // groups)
    weights = {"w": rng.normal(size=(*shape, *kernel)).astype(np.float32), **statistics(rng, outputs)}
    names = ["x", "w"]
    if draw(st.booleans()):
        weights["c"] = rng.normal(size=outputs).astype(np.float32)
        names.append("c")
    layer = helper.make_node(operator, names, ["a"], "layer", group=groups)
    x = rng.normal(size=(2, inputs, *[4] * axes)).astype(np.float32)
    return make([layer, norm("a")], x.shape, weights), x


@st.composite
def products(draw: st.DrawFn) -> tuple[Model, np.ndarray]:
    """Gemm with every attribute, MatMul alone, MatMul + constant in both orders."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows, inputs, outputs = (draw(st.integers(1, 6)) for _ in range(3))
    transposed = draw(st.booleans())
    weights = statistics(rng, outputs)
    bias_shape = draw(st.sampled_from([None, (), (1,), (outputs,), (1, outputs), (rows, outputs), (rows, 1)]))
    if bias_shape is not None:
        weights["c"] = rng.normal(size=bias_shape).astype(np.float32)
    if draw(st.booleans()):
        weights["w"] = rng.normal(size=(outputs, inputs) if transposed else (inputs, outputs)).astype(np.float32)
        options: dict[str, Any] = {
            "transB": int(transposed),
            "alpha": draw(st.sampled_from([1.0, 0.5])),
            "beta": draw(st.sampled_from([1.0, 2.0, 0.0])),
        }
        nodes = [helper.make_node("Gemm", ["x", "w", *(["c"] if "c" in weights else [])], ["a"], "layer", **options)]
    else:
        weights["w"] = rng.normal(size=(inputs, outputs)).astype(np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p" if "c" in weights else "a"], "layer")]
        if "c" in weights:
            nodes.append(helper.make_node("Add", ["p", "c"][:: draw(st.sampled_from([1, -1]))], ["a"], "bias"))
    x = rng.normal(size=(rows, inputs)).astype(np.float32)
    return make([*nodes, norm("a")], x.shape, weights), x


@given(st.one_of(convolutions(), products()))
def test_folds_every_layer_and_keeps_the_function(example: tuple[Model, np.ndarray]) -> None:
    model, x = example
    result = fold(model)
    assert result.modified
    assert "BatchNormalization" not in operators(result.model)
    assert not {"gamma", "beta", "mean", "variance"} & set(result.model.ir.graph.initializers)
    assert_equal_outputs(model, result.model, x)


RNG = np.random.default_rng(0)
X = RNG.normal(size=(1, 4, 6)).astype(np.float32)
W = RNG.normal(size=(4, 4, 3)).astype(np.float32)


def conv(source: str = "x", output: str = "a", name: str = "conv", bias: str = "") -> Any:
    return helper.make_node("Conv", [source, "w", *([bias] if bias else [])], [output], name, pads=[1, 1])


def test_stacked_normalizations_fold_one_after_the_other() -> None:
    model = make([conv(), norm("a", "b", "n1"), norm("b", "y", "n2")], X.shape, {"w": W, **statistics(RNG, 4)})
    result = fold(model)
    assert operators(result.model) == ["Conv"]
    assert_equal_outputs(model, result.model, X)


def test_shared_bias_is_copied_for_the_folded_layer_only() -> None:
    weights = {"w": W, "v": W.copy(), "c": W[0, :, 0].copy(), **statistics(RNG, 4)}
    other = helper.make_node("Conv", ["x", "v", "c"], ["z"], "other", pads=[1, 1])
    model = make([conv(bias="c"), norm("a"), other], X.shape, weights, ("y", "z"))
    result = fold(model)
    assert result.modified
    assert np.array_equal(np.asarray(constant(result.model.ir.graph.initializers["c"])), weights["c"])
    assert_equal_outputs(model, result.model, X)


def test_names_of_the_normalized_tensor_and_the_weight_stay() -> None:
    result = fold(make([conv(), norm("a")], X.shape, {"w": W, **statistics(RNG, 4)}))
    (node,) = result.model.ir.graph
    assert [value.name for value in node.inputs if value] == ["x", "w", "conv/bias"]
    assert node.outputs[0].name == "y"


def left_alone(case: str) -> Model:
    weights = {"w": W, **statistics(RNG, 4)}
    relu = helper.make_node("Relu", ["x"], ["r"], "relu")
    match case:
        case "other readers":
            return make(
                [conv(), norm("a"), helper.make_node("Relu", ["a"], ["z"], "relu")], X.shape, weights, ("y", "z")
            )
        case "an output":
            return make([conv(), norm("a")], X.shape, weights, ("y", "a"))
        case "shared weight":
            return make([conv(), norm("a"), conv("y", "z", "second")], X.shape, weights, ("y", "z"))
        case "in front":
            return make([norm("x", "n"), conv("n", "y")], X.shape, weights)
        case "no weight":
            return make([relu, norm("r")], X.shape, weights)
        case "variance":
            return make([conv(), norm("a")], X.shape, {**weights, "variance": np.full(4, -1, np.float32)})
        case "overflow":
            return make([conv(), norm("a")], X.shape, {**weights, "gamma": np.full(4, 3e38, np.float32)})
        case "computed":
            square = helper.make_node("Mul", ["g0", "g0"], ["gamma"], "square")
            return make([square, conv(), norm("a")], X.shape, {"g0": weights.pop("gamma"), **weights})
        case "channel axis":
            product = helper.make_node("MatMul", ["x", "m"], ["a"], "product")
            return make([product, norm("a")], X.shape, {"m": np.eye(6, dtype=np.float32), **weights})
    raise AssertionError(case)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("other readers", "a has other readers"),
        ("an output", "a has other readers"),
        ("shared weight", "the weight w is shared"),
        ("in front", "no layer stands in front of it"),
        ("no weight", "Relu in front of it has no weight"),
        ("variance", "a variance is not positive"),
        ("overflow", "the folded weight would not be finite"),
        ("computed", "its statistics are computed at run time"),
        ("channel axis", "product is not known to give two axes"),
    ],
)
def test_left_with_the_reason(case: str, reason: str) -> None:
    model = left_alone(case)
    result = fold(model)
    assert not result.modified and result.model is model
    assert len(result.notes) == 1 and result.notes[0].startswith(f"fold_batchnorm left norm: {reason}")


def test_scope_leaves_what_it_skips() -> None:
    model = make([conv(), norm("a", "b", "n1"), norm("b", "y", "n2")], X.shape, {"w": W, **statistics(RNG, 4)})
    assert operators(fold(model, skip=("n2",)).model) == ["Conv", "BatchNormalization"]
