"""A module out, a loop of one's own, a model back."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import normal, parse  # noqa: E402
from torch import nn  # noqa: E402

from gossamer.errors import ModelError  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.runtimes.onnxruntime import open_session  # noqa: E402
from gossamer.training.own_loop import from_torch, to_torch  # noqa: E402


def model() -> Model:
    graph = "g (float[N,4] x) => (float[N,2] y) { h = MatMul(x, w) y = Add(h, b) }"
    return parse(graph.replace(") y = Add", ")\n y = Add"), w=normal(4, 2), b=normal(2))


@pytest.mark.parametrize("wrap", [lambda module: module, nn.Sequential, copy.deepcopy])
def test_what_a_loop_learns_is_what_the_runtime_computes(wrap: object) -> None:
    module = wrap(to_torch(model()))  # type: ignore[operator]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x = torch.from_numpy(normal(16, 4))
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(module(x).square().mean())
        optimizer.step()
    got = open_session(from_torch(module)).run({"x": x.numpy()})[0]
    assert np.allclose(got, module(x).detach().numpy(), atol=1e-6)
    assert not np.allclose(got, open_session(model()).run({"x": x.numpy()})[0], atol=1e-3)


def test_a_module_of_another_origin_is_refused() -> None:
    with pytest.raises(ModelError, match="a Linear holds none of the modules that to_torch makes; give the one to"):
        from_torch(nn.Linear(2, 2))


def test_two_modules_in_one_are_refused() -> None:
    with pytest.raises(ModelError, match="a Sequential holds 2 of the modules that to_torch makes"):
        from_torch(nn.Sequential(to_torch(model()), to_torch(model())))
