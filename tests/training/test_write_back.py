"""Trained values in the graph: what the runtime then computes is what the module computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")

from tests.passes.graphs import normal, parse  # noqa: E402
from tests.training.test_lower import RESIDUAL, RESIDUAL_WEIGHTS, assert_agrees  # noqa: E402

from gossamer.errors import ModelError  # noqa: E402
from gossamer.nouns.model import Model, to_bytes  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402
from gossamer.training.write_back import write_back  # noqa: E402


def residual() -> Model:
    return parse(RESIDUAL, **RESIDUAL_WEIGHTS)


def trained(model: Model) -> Any:
    module = lower(model).train()
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for seed in range(3):
        loss = module(torch.from_numpy(normal(8, 3, 8, 8, seed=seed))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def test_what_was_trained_is_what_the_runtime_runs() -> None:
    model = residual()
    before = to_bytes(model)
    module = trained(model)
    written = write_back(module, model)
    assert to_bytes(model) == before
    assert_agrees(written, {"x": normal(4, 3, 8, 8)}, module)
    for name, value in written.ir.graph.initializers.items():
        assert not np.array_equal(value.const_value.numpy(), model.ir.graph.initializers[name].const_value.numpy())


def test_what_was_not_trained_is_shared() -> None:
    model = residual()
    written = write_back(lower(model), model)
    assert to_bytes(written) == to_bytes(model)
    for name, value in written.ir.graph.initializers.items():
        assert value.const_value is model.ir.graph.initializers[name].const_value


def test_infinities_of_the_graph_itself_are_no_failure_of_training() -> None:
    model = parse(
        "g (float[N,2] x) => (float[N,2] y) { m = Max(x, low) y = Mul(m, w) }", low=np.float32(-np.inf), w=(2,)
    )
    assert to_bytes(write_back(lower(model), model)) == to_bytes(model)


def test_copies_and_averages_of_the_module_are_taken() -> None:
    model = residual()
    module = trained(model)
    average = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    average.update_parameters(module)
    assert to_bytes(write_back(average.module, model)) == to_bytes(write_back(module, model))


def test_half_precision_stays_half_precision() -> None:
    model = parse("g (float16[N,3] x) => (float16[N,3] y) { y = Mul(x, w) }", w=np.float16([1, 2, 3]))
    module = lower(model)
    with torch.no_grad():
        module.w.add_(0.5)
    weight = write_back(module, model).ir.graph.initializers["w"].const_value
    assert weight.numpy().dtype == np.float16 and weight.numpy().tolist() == [1.5, 2.5, 3.5]


def test_weights_of_a_branch_are_written_into_the_branch() -> None:
    text = """
    g (float[3] x, bool take) => (float[3] y) {
        y = If(take) <
            then_branch = t () => (a) <float[3] w = {1, 2, 3}> { a = Mul(x, w) },
            else_branch = e () => (b) <float[3] w_2 = {4, 5, 6}> { b = Mul(x, w_2) }
        >
    }"""
    model = parse(text)
    module = lower(model)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(2)
    written = write_back(module, model)
    for take in (True, False):
        assert_agrees(written, {"x": normal(3), "take": np.array(take)}, module)


def test_values_that_cannot_be_written_are_refused() -> None:
    model = residual()
    module = trained(model)
    with torch.no_grad():
        module.head_b[3] = torch.nan
    with pytest.raises(ModelError, match="test: initializer head_b holds NaN or infinity after training; lower the le"):
        write_back(module, model)
    module.head_b = torch.nn.Parameter(torch.zeros(7))
    with pytest.raises(
        ModelError, match=r"initializer head_b has shape \(10,\), the module's value \(7,\); it must st"
    ):
        write_back(module, model)
    del module.head_b
    with pytest.raises(ModelError, match="test: the module has lost head_b, the value of initializer head_b"):
        write_back(module, model)


def test_other_modules_and_models_are_refused() -> None:
    with pytest.raises(ModelError, match="a Linear was not made by lower; give the module that it returned"):
        write_back(torch.nn.Linear(2, 2), residual())
    other = parse("g (float[N,3] x) => (float[N,3] y) { y = Mul(x, w) }", w=(3,))
    with pytest.raises(ModelError, match="test has no initializer conv_w; give the model that was lowered"):
        write_back(lower(residual()), other)
