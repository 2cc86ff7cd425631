"""Whole networks, as the benches fetch and train them: torch gives what onnxruntime gives, also compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")

from tests.training.test_lower import assert_agrees, demo, normal  # noqa: E402

import gossamer  # noqa: E402
from gossamer.nouns.model import Model, to_bytes  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402
from gossamer.training.write_back import write_back  # noqa: E402

GALLERY = Path.home() / ".cache" / "gossamer-bench" / "gallery"
NETS = ("deep", "demo", "digits", "lite0", "magika", "minilm", "mobilenetv2", "resnet18")


def loaded(name: str) -> tuple[Model, dict[str, np.ndarray]]:
    """A network of the gallery and a few samples, as many as its batch takes."""
    path = GALLERY / name / "model.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not there: the benches make it")
    model = gossamer.load(path)
    with np.load(path.with_name("data.npz")) as data:
        feed = {}
        for value in model.ir.graph.inputs:
            batch = value.shape[0] if value.shape is not None and isinstance(value.shape[0], int) else 4
            feed[value.name] = data[value.name][:batch]
    return model, feed


@pytest.mark.parametrize("name", NETS)
def test_networks_agree_with_the_runtime(name: str) -> None:
    model, feed = loaded(name)
    module = lower(model)
    assert_agrees(model, feed, module)
    arrays = tuple(torch.from_numpy(array) for array in feed.values())
    assert_agrees(model, feed, torch.compile(module, backend="eager", fullgraph=True))
    batch = torch.export.Dim("batch")
    free = isinstance(model.ir.graph.inputs[0].shape[0], ir.SymbolicDim)
    shapes: Any = tuple({0: batch} for _ in arrays) if free else None
    assert_agrees(model, feed, torch.export.export(module, arrays, dynamic_shapes=shapes).module())


@pytest.mark.parametrize("name", NETS)
def test_networks_train_a_step_and_are_written_back(name: str) -> None:
    model, feed = loaded(name)
    module = lower(model)
    optimizer = torch.optim.SGD([weight for weight in module.parameters() if weight.requires_grad], 1e-4)
    made = module(*(torch.from_numpy(array) for array in feed.values()))
    (made[0] if isinstance(made, tuple) else made).square().mean().backward()
    without = [key for key, weight in module.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []
    optimizer.step()
    written = write_back(module, model)
    assert to_bytes(written) != to_bytes(model)
    assert_agrees(written, feed, module)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor imports torch's own deprecated parts
def test_the_compiler_takes_a_training_step() -> None:
    """torch's own, which writes C++, over forward and backward."""
    module = lower(demo()).train()
    compiled = torch.compile(module, fullgraph=True)
    x = torch.from_numpy(normal(8, 1, 28, 28))
    compiled(x).square().mean().backward()
    compiled_gradient = module.get_parameter("head.weight").grad.clone()
    again = lower(demo()).train()
    again(x).square().mean().backward()
    torch.testing.assert_close(compiled_gradient, again.get_parameter("head.weight").grad, rtol=1e-3, atol=1e-4)
