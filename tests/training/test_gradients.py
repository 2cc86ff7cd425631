"""Gradients of a handful of operators against finite differences; `make test-operators` asks all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")

from tests.passes.graphs import parse  # noqa: E402

from gossamer.training.lower import lower  # noqa: E402

SAMPLE: dict[str, tuple[str, dict[str, Any]]] = {
    "convolution": (
        'g (float[2,4,5,5] x) => (float y) { y = Conv<group=2, auto_pad="SAME_LOWER", strides=[2,2]>(x, w, b) }',
        {"w": (6, 2, 3, 3), "b": (6,)},
    ),
    "transposed convolution": (
        "g (float[2,4,3,3] x) => (float y) { y = ConvTranspose<strides=[2,2], pads=[1,0,0,1]>(x, w) }",
        {"w": (4, 3, 3, 3)},
    ),
    "layer normalization": (
        "g (float[2,3,5] x) => (float y) { y = LayerNormalization<axis=-1>(x, w, b) }",
        {"w": (5,), "b": (5,)},
    ),
    "gather": ("g (float[5,3] x) => (float y) { y = Gather(x, i) }", {"i": np.int64([[0, -1], [2, 2]])}),
    "resize": (
        'g (float[1,2,4,4] x) => (float y) { y = Resize<mode="cubic">(x, , s) }',
        {"s": np.float32([1, 1, 0.8, 1.7])},
    ),
    "lstm": (
        "g (float[4,2,3] x) => (float y) { y = LSTM<hidden_size=5>(x, w, r, b) }",
        {"w": (1, 20, 3), "r": (1, 20, 5), "b": (1, 40)},
    ),
    "gru by steps": (
        "g (float[4,2,3] x) => (float y) { y = GRU<hidden_size=5>(x, w, r, b) }",
        {"w": (1, 15, 3), "r": (1, 15, 5), "b": (1, 30)},
    ),
    "pooling": (
        "g (float[1,2,7,7] x) => (float y) { y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x) }",
        {},
    ),
}


@pytest.mark.parametrize("name", SAMPLE)
def test_gradients_are_those_of_the_function(name: str) -> None:
    text, weights = SAMPLE[name]
    model = parse(text, **weights)
    module = lower(model).double().train()
    torch.manual_seed(0)
    shape = tuple(model.ir.graph.inputs[0].shape.numpy())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = [weight for weight in module.parameters() if weight.requires_grad]
    names = [key for key, weight in module.named_parameters() if weight.requires_grad]

    def function(x: Any, *values: Any) -> Any:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters))


def test_a_query_that_sees_no_key_gives_zeros_and_no_nan() -> None:
    text = "g (float[1,2,3,4] x, bool[3,3] seen) => (float y) { y = Attention(x, x, x, seen) }"
    module = lower(parse(text, opset=23))
    x = torch.randn(1, 2, 3, 4, requires_grad=True)
    y = module(x, torch.tensor([[True, False, False], [False] * 3, [True] * 3]))
    y.square().sum().backward()
    assert (y[:, :, 1] == 0).all() and (y[:, :, 2] != 0).all()
    assert torch.isfinite(x.grad).all() and (x.grad != 0).any()
