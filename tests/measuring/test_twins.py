"""The mean patch: what saves the twins most of their multiplications gives the same means."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gossamer.measuring.twins import WIDE, mean_patch
from gossamer.nouns.model import Model
from gossamer.runtimes.onnxruntime import open_session


def conv(text: str, opset: int = 21, weight: tuple[int, ...] = (3, WIDE, 3, 3)) -> Model:
    """A graph of x -> y with a weight w of ones."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(weight, np.float32), "w"))
    return Model(ir.serde.deserialize_model(proto), "test")


@given(
    st.tuples(st.integers(1, 11), st.integers(1, 11)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_filters_on_the_mean_patch_give_the_mean_output(
    size: tuple[int, int],
    kernel: tuple[int, int],
    pads: list[int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
) -> None:
    room = [n + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) for i, n in enumerate(size)]
    assume(min(room) > 0)
    options = f"pads={pads}, strides={list(strides)}, dilations={list(dilations)}"
    text = f"g (float[N,{WIDE},{size[0]},{size[1]}] x) => (float[N,3,a,b] y) {{ y = Conv <{options}> (x, w) }}"
    model = conv(text, weight=(3, WIDE, *kernel))
    graph = model.ir.graph
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, WIDE, *kernel)).astype(np.float32)
    graph.initializers["w"].const_value = ir.tensor(w, name="w")
    pool = mean_patch(graph[0], 21)
    assume(pool is not None)
    patch = ir.node("AveragePool", [graph.inputs[0]], pool)
    product = ir.node("Conv", [patch.outputs[0], graph.initializers["w"]], {})
    for node in (patch, product):
        node.outputs[0].name = node.op_type
        graph.append(node)
    product.outputs[0].dtype = ir.DataType.FLOAT
    graph.outputs.append(product.outputs[0])
    y, mean = open_session(model).run({"x": rng.normal(size=(2, WIDE, *size)).astype(np.float32)})
    assert mean.shape == (2, 3, 1, 1)
    np.testing.assert_allclose(mean[..., 0, 0], y.mean(axis=(2, 3)), atol=1e-4)


PLAIN = f"g (float[N,{WIDE},8,8] x) => (float[N,3,8,8] y) {{ y = Conv <pads=[1,1,1,1]> (x, w) }}"


def test_the_usual_convolutions_have_one() -> None:
    assert mean_patch(conv(PLAIN).ir.graph[0], 21) is not None
    strided = conv(PLAIN.replace("pads", "strides=[2,2], pads"))
    assert mean_patch(strided.ir.graph[0], 21) is not None


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        pytest.param(PLAIN.replace(f"N,{WIDE},8,8", f"N,{WIDE},H,8"), 21, id="free size"),
        pytest.param(PLAIN.replace("pads=[1,1,1,1]", 'auto_pad="SAME_UPPER"'), 21, id="pads by itself"),
        pytest.param(PLAIN.replace("pads", "strides=[2,2], pads"), 18, id="no dilation of pools"),
        pytest.param(PLAIN.replace("pads=[1,1,1,1]", "strides=[2,2], pads=[1,1,1,1], group=2"), 21, id="groups"),
    ],
)
def test_others_have_none(text: str, opset: int) -> None:
    assert mean_patch(conv(text, opset).ir.graph[0], opset) is None


def test_few_channels_are_no_gain() -> None:
    narrow = conv(PLAIN.replace(f"N,{WIDE},8,8", "N,3,8,8"), weight=(3, 3, 3, 3))
    assert mean_patch(narrow.ir.graph[0], 21) is None
