"""An image and a text together: nothing assumes one input, in distillation or in training of integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import parse

from gossamer.graph.qdq import integers_behind
from gossamer.intake.onnx_file import read
from gossamer.nouns.model import Model
from gossamer.training.command import train_model
from gossamer.training.options import Options
from gossamer.training.teaching import Distillation

TEXT = """g (float[N,3,8,8] image, int64[N,6] words) => (float[N,5] scores) {
    a = Conv<pads=[1,1,1,1]>(image, kernel, shift) r = Relu(a) p = GlobalAveragePool(r) v = Flatten(p)
    e = Gather(table, words) m = ReduceMean<keepdims=0>(e, axes) b = Concat<axis=1>(v, m)
    h = Gemm(b, first, c) t = Relu(h) scores = Gemm(t, second, d)
}"""


def network(width: int, seed: int) -> Model:
    rng = np.random.default_rng(seed)
    shapes = {
        "kernel": (width, 3, 3, 3),
        "shift": (width,),
        "table": (20, 8),
        "first": (width + 8, 32),
        "c": (32,),
        "second": (32, 5),
        "d": (5,),
    }
    weights = {name: (0.5 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    return parse(TEXT, axes=np.array([1]), **weights)


@pytest.fixture
def pairs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    image = rng.standard_normal((800, 3, 8, 8)).astype(np.float32) + rng.standard_normal((800, 3, 1, 1)).astype(
        np.float32
    )
    return {"image": image, "words": rng.integers(0, 20, (800, 6))}


def test_a_smaller_student_learns_from_both(tmp_path: Path, pairs: dict[str, np.ndarray]) -> None:
    options = Options(epochs=8, batch=32, rate=0.01, device="cpu")
    wanted = Distillation(("soft_labels", "correlation:0.1"))
    summary = train_model(network(4, 1), pairs, tmp_path, network(16, 0), wanted, options)
    assert summary.accuracy.result > summary.accuracy.original + 0.2


def test_its_integers_are_trained(tmp_path: Path, pairs: dict[str, np.ndarray]) -> None:
    options = Options(epochs=6, batch=32, rate=0.01, device="cpu")
    summary = train_model(network(16, 0), pairs, tmp_path, options=options, constraint="grid:3")
    first, best = summary.trained.epochs[0].validation_loss, summary.trained.epochs[-1].validation_loss
    assert first is not None and best is not None and best < 0.9 * first
    model = read(tmp_path / "model.onnx")
    stored = [node for node in model.ir.graph if node.op_type == "DequantizeLinear" and integers_behind(node)]
    assert len(stored) >= 3, "the convolution and both products"
