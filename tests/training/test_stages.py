"""Stages: in which order weights come to their form, what acts on them meanwhile, and what has no meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import parse
from tests.training.small_nets import network

from gossamer.arith.removal import removed_count
from gossamer.constraints.contract import constraint_from_text
from gossamer.errors import OptionError
from gossamer.graph.edit import constant
from gossamer.graph.qdq import integers_behind
from gossamer.graph.weight_uses import weight_uses
from gossamer.intake.normalise import normalise
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run
from gossamer.training.in_form import Course, Outcome
from gossamer.training.lessons import Lessons
from gossamer.training.losses.outputs import Outputs
from gossamer.training.options import Options
from gossamer.training.pupil import WeightedLoss
from gossamer.training.stages import Formed, check_formed, in_stages, plan
from gossamer.training.teacher import from_model
from gossamer.training.watching import Watch

QUICK = Options(epochs=6, batch=16, device="cpu", rate=0.01)  # 20 steps an epoch
POINTS = np.random.default_rng(1).standard_normal((400, 8)).astype(np.float32)


def course(model: Model, watch: Watch = Watch(), checkpoint: Path | None = None) -> Course:  # noqa: B008
    """The model itself teaches."""
    teacher = from_model(model, [str(value.name) for value in model.ir.graph.outputs])
    samples = samples_from_arrays({"x": POINTS})
    learn, choose = (Lessons(samples.take(rows), teacher) for rows in np.split(np.arange(400), [320]))
    return Course((WeightedLoss(Outputs(1)),), (), learn, choose, checkpoint, watch)


def formed_by(
    formed: Formed, folder: Path, options: Options = QUICK, model: Model | None = None
) -> tuple[Outcome, str]:
    model = normalise(network() if model is None else model)
    check_formed(formed, options)
    return in_stages(model, course(model), options, formed, folder)


def assert_learned(outcome: Outcome, factor: float = 0.9) -> None:
    first, *others = (epoch.validation_loss for epoch in outcome.trained.epochs)
    assert first is not None and min(loss for loss in others if loss is not None) < factor * first


def assert_inside(model: Model, text: str, layers: int) -> None:
    found = weight_uses(list(model.ir.graph), True).uses
    assert len(found) == layers
    for value, uses in found.items():
        assert constraint_from_text(text).contains(uses[0].to_matrix(np.asarray(constant(value))), uses[0].k_shape)


def shown(formed: Formed) -> list[tuple[str, tuple[str, ...]]]:
    return [(str(stage), stage.penalties) for stage in plan(formed)]


# --- the plan


def test_a_removal_of_one_run_is_one_stage_and_what_is_composed_comes_behind() -> None:
    assert shown(Formed("sparse:0.9", removal="gradual")) == [("sparse:0.9", ())]
    composed = plan(Formed("sparse:0.9+codebook:16", removal="rigl"))
    assert [(stage.constraint, stage.zeros is None) for stage in composed] == [
        ("", False),
        ("sparse:0.9+codebook:16", True),
    ]


def test_penalties_act_where_layers_have_weights_of_their_own() -> None:
    asked = ("lasso:0.1",)
    assert shown(Formed("sparse:0.9+codebook:16", 1, penalties=asked)) == [
        ("sparse:0.9", asked),
        ("sparse:0.9+codebook:16", ()),
    ]
    assert shown(Formed("grid:4", penalties=asked)) == [("grid:4", asked)]
    assert shown(Formed("codebook:16", penalties=("mixture:0.1",))) == [
        ("mixture:0.1", ("mixture:0.1",)),
        ("codebook:16", ()),
    ]
    both = ("lasso:0.1", "rate:0.1")
    assert shown(Formed("sparse:0.9+grid:4", 1, penalties=both)) == [("sparse:0.9", asked), ("sparse:0.9+grid:4", both)]


# --- removal in one run


@pytest.mark.parametrize("removal", ["gradual", "movement", "rigl"])
def test_zeros_are_reached_in_one_run(removal: str, tmp_path: Path) -> None:
    outcome, met = formed_by(Formed("sparse:0.6", removal=removal, spread="equal"), tmp_path)
    assert met == "sparse:0.6" and len(outcome.trained.epochs) == 7
    assert_inside(outcome.model, "sparse:0.6", 2)
    assert outcome.trained.best_epoch > 0 and outcome.trained.epochs[outcome.trained.best_epoch].validation_loss < 0.3


def test_integers_become_zero_where_their_layer_can_spare_them(tmp_path: Path) -> None:
    evidence = Evidence(samples_from_arrays({"x": POINTS}))
    model = run(Step("quantize_static"), network(), evidence).model
    outcome, _ = formed_by(Formed("sparse:0.6", removal="gradual"), tmp_path, model=model)
    stored = (integers_behind(node) for node in outcome.model.ir.graph if node.op_type == "DequantizeLinear")
    first, second = (np.asarray(constant(value)) == 0 for value in stored if value is not None and is_matrix(value))
    assert first.sum() + second.sum() >= removed_count(0.6, first.size + second.size)
    assert first.mean() > 0.6 > second.mean()


def is_matrix(value: ir.Value) -> bool:
    return np.asarray(constant(value)).ndim == 2


@pytest.mark.parametrize("then", ["codebook:8", "grid:4"])
def test_what_comes_behind_keeps_the_zeros(then: str, tmp_path: Path) -> None:
    said: list[str] = []
    model = normalise(network())
    formed = Formed(f"sparse:0.7+{then}", removal="gradual")
    _, met = in_stages(model, course(model, Watch(said.append)), QUICK, formed, tmp_path)
    assert met == f"sparse:0.7+{then}"
    assert [line for line in said if line.startswith(("moving", "training"))] == [
        "training weights that become sparse:0.7 meanwhile, by gradual removal",
        f"moving weights into sparse:0.7+{then}",
    ]
    assert any(line == "the zeros of 2 weights stay zeros" for line in said)
    assert list(tmp_path.glob(".stage-1-*"))


def test_layers_that_cannot_take_the_zeros_are_told_and_none_is_an_error(tmp_path: Path) -> None:
    text = "g (float[N,8] x) => (float[N,4] scores) { h = MatMul(x, first) r = Relu(h) scores = MatMul(r, second) }"
    rng = np.random.default_rng(0)
    weights = {"first": rng.standard_normal((8, 64)), "second": rng.standard_normal((64, 4))}
    model = parse(text, **{name: value.astype(np.float32) for name, value in weights.items()})
    outcome, _ = formed_by(Formed("sparse:3:16", removal="gradual"), tmp_path, model=model)
    assert any("sparse:3:16 left node_h as it was: its rows of 8 weights" in note for note in outcome.model.notes)
    with pytest.raises(OptionError, match=r"no weight of \w+ can become sparse:3:7: sparse:3:7 left node_h as it was"):
        formed_by(Formed("sparse:3:7", removal="gradual"), tmp_path, model=model)


def test_a_schedule_longer_than_the_training_is_refused(tmp_path: Path) -> None:
    message = (
        "sparse:0.6 by gradual changes its zeros 24 times, and so needs at least 48 steps of training; these are 20"
    )
    with pytest.raises(OptionError, match=message):
        formed_by(Formed("sparse:0.6", removal="gradual"), tmp_path, Options(epochs=1, batch=16, device="cpu"))


def test_stages_of_another_teacher_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        if "sparse:0.6+codebook:4" in line:
            raise Stopped

    model, formed = normalise(network()), Formed("sparse:0.6+codebook:4", 1)
    with pytest.raises(Stopped):
        in_stages(model, course(model, Watch(stop)), QUICK, formed, tmp_path)
    for teacher, told in ((model, "going on behind stage 1"), (None, "moving weights into sparse:0.6")):
        said: list[str] = []
        taught = course(model, Watch(said.append))
        if teacher is None:
            others = [
                Lessons(one.samples, lambda rows, feeds: (np.ones((len(rows), 4), np.float32),))
                for one in (taught.learn, taught.choose)
            ]
            taught = taught._replace(learn=others[0], choose=others[1])
        in_stages(model, taught, QUICK, formed, tmp_path)
        assert said[0].startswith(told)


def test_an_interrupted_run_does_not_claim_its_zeros(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    model = normalise(network())
    outcome, met = in_stages(
        model, course(model, Watch(steps=stop)), QUICK, Formed("sparse:0.6", removal="gradual"), tmp_path
    )
    assert outcome.trained.interrupted and met == ""


# --- penalties


def test_penalties_train_without_a_constraint_and_within_a_grid(tmp_path: Path) -> None:
    outcome, met = formed_by(Formed(penalties=("group_lasso:0.05",)), tmp_path)
    assert met == "" and outcome.trained.best_epoch > 0
    outcome, met = formed_by(Formed("grid:4", penalties=("rate:0.05", "lasso:0.01")), tmp_path)
    assert met == "grid:4" and outcome.trained.best_epoch > 0


def test_soft_sharing_goes_before_the_codebook(tmp_path: Path) -> None:
    formed = Formed("codebook:8", penalties=("mixture:0.05:components=8",))
    outcome, met = formed_by(formed, tmp_path)
    assert met == "codebook:8"
    assert any("table" in name for name in outcome.model.ir.graph.initializers)


# --- other forms


def test_thin_factors_go_on_grids(tmp_path: Path) -> None:
    outcome, met = formed_by(Formed("low_rank:2+grid:4", activations="float"), tmp_path)
    assert met == "low_rank:2+grid:4"
    assert outcome.trained.best_epoch > 0
    kinds = [node.op_type for node in outcome.model.ir.graph]
    assert kinds.count("MatMul") + kinds.count("Gemm") == 4, "two for each layer"


def test_layers_that_share_a_weight_learn_it_together(tmp_path: Path) -> None:
    """One initializer, read by both, moved by the sum of their gradients."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("first", "second")}
    text = "g (float[N,8] x) => (float[N,8] y) { h = MatMul(x, first) r = Tanh(h) y = MatMul(r, second) }"
    outcome, met = formed_by(Formed("shared"), tmp_path, model=parse(text, **weights))
    assert met == "shared"
    assert_learned(outcome)
    found = weight_uses(list(outcome.model.ir.graph), False).uses
    assert [len(uses) for uses in found.values()] == [2]


