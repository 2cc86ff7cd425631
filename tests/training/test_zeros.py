"""Zeros that were chosen stay zeros while the rest is trained, and constraints survive training one after another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.training.small_nets import network

from gossamer.constraints.contract import constraint_from_text
from gossamer.graph.weight_uses import weight_uses
from gossamer.intake.onnx_file import read
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run
from gossamer.training.command import train_model
from gossamer.training.lower import lower
from gossamer.training.options import Options
from gossamer.training.twin import twin
from gossamer.training.watching import Watch
from gossamer.training.zeros import keep_zeros

QUICK = Options(epochs=6, batch=32, device="cpu", rate=3e-3)
POINTS = np.random.default_rng(1).standard_normal((1200, 8)).astype(np.float32)


def constrained(model: Model, text: str, **config: object) -> Model:
    evidence = Evidence(samples_from_arrays({"x": POINTS[:300]}))
    return run(Step("constrain_weights", {"constraint": text, **config}), model, evidence).model


@pytest.mark.parametrize("text", ["sparse:0.6", "sparse:0.9", "sparse:2:4"])
def test_zeros_stay_and_the_rest_learns(text: str, tmp_path: Path) -> None:
    original = network()
    sparse = constrained(original, text)
    before = {name: value.const_value.numpy() for name, value in sparse.ir.graph.initializers.items()}
    said: list[str] = []
    summary = train_model(sparse, {"x": POINTS}, tmp_path, teacher=original, options=QUICK, watch=Watch(said.append))
    assert "the zeros of 2 weights stay zeros" in said
    first, last = summary.trained.epochs[0].validation_loss, summary.trained.epochs[-1].validation_loss
    assert first is not None and last is not None and last < 0.8 * first
    after = {
        name: value.const_value.numpy() for name, value in read(tmp_path / "model.onnx").ir.graph.initializers.items()
    }
    for name in ("first", "second"):
        assert np.array_equal(before[name] == 0, after[name] == 0)
        assert not np.array_equal(before[name], after[name])
    constraint = constraint_from_text(text)
    model = read(tmp_path / "model.onnx")
    for value, uses in weight_uses(list(model.ir.graph), False).uses.items():
        assert constraint.contains(uses[0].to_matrix(value.const_value.numpy()), uses[0].k_shape)


@pytest.mark.parametrize("text", ["codebook:4", "sparse:0.6+codebook:4"])
def test_shared_values_learn_together(text: str, tmp_path: Path) -> None:
    """Trained quantization (Han et al. 2016): weights that share a value receive one gradient, and zero stays zero."""
    original = network()
    shared = constrained(original, text)
    summary = train_model(shared, {"x": POINTS}, tmp_path, teacher=original, options=QUICK)
    first, last = summary.trained.epochs[0].validation_loss, summary.trained.epochs[-1].validation_loss
    assert first is not None and last is not None and last < 0.9 * first
    trained = read(tmp_path / "model.onnx").ir.graph.initializers
    for name, value in shared.ir.graph.initializers.items():
        old, new = value.const_value.numpy(), trained[name].const_value.numpy()
        if "table" in name:
            assert old.shape == new.shape and not np.array_equal(old, new)
            assert np.array_equal(old == 0, new == 0)
        elif "indices" in name:
            assert np.array_equal(old, new)


def test_a_sparse_grid_keeps_its_zeros() -> None:
    original = network()
    evidence = Evidence(samples_from_arrays({"x": POINTS[:300]}))
    static = run(Step("quantize_static"), constrained(original, "sparse:0.6"), evidence).model
    graph = twin(static)
    module = lower(graph)
    assert keep_zeros(module, graph) == 2


def test_a_dense_model_holds_nothing_back() -> None:
    original = network()
    module = lower(original)
    assert keep_zeros(module, original) == 0
    evidence = Evidence(samples_from_arrays({"x": POINTS[:300]}))
    for bits in (2, 3, 4):
        graph = twin(run(Step("quantize_static", {"weight_bits": bits}), original, evidence).model)
        assert keep_zeros(lower(graph), graph) == 0
