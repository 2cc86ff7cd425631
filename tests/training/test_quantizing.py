"""`gossamer train --constraint grid:4`: a float model becomes integers and is trained in them, taught by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import parse

from gossamer.errors import OptionError
from gossamer.graph.edit import constant
from gossamer.graph.qdq import integers_behind
from gossamer.intake.onnx_file import read
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays
from gossamer.training.command import Summary, train_model
from gossamer.training.options import Options
from gossamer.training.quantizing import Activations, quantize

QUICK = Options(epochs=8, batch=32, device="cpu", rate=0.01)


def network() -> Model:
    """Eight numbers to four scores, by weights that few bits do not hold."""
    rng = np.random.default_rng(0)
    text = """g (float[N,8] x) => (float[N,4] scores) {
        a = Gemm(x, first, b) h = Relu(a) scores = Gemm(h, second, c) }"""
    shapes = {"first": (8, 64), "b": (64,), "second": (64, 4), "c": (4,)}
    return parse(text, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


@pytest.fixture
def points() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((1200, 8)).astype(np.float32)}


def integers(model: Model) -> list[np.ndarray]:
    found = (integers_behind(node) for node in model.ir.graph if node.op_type == "DequantizeLinear")
    values = [value for value in found if value is not None and value.dtype != ir.DataType.INT32]
    return [np.asarray(constant(value)).astype(np.int32) for value in values]


def assert_learned(summary: Summary) -> None:
    """The loss on samples that chose the epoch fell by a tenth, and what is told is about the integers before."""
    first, best = summary.trained.epochs[0].validation_loss, summary.trained.epochs[-1].validation_loss
    assert first is not None and best is not None and best < 0.9 * first
    assert summary.accuracy.original < 1


@pytest.mark.parametrize(
    ("constraint", "activations", "most"),
    [("grid:2", "uint8", 2), ("grid:3", "int8", 4), ("grid:3:group=8", "float", 4)],
)
def test_a_float_model_is_trained_in_integers(
    constraint: str, activations: Activations, most: int, tmp_path: Path, points: dict[str, np.ndarray]
) -> None:
    summary = train_model(network(), points, tmp_path, options=QUICK, constraint=constraint, activations=activations)
    assert_learned(summary)
    assert summary.constraint == constraint and summary.teacher
    stored = integers(read(tmp_path / "model.onnx"))
    assert len(stored) == 2 and max(int(np.abs(array).max()) for array in stored) <= most


def test_a_model_of_integers_needs_no_constraint(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    samples = samples_from_arrays(points)
    model = quantize(network(), "grid:2", "uint8", samples)
    summary = train_model(model, points, tmp_path, teacher=network(), options=QUICK)
    assert_learned(summary)
    assert [array.shape for array in integers(read(tmp_path / "model.onnx"))] == [(8, 64), (64, 4)]


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("sparse:0.5", "sparse:0.5 is not trained yet; allowed are grids"),
        ("grid:4:group=16", "one scale a channel or tensor, such as grid:4; for others give --activations float"),
    ],
)
def test_what_cannot_be_trained_says_so(constraint: str, message: str, points: dict[str, np.ndarray]) -> None:
    with pytest.raises(OptionError, match=message):
        quantize(network(), constraint, "uint8", samples_from_arrays(points))


def test_a_model_without_weights_for_a_grid_is_refused() -> None:
    model = parse("g (float[N,8] x) => (float[N,8] y) { y = Relu(x) }")
    with pytest.raises(OptionError, match="no weight of test can become grid:4"):
        quantize(model, "grid:4", "uint8", samples_from_arrays({"x": np.ones((9, 8), np.float32)}))