def test_vectors_are_trained_in_form(tmp_path: Path) -> None:
    outcome, _ = formed_by(Formed("codebook:16:dimension=2"), tmp_path)
    assert_learned(outcome)
    tables = [np.asarray(constant(v)) for name, v in outcome.model.ir.graph.initializers.items() if "table" in name]
    assert [table.shape for table in tables] == [(16, 2), (16, 2)]


# --- what has no meaning


@pytest.mark.parametrize(
    ("formed", "message"),
    [
        (
            Formed("grid:4", removal="gradual"),
            "removal gradual is how weights become zero, and grid:4 asks for no zeros",
        ),
        (Formed(removal="rigl"), "removal rigl is how weights become zero, and no constraint asks for no zeros"),
        (
            Formed("sparse:0.5", removal="magic"),
            "removal is 'magic'; allowed are second_order, gradual, movement, rigl",
        ),
        (Formed("grid:4", spread="equal"), "spread equal is how zeros lie over layers, and grid:4 asks for no zeros"),
        (Formed("sparse:0.5", spread="even"), "spread is 'even'; allowed are score, equal"),
        (Formed("sparse:0.9", 7, removal="gradual"), "rounds is 7, and removal gradual reaches sparse:0.9 in one run"),
        (Formed("sparse:2:4", 3), "rounds is 3, and sparse:2:4 is not reached in rounds, as only a ratio of zeros is"),
        (Formed("codebook:16", 2), "rounds is 2, and codebook:16 is not reached in rounds"),
        (Formed("sparse:0.9", 0), "rounds is 0; allowed is 1 or more"),
        (Formed("sparse:2:4+sparse:0.95"), "both say which weights of a tensor are zero, 50 % and 95 % of them"),
        (Formed("grid:4", penalties=("lasso:-1",)), "penalty lasso has the strength '-1'"),
        (Formed("sparse:0.9", 1, penalties=("rate:1",)), "penalty rate:1 is of integers, and sparse:0.9 makes none"),
    ],
)
def test_what_contradicts_itself_is_said_in_a_line(formed: Formed, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        check_formed(formed, QUICK)
    assert "\n" not in str(caught.value)
