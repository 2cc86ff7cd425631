from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from tests.passes.graphs import array_of as weight
from tests.passes.graphs import assert_equal_outputs, make

from gossamer.errors import CandidateError, OptionError
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope, Step
from gossamer.passes.contract import Result, run


def equalize(model: Model, skip: tuple[str, ...] = (), **config: float) -> Result:
    return run(Step("equalize_channels", config, Scope(skip=skip)), model)


def uneven(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Weights whose output channels differ by up to 30 times in range."""
    spread = 10 ** rng.uniform(-0.75, 0.75, (shape[0], *[1] * (len(shape) - 1)))
    return np.asarray(rng.normal(size=shape) * spread / np.sqrt(np.prod(shape[1:])), np.float32)


def activation(
    draw: st.DrawFn, rng: np.random.Generator, index: int, channels: int, axes: int
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Nothing or one node between two convolutions, that commutes with scaling."""
    source, output, slope = f"a{index}", f"x{index + 1}", f"slope{index}"
    kind = draw(st.sampled_from(["", "Relu", "LeakyRelu", "PRelu", "Clip"]))
    if kind == "PRelu":
        array = rng.uniform(0, 1, (channels, *[1] * axes)).astype(np.float32)
        return [helper.make_node(kind, [source, slope], [output], kind + output)], {slope: array}
    if kind == "Clip":
        return [helper.make_node(kind, [source, slope], [output], kind + output)], {slope: np.float32(0).reshape(())}
    return [helper.make_node(kind or "Identity", [source], [output], kind + output)], {}


@st.composite
def chains(draw: st.DrawFn) -> tuple[Model, np.ndarray]:
    """2 to 4 convolutions in a row: 1-D to 3-D, plain, grouped or depthwise, with or without bias."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    axes, length = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    channels, nodes, weights = 3, [], {}
    for index in range(length):
        groups = draw(st.sampled_from([1, channels, *[g for g in (2, 3) if channels % g == 0]]))
        outputs = groups * draw(st.integers(1, 3))
        kernel = [draw(st.integers(1, 3))] * axes
        names = [f"x{index}" if index else "x", f"w{index}"]
        weights[f"w{index}"] = uneven(rng, outputs, channels // groups, *kernel)
        if draw(st.booleans()):
            weights[f"c{index}"] = rng.normal(size=outputs).astype(np.float32)
            names.append(f"c{index}")
        last = index == length - 1
        output = "y" if last else f"a{index}"
        nodes.append(helper.make_node("Conv", names, [output], f"conv{index}", group=groups, auto_pad="SAME_UPPER"))
        channels = outputs
        if not last:
            more, constants = activation(draw, rng, index, channels, axes)
            if more[0].op_type == "Identity":
                nodes[-1].output[0] = f"x{index + 1}"
            else:
                nodes += more
            weights |= constants
    x = rng.normal(size=(2, 3, *[4] * axes)).astype(np.float32)
    return make(nodes, x.shape, weights), x


@given(chains())
def test_keeps_the_function_and_a_second_run_finds_nothing(example: tuple[Model, np.ndarray]) -> None:
    model, x = example
    result = equalize(model)
    assert_equal_outputs(model, result.model, x)
    assert not equalize(result.model).modified


def triple(rng: np.random.Generator, between: str = "Relu") -> tuple[Model, np.ndarray]:
    """Pointwise, depthwise, pointwise."""
    weights = {"w0": uneven(rng, 16, 4, 1, 1), "w1": uneven(rng, 16, 1, 3, 3), "w2": uneven(rng, 4, 16, 1, 1)}
    weights |= {
        "c0": rng.normal(size=16).astype(np.float32),
        "low": np.float32(0).reshape(()),
        "six": np.float32(6).reshape(()),
    }
    bounds = ["low", "six"] if between == "Clip" else []
    nodes = [
        helper.make_node("Conv", ["x", "w0", "c0"], ["a"], "expand"),
        helper.make_node(between, ["a", *bounds], ["b"], "first"),
        helper.make_node("Conv", ["b", "w1"], ["c"], "depthwise", group=16, pads=[1, 1, 1, 1]),
        helper.make_node(between, ["c", *bounds], ["d"], "second"),
        helper.make_node("Conv", ["d", "w2"], ["y"], "project"),
    ]
    x = rng.normal(size=(1, 4, 5, 5)).astype(np.float32)
    return make(nodes, x.shape, weights), x


@given(st.integers(0, 2**16))
def test_channel_ranges_meet_across_a_depthwise_convolution(seed: int) -> None:
    model, x = triple(np.random.default_rng(seed))
    after = equalize(model).model
    r0 = np.abs(weight(after, "w0")).max(axis=(1, 2, 3))
    r1 = np.abs(weight(after, "w1")).max(axis=(1, 2, 3))
    r2 = np.abs(weight(after, "w2")).max(axis=(0, 2, 3))
    np.testing.assert_allclose(r0, r1, rtol=0.01)
    np.testing.assert_allclose(r1, r2, rtol=0.01)
    assert_equal_outputs(model, after, x)


def test_a_tensor_with_several_convolutions_behind_it_is_scaled_for_all() -> None:
    rng = np.random.default_rng(1)
    weights = {"w0": uneven(rng, 8, 3, 1), "w1": uneven(rng, 4, 8, 3), "w2": uneven(rng, 5, 8, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first"),
        helper.make_node("Conv", ["a", "w1"], ["y"], "left"),
        helper.make_node("Conv", ["a", "w2"], ["z"], "right"),
    ]
    x = rng.normal(size=(1, 3, 6)).astype(np.float32)
    model = make(nodes, x.shape, weights, ("y", "z"))
    result = equalize(model)
    assert result.modified
    r2 = np.maximum(np.abs(weight(result.model, "w1")).max((0, 2)), np.abs(weight(result.model, "w2")).max((0, 2)))
    np.testing.assert_allclose(np.abs(weight(result.model, "w0")).max((1, 2)), r2, rtol=0.01)
    assert_equal_outputs(model, result.model, x)


def test_an_upper_bound_is_never_scaled() -> None:
    assert not equalize(triple(np.random.default_rng(0), "Clip")[0]).modified


def test_nodes_out_of_scope_keep_their_weights() -> None:
    model = triple(np.random.default_rng(0))[0]
    after = equalize(model, ("project",)).model
    assert np.array_equal(weight(after, "w2"), weight(model, "w2"))
    assert not np.array_equal(weight(after, "w1"), weight(model, "w1"))
    assert not equalize(model, ("depthwise",)).modified


def test_dead_and_extreme_channels_keep_their_weights() -> None:
    rng = np.random.default_rng(0)
    first, second = uneven(rng, 6, 3, 1), uneven(rng, 4, 6, 1)
    first[0], second[:, 1], first[2] = 0, 0, first[2] * 1e-7
    nodes = [helper.make_node("Conv", ["x", "w0"], ["a"], "a"), helper.make_node("Conv", ["a", "w1"], ["y"], "b")]
    x = rng.normal(size=(1, 3, 6)).astype(np.float32)
    model = make(nodes, x.shape, {"w0": first, "w1": second})
    after = equalize(model).model
    assert np.array_equal(weight(after, "w0")[:3], first[:3])
    assert np.array_equal(weight(after, "w1")[:, :3], second[:, :3])
    assert not np.array_equal(weight(after, "w0")[3:], first[3:])
    assert_equal_outputs(model, after, x)


def test_shared_weights_stay_and_a_shared_bias_is_copied() -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": uneven(rng, 3, 3, 1),
        "v": uneven(rng, 3, 3, 1),
        "u": uneven(rng, 3, 3, 1),
        "c": np.arange(1, 4, dtype=np.float32),
    }
    x = rng.normal(size=(1, 3, 6)).astype(np.float32)

    def model(*names: str) -> Model:
        tensors = ["x", "a", "b", "y"]
        return make(
            [helper.make_node("Conv", [tensors[i], n, "c"], [tensors[i + 1]], f"conv{i}") for i, n in enumerate(names)],
            x.shape,
            weights,
        )

    assert not equalize(model("w", "v", "w")).modified
    before = model("w", "v", "u")
    after = equalize(before).model
    assert np.array_equal(weight(after, "c"), weights["c"])
    assert_equal_outputs(before, after, x)


def test_an_overflow_is_refused_with_the_node() -> None:
    first, second = np.full((2, 2, 1), 1e-3, np.float32), np.full((2, 2, 1), 10, np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "c"], ["a"], "first"),
        helper.make_node("Conv", ["a", "w1"], ["y"], "second"),
    ]
    model = make(nodes, (1, 2, 3), {"w0": first, "w1": second, "c": np.full(2, 3e37, np.float32)})
    with pytest.raises(CandidateError, match="weights of first infinite; lower max_scale"):
        equalize(model, max_scale=1e3)


@pytest.mark.parametrize("max_scale", [1.0, 0.0, -3.0, 1e7])
def test_a_senseless_bound_is_refused(max_scale: float) -> None:
    with pytest.raises(OptionError, match=r"max_scale is .*; allowed is above 1"):
        equalize(triple(np.random.default_rng(0))[0], max_scale=max_scale)
