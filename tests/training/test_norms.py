"""Norms behind convolutions while these are trained: they change nothing, see batches, and leave no trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import normal, parse

from gossamer.arith.removal import removed_count
from gossamer.graph.edit import constant
from gossamer.intake.normalise import normalise
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.in_form import Course
from gossamer.training.lessons import Lessons
from gossamer.training.losses.outputs import Outputs
from gossamer.training.norms import EPSILON, folded, statistics, with_norms
from gossamer.training.options import Options
from gossamer.training.pupil import WeightedLoss
from gossamer.training.stages import Formed, in_stages
from gossamer.training.teacher import from_model
from gossamer.training.watching import Watch

TEXT = """g (float[N,3,H,W] x) => (float[N,4] y, float[N,6,H,W] a) {
    a = Conv<pads=[1,1,1,1]>(x, first, b) r = Relu(a) d = Conv<group=6,pads=[1,1,1,1]>(r, second) e = Relu(d)
    f = Conv(e, third, c) s = Add(f, f) y = ReduceMean<keepdims=0>(s, axes) }"""


def network(loud: float = 1.0) -> Model:
    """A convolution that is an output too, one by channel without a bias, and one read twice."""
    arrays = {
        "first": normal(6, 3, 3, 3) * np.float32(loud),
        "b": normal(6) + 3,
        "second": normal(6, 1, 3, 3),
        "third": normal(4, 6, 1, 1),
        "c": normal(4),
        "axes": np.array([2, 3]),
    }
    return normalise(parse(TEXT, **arrays))


def pictures(count: int = 40, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    return samples_from_arrays({"x": rng.normal(size=(count, 3, 6, 5)).astype(np.float32) + 1})


def outputs(model: Model) -> list[np.ndarray]:
    return open_session(model).run({"x": np.asarray(pictures(8, 1).columns["x"])})


def norms_of(model: Model) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.ir.graph)


@given(loud=st.floats(1e-3, 1e3), count=st.integers(1, 30))
def test_they_change_nothing_and_go_again(loud: float, count: int) -> None:
    model = network(loud)
    shown = with_norms(model, pictures(count))
    assert norms_of(shown) == 3 and norms_of(model) == 0
    back = folded(shown, model)
    assert norms_of(back) == 0
    assert sorted(back.ir.graph.initializers)[:5] == sorted([*model.ir.graph.initializers, "node_d/bias"])[:5]
    for before, normed, after in zip(outputs(model), outputs(shown), outputs(back), strict=True):
        scale = np.abs(before).max()
        assert np.allclose(before, normed, atol=1e-5 * scale) and np.allclose(before, after, atol=1e-5 * scale)


def test_statistics_are_those_of_all_positions_however_samples_are_batched() -> None:
    x = np.asarray(pictures().columns["x"])
    a = open_session(network()).run({"x": x})[1].astype(np.float64)
    found = statistics(network(), ["a"], pictures())["a"]
    assert np.allclose(found.mean_C, a.mean((0, 2, 3))) and np.allclose(found.variance_C, a.var((0, 2, 3)))
    shown = with_norms(network(), pictures()).ir.graph.initializers
    assert np.allclose(constant(shown["first/norm_scale"]), np.sqrt(found.variance_C + EPSILON), rtol=1e-6)


def test_what_cannot_take_a_norm_stays() -> None:
    text = """g (float[N,4,H,W] x) => (float[N,4,H,W] y) {
        a = Conv(x, w) b = Conv(a, w) c = Conv(b, v) y = BatchNormalization(c, s, s, s, s) }"""
    model = normalise(parse(text, w=normal(4, 4, 1, 1), v=normal(4, 4, 1, 1), s=np.ones(4, np.float32)))
    assert with_norms(model, pictures()) is model, "a shared weight, and a norm that is there"


@pytest.mark.parametrize("removal", ["second_order", "gradual"])
@pytest.mark.parametrize(("options", "saw"), [({}, True), ({"batch": 8}, False), ({"rates": "third:0.5"}, False)])
def test_sparse_convolutions_are_trained_so(
    removal: str, options: dict[str, object], saw: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gossamer.training import stages

    seen: list[Model] = []

    def watched(model: Model, *rest: object, **named: object) -> object:
        seen.append(model)
        return trained(model, *rest, **named)

    trained = stages.train_in_form
    monkeypatch.setattr(stages, "train_in_form", watched)
    model = network()
    samples = pictures(256)
    lessons = Lessons(samples, from_model(model, ["y", "a"]))
    course = Course((WeightedLoss(Outputs(2)),), (), lessons, lessons, None, Watch())
    asked = Options(**{"epochs": 4, "batch": 16, "rate": 0.01, "device": "cpu", **options})
    outcome, _ = in_stages(model, course, asked, Formed("sparse:0.6", None, removal=removal), tmp_path)
    assert all((norms_of(each) == 3) == saw for each in seen) and norms_of(outcome.model) == 0
    weights = [np.asarray(constant(outcome.model.ir.graph.initializers[name])) for name in ("first", "second", "third")]
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert zeros >= removed_count(0.6, sum(w.size for w in weights))
    before, after = (epoch.validation_loss for epoch in outcome.trained.epochs[-2:])
    assert before is not None and after is not None and after < before
