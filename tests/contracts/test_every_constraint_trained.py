"""The third solver, training: whatever the constraint, what the file holds in the end lies inside.

A layer's weight is what the runtime computes with: it is asked for beside the outputs, behind integers, tables and all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'gossamer[train]'")

from tests.contracts.test_every_constraint import ALL, EXAMPLES
from tests.passes.graphs import parse

from gossamer.arith.removal import removed_count
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.composed import Composed
from gossamer.constraints.contract import Constraint, constraint_from_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.shared import Shared
from gossamer.errors import OptionError
from gossamer.graph.edit import constant
from gossamer.graph.weight_matrix import layout
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.fetching import with_outputs
from gossamer.nouns.model import Model, save
from gossamer.nouns.samples import samples_from_arrays
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.constraining import Activations
from gossamer.training.in_form import Course
from gossamer.training.lessons import Lessons
from gossamer.training.losses.outputs import Outputs
from gossamer.training.options import Options
from gossamer.training.pupil import WeightedLoss
from gossamer.training.sparsity.chosen import Removal
from gossamer.training.spread import Spread
from gossamer.training.stages import Formed, check_formed, in_stages, plan
from gossamer.training.teacher import from_model
from gossamer.training.watching import Watch

WIDTH = 24
WIDE = "grid:16:asymmetric:group=2"  # takes more bytes than floats
LAYERS = ("MatMul", "Gemm")
RNG = np.random.default_rng(4)
POINTS = RNG.standard_normal((240, WIDTH)).astype(np.float32)
WEIGHTS = [RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32) for _ in range(2)]


def network() -> Model:
    text = """g (float[N,24] x) => (float[N,24] y) { a = MatMul(x, first) h = Relu(a) y = Gemm(h, second, c) }"""
    return normalise(parse(text, first=WEIGHTS[0], second=WEIGHTS[1], c=np.zeros(WIDTH, np.float32)))


def trained(formed: Formed, folder: Path, batch: int) -> Model:
    """An epoch for each stage, and the file as it is read again."""
    model = network()
    samples = samples_from_arrays({"x": POINTS})
    teacher = from_model(model, ["y"])
    learn, choose = (Lessons(samples.take(rows), teacher) for rows in np.split(np.arange(len(POINTS)), [200]))
    options = Options(epochs=len(plan(formed)), batch=batch, device="cpu", rate=1e-3)
    check_formed(formed, options)
    course = Course((WeightedLoss(Outputs(1)),), (), learn, choose, None, Watch())
    outcome, met = in_stages(model, course, options, formed, folder)
    assert met == formed.constraint and len(outcome.trained.epochs) == 2
    save(outcome.model, folder / "model.onnx")
    return read(folder / "model.onnx")


def weights(model: Model) -> list[np.ndarray]:
    """What each layer multiplies with, (G, O, K), in graph order."""
    layers = [node for node in model.ir.graph if node.op_type in LAYERS]
    found = [(node, slot) for node in layers for slot in (0, 1) if _is_of_constants(node.inputs[slot])]
    names = [str(node.inputs[slot].name) for node, slot in found]
    computed = list(dict.fromkeys(name for name in names if name not in model.ir.graph.initializers))
    session = open_session(with_outputs(model, computed, "weights"), 1)
    outputs = session.run({"x": POINTS[:1]})[-len(computed) :] if computed else []
    known = dict(zip(computed, outputs, strict=True))
    matrices = []
    for (node, slot), name in zip(found, names, strict=True):
        w = known[name] if name in known else np.asarray(constant(model.ir.graph.initializers[name]))
        split, order = layout(node, slot, w.shape)
        w_split = w.reshape(split).transpose(order)
        matrices.append(w_split.reshape(*w_split.shape[:2], -1))
    return matrices


def _is_of_constants(value: ir.Value | None) -> bool:
    if value is None or value.is_graph_input():
        return False
    maker = value.producer()
    return maker is None or all(_is_of_constants(given) for given in maker.inputs if given is not None)


def assert_inside(constraint: Constraint, found: Sequence[np.ndarray]) -> None:
    first, then = (constraint.first, constraint.then) if isinstance(constraint, Composed) else (constraint, None)
    if isinstance(first, LowRank):
        assert len(found) == 4
        assert then is None or all(_grid_for(w, then).contains(w) for w in found)
        found = [(found[at + 1][0] @ found[at][0])[None] for at in (0, 2)]
        assert all(first.contains(w.astype(np.float32)) for w in found)
    elif isinstance(first, Shared):
        assert first.contains(np.concatenate(found))
    else:
        assert len(found) == 2 and all(constraint.contains(w) for w in found)


def _grid_for(w_GOK: np.ndarray, grid: Grid | Codebook) -> Grid | Codebook:
    """With a scale a row where its groups do not divide the rank, as `Composed` has it."""
    return Grid(grid.bits) if isinstance(grid, Grid) and grid.obstacle(w_GOK.shape) else grid


@pytest.mark.parametrize("text", [text for text in ALL if text != WIDE])
def test_what_is_stored_after_training_lies_inside(text: str, tmp_path: Path) -> None:
    rounds = 2 if text.startswith("sparse:0") else None
    activations: Activations = "float" if "grid" in text else "uint8"
    spread: Spread = "equal" if "sparse" in text else "score"
    found = weights(trained(Formed(text, rounds, activations, spread=spread), tmp_path, batch=32))
    assert_inside(constraint_from_text(text), found)
    if text != "sparse:0.0":  # there is nothing to learn in it
        assert not any(np.array_equal(w[0].T, before) for w in found for before in WEIGHTS)


def test_a_form_that_would_save_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"no weight of test can become {WIDE}: .* take 2592 bytes, the floats 2304"):
        trained(Formed(WIDE, None, "float"), tmp_path, batch=32)


@pytest.mark.parametrize("text", ["grid:4", "grid:8:tensor", "sparse:0.5+grid:4", "low_rank:2+grid:4"])
def test_layers_that_compute_in_integers_too(text: str, tmp_path: Path) -> None:
    formed = Formed(text, spread="equal" if "sparse" in text else "score")
    assert_inside(constraint_from_text(text), weights(trained(formed, tmp_path, batch=32)))


@pytest.mark.parametrize("text", [*EXAMPLES["sparse"], "sparse:0.5+grid:4", "sparse:0.5+codebook:4"])
@pytest.mark.parametrize("removal", ["gradual", "movement", "rigl"])
def test_zeros_that_appear_while_training(removal: Removal, text: str, tmp_path: Path) -> None:
    formed = Formed(text, None, "float" if "grid" in text else "uint8", removal, spread="equal")
    assert_inside(constraint_from_text(text), weights(trained(formed, tmp_path, batch=3)))


@pytest.mark.parametrize(
    ("text", "activations"),
    [
        ("sparse:0.7", "uint8"),
        ("sparse:0.7+grid:4", "uint8"),
        ("sparse:0.7+grid:4", "float"),
        ("sparse:0.7+codebook:4", "uint8"),
    ],
)
@pytest.mark.parametrize("removal", ["second_order", "gradual", "movement", "rigl"])
def test_zeros_of_all_layers_together(removal: Removal, text: str, activations: Activations, tmp_path: Path) -> None:
    found = weights(trained(Formed(text, None, activations, removal), tmp_path, batch=3))
    first, second = ((w == 0).reshape(-1) for w in found)
    assert first.sum() + second.sum() >= removed_count(0.7, first.size + second.size)
    assert first.sum() != second.sum()
