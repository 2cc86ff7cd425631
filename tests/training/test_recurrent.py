"""Recurrent layers of all kinds give what the runtime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.training.test_lower import assert_agrees  # noqa: E402

from gossamer.errors import ModelError  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402
from gossamer.training.operators import recurrent  # noqa: E402

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS, HIDDEN, BATCH, STEPS = 3, 5, 2, 4


def layer(kind: str, direction: str, has: set[str], **attributes: Any) -> Model:
    """A layer with an input `x` (STEPS, BATCH, INPUTS) and, if it has them, `lengths`."""
    rng = np.random.default_rng(3)
    count, rows = 2 if direction == "bidirectional" else 1, GATES[kind] * HIDDEN
    shapes = {
        "w": (count, rows, INPUTS),
        "r": (count, rows, HIDDEN),
        "b": (count, 2 * rows),
        "h": (count, BATCH, HIDDEN),
        "c": (count, BATCH, HIDDEN),
        "p": (count, 3 * HIDDEN),
    }
    names = ["x", "w", "r", "b" if "b" in has else "", "lengths" if "lengths" in has else ""]
    names += ["h" if "h" in has else ""]
    if kind == "LSTM":
        names += ["c" if "h" in has else "", "p" if "p" in has else ""]
    outputs = ["y", "last", "cell"][: 3 if kind == "LSTM" else 2]
    node = helper.make_node(kind, names, outputs, hidden_size=HIDDEN, direction=direction, name="it", **attributes)
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (STEPS, BATCH, INPUTS))]
    if "lengths" in has:
        inputs.append(helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, (BATCH,)))
    weights = [
        onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
        if name in names
    ]
    made = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph([node], "test", inputs, made, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Model(ir.serde.deserialize_model(proto), "test")


@settings(max_examples=80)
@given(
    kind=st.sampled_from(["LSTM", "GRU", "RNN"]),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    has=st.sets(st.sampled_from(["b", "h", "p", "lengths"])),
    odd=st.sampled_from(["", "clip", "activations", "own"]),
)
def test_layers_agree_with_the_runtime(kind: str, direction: str, has: set[str], odd: str) -> None:
    attributes: dict[str, Any] = {}
    if odd == "clip":
        attributes["clip"] = 0.7
    if odd == "activations":
        functions = {"LSTM": ["HardSigmoid", "Tanh", "Relu"], "GRU": ["HardSigmoid", "Softsign"], "RNN": ["Relu"]}[kind]
        attributes["activations"] = functions * (2 if direction == "bidirectional" else 1)
    if odd == "own" and kind == "LSTM":
        attributes["input_forget"] = 1
    if odd == "own" and kind == "GRU":
        attributes["linear_before_reset"] = 1
    feed = {"x": np.random.default_rng(5).normal(size=(STEPS, BATCH, INPUTS)).astype(np.float32)}
    if "lengths" in has:
        feed["lengths"] = np.int32([STEPS, 2])
    assert_agrees(layer(kind, direction, has, **attributes), feed)


def test_usual_layers_are_torchs_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "by_steps", None)
    for kind, attributes in (("LSTM", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})):
        lower(layer(kind, "bidirectional", {"b", "h"}, **attributes))(torch.zeros(STEPS, BATCH, INPUTS))
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        lower(layer("GRU", "forward", set()))(torch.zeros(STEPS, BATCH, INPUTS))


def test_functions_with_slopes_of_their_own_are_refused() -> None:
    expected = "LSTM it cannot be lowered: activation_alpha is set; functions with their usual slopes are supported"
    with pytest.raises(ModelError, match=expected):
        lower(layer("LSTM", "forward", set(), activation_alpha=[0.3, 1.0, 1.0]))
    with pytest.raises(ModelError, match="RNN it cannot be lowered: activation Affine; allowed are HardSigmoid, Relu"):
        lower(layer("RNN", "forward", set(), activations=["Affine"]))
