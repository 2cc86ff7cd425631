from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import CandidateError, ModelError
from gossamer.measuring.output_noise import output_noise
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples, samples_from_arrays


def net(batch: int | None) -> tuple[Model, dict[str, np.ndarray]]:
    """y = relu(x a) b."""
    random = np.random.default_rng(0)
    weights = {"a": random.normal(size=(4, 6)).astype(np.float32), "b": random.normal(size=(6, 3)).astype(np.float32)}
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape([batch or "n", 4]), type=kind)
    y = ir.Value(name="y", shape=ir.Shape([batch or "n", 3]), type=kind)
    values = [
        ir.Value(name=name, shape=ir.Shape(w.shape), type=kind, const_value=ir.tensor(w, name=name))
        for name, w in weights.items()
    ]
    first = ir.node("MatMul", [x, values[0]])
    middle = ir.node("Relu", first.outputs)
    last = ir.node("MatMul", [middle.outputs[0], values[1]], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[first, middle, last], initializers=values, opset_imports={"": 17}, name="net")
    return Model(ir.Model(graph, ir_version=8), "net"), weights


def samples() -> Samples:
    return samples_from_arrays({"x": np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32)})


def expected(weights: dict[str, np.ndarray], changed: dict[str, np.ndarray]) -> float:
    x = samples().columns["x"]
    before, after = (np.maximum(x @ w["a"], 0) @ w["b"] for w in (weights, weights | changed))
    return float(((after - before) ** 2).sum() / (before**2).sum())


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_the_noise_is_that_of_the_changed_network(batch: int | None) -> None:
    model, weights = net(batch)
    noise = output_noise(model, ["a", "b"], samples())

    @settings(max_examples=20)
    @given(st.sampled_from([("a",), ("b",), ("a", "b")]), st.floats(0.0, 2.0))
    def check(names: tuple[str, ...], factor: float) -> None:
        changed = {name: (weights[name] * np.float32(factor)) for name in names}
        assert noise(changed) == pytest.approx(expected(weights, changed), rel=1e-4, abs=1e-9)

    check()
    assert noise({}) == 0
    assert [value.name for value in model.ir.graph.inputs] == ["x"]  # the model given stays as it was


def test_a_weight_that_is_none_is_named() -> None:
    with pytest.raises(ModelError, match="'c' is no initializer of the main graph"):
        output_noise(net(None)[0], ["a", "c"], samples())


def test_weights_that_break_the_network_are_a_candidates_fault() -> None:
    model, weights = net(None)
    with pytest.raises(CandidateError, match="holds NaN"):
        output_noise(model, ["b"], samples())({"b": weights["b"] * np.float32(np.nan)})
