"""The torch door: what comes out computes what the module computes, and the module is left as it was."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from gossamer.errors import MissingExtraError, ModelError
from gossamer.intake.torch_module import load_torch
from gossamer.nouns.model import Model, to_bytes
from gossamer.runtimes.onnxruntime import open_session

torch = pytest.importorskip("torch")
nn = torch.nn


class Small(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout(),
            nn.Linear(4, 5),
        )
        self.norm.running_mean.normal_()
        self.drop.eval()  # a part in another mode than the whole

    def forward(self, image):  # type: ignore[no-untyped-def]
        return self.head(self.drop(torch.relu(self.norm(self.conv(image))).mean((2, 3))))


class Tied(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x, scale):  # type: ignore[no-untyped-def]
        return self.second(torch.relu(self.first(x))) * scale


class Fixed(nn.Module):  # type: ignore[misc, name-defined]
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x + torch.arange(3.0)[:, None]


class Branching(nn.Module):  # type: ignore[misc, name-defined]
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x if x.sum() > 0 else x * 2


def assert_same(model: Model, module: torch.nn.Module, *inputs: torch.Tensor) -> None:  # type: ignore[name-defined]
    session = open_session(model)
    given = dict(zip(session.inputs, [x.numpy() for x in inputs], strict=True))
    module.eval()
    with torch.no_grad():
        np.testing.assert_allclose(session.run(given)[0], module(*inputs).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", [False, True])
def test_a_module_with_a_free_batch(
    keep: bool, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    module = Small().train()
    module.drop.eval()
    model = load_torch(module, torch.randn(1, 3, 8, 8), keep_batchnorm=keep)
    assert module.training and module.norm.training and not module.drop.training
    assert capfd.readouterr() == ("", "") and not [record for record in caplog.records if record.levelno > logging.INFO]
    assert logging.root.manager.disable == logging.NOTSET
    assert ("BatchNormalization" in [node.op_type for node in model.ir.graph]) == keep
    assert model.name == "Small" and model.path is None and not model.notes
    assert model.ir.graph.opset_imports[""] == 21
    assert_same(model, module, torch.randn(5, 3, 8, 8))


def test_weights_are_copied() -> None:
    module = nn.Linear(3, 2)
    model = load_torch(module, (np.zeros((2, 3), np.float32),), dynamic_batch=False)
    before = to_bytes(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert to_bytes(model) == before


def test_several_inputs_by_name_and_tied_weights() -> None:
    module = Tied()
    model = load_torch(module, {"x": torch.randn(1, 6), "scale": torch.rand(1, 1)})
    assert [value.name for value in model.ir.graph.inputs] == ["x", "scale"]
    matrices = [value for value in model.ir.graph.initializers.values() if value.const_value.size == 36]  # type: ignore[union-attr]
    assert len(matrices) == 1 and len(matrices[0].uses()) == 2
    assert_same(model, module, torch.randn(4, 6), torch.rand(4, 1))


def test_a_fixed_batch_is_noted() -> None:
    module = Fixed()
    model = load_torch(module, torch.randn(3, 6))
    assert len(model.notes) == 1 and model.notes[0].startswith("the batch size is fixed")
    assert_same(model, module, torch.randn(3, 6))
    assert not load_torch(module, torch.randn(3, 6), dynamic_batch=False).notes


def test_what_cannot_be_exported(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"torch cannot export Branching: .*data-dependent") as caught:
        load_torch(Branching(), torch.randn(2, 6))
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_nan_in_the_weights() -> None:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"Linear: weight 'weight' holds NaN"):
        load_torch(module, torch.randn(2, 3), dynamic_batch=False)


@pytest.mark.parametrize("given", [Path("net.pt"), lambda x: x, {"state": 1}])
def test_what_is_no_module(given: object) -> None:
    with pytest.raises(
        ModelError, match=r"is no torch.nn.Module; build the module in Python and give it, never a pickle"
    ):
        load_torch(given, torch.randn(2, 3))  # type: ignore[arg-type]


def test_examples_that_are_no_tensors() -> None:
    with pytest.raises(ModelError, match="example inputs of Small hold a str; give tensors"):
        load_torch(Small(), ["image"])


@pytest.mark.parametrize("missing", ["torch", "onnxscript"])
def test_without_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gossamer\[torch\]'"):
        load_torch(None, None)  # type: ignore[arg-type]


def test_no_path_of_this_machine_goes_into_the_graph() -> None:
    model = load_torch(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), torch.zeros(2, 4))
    content = to_bytes(model)
    assert b"pkg.torch" not in content and __file__.encode() not in content and b"site-packages" not in content
