"""A diagnosis measures what it says, and leaves empty what it cannot measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.passes.graphs import parse

from gossamer.diagnosis import BINS, diagnose
from gossamer.errors import CandidateError
from gossamer.gate import Baseline, baseline, judge, open_original
from gossamer.graph.edit import constant
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.latency import Timing
from gossamer.measuring.quality import choose_metric
from gossamer.nouns.budget import Budget
from gossamer.nouns.diagnosis import Diagnosis, LayerBlame
from gossamer.nouns.model import Model, save
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.record import Candidate, Split, Splits
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.nouns.target import Target
from gossamer.passes.contract import Memo, run_plan
from gossamer.report.findings import Case

PLAN = Plan("int8", (Step("fold_constants"), Step("quantize_static", {"rounding": "sums"}), Step("correct_bias")))
BLAMES = (
    LayerBlame("node_a", "Conv", "b", 0, 30.0, 0.001, 0.1, 1.0),
    LayerBlame("node_c", "Conv", "c", 2, 25.0, 0.002, 0.9, 1.1),
    LayerBlame("elsewhere", "Conv", "z", 9, 25.0, 0.002),
)


def net() -> Model:
    """Conv, Relu, Conv; one channel of the first has weights a hundred times the others'."""
    w = np.random.default_rng(3).normal(size=(8, 4, 3, 3)).astype(np.float32)
    w /= np.abs(w).max(axis=(1, 2, 3), keepdims=True)
    w[5] *= 100
    return parse(
        """net (float[N,4,8,8] x) => (float[N,6,4,4] c) {
            a = Conv<kernel_shape=[3,3]>(x, w)  b = Relu(a)  c = Conv<kernel_shape=[3,3]>(b, v)
        }""",
        w=w,
        v=(6, 8, 3, 3),
    )


class Scene:
    """A net, its samples, and a result as a run would have them."""

    def __init__(self, folder: Path) -> None:
        self.model, self.memo = net(), Memo()
        path = folder / "original.onnx"
        save(self.model, path)
        x = np.random.default_rng(0).normal(size=(40, 4, 8, 8)).astype(np.float32)
        samples = samples_from_arrays({"x": x})
        self.evidence = Evidence(samples.take(np.arange(20)))
        self.original = self.open(path, samples.take(np.arange(20, 40)))
        self.result = run_plan(PLAN, self.model, self.evidence, self.memo).model
        save(self.result, folder / "result.onnx")
        metric = choose_metric(self.original.session, samples)
        facts = judge(folder / "result.onnx", self.original, metric, (), Timing(budget_s=0.1))
        splits = Splits(Split(20, ""), Split(20, ""), Split(20, ""), 0)
        tried = (Candidate(PLAN, facts, True),)
        self.case = Case(PLAN, facts, True, Budget(), splits, tried, operators=3)

    @staticmethod
    def open(path: Path, samples: Samples) -> Baseline:
        opened = open_original(path, Target())
        return baseline(opened, path, samples, choose_metric(opened.session, samples))

    def diagnose(self, blames: tuple[LayerBlame, ...] = BLAMES, **changes: Any) -> Diagnosis:
        case = replace(self.case, **changes)
        return diagnose(case, self.model, self.evidence, self.memo, self.original, blames, budget_s=1.0)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("diagnosis"))


def test_ranges_are_those_of_the_quantizers_and_count_every_value(scene: Scene) -> None:
    second, first = scene.diagnose().ranges  # the second layer costs more
    assert (first.tensor, first.layer) == ("b", "node_a")  # the output of the layer's Relu is what is quantized
    seen = scene.evidence.ranges(scene.model, ["b"], histogram=True)["b"]
    assert len(first.counts) == BINS
    assert sum(first.counts) == pytest.approx(seen.size, rel=0.01)
    assert first.low == 0 == seen.sample_low_N.min() and first.high == seen.sample_high_N.max()
    quantizers = [node for node in scene.result.ir.graph if node.op_type == "QuantizeLinear"]
    scale, zero = next((constant(n.inputs[1]), constant(n.inputs[2])) for n in quantizers if "b" in n.inputs[0].name)
    assert scale is not None and zero is not None
    assert first.clip_high == pytest.approx(float(scale) * (255 - int(zero)))
    assert first.clip_low == pytest.approx(float(scale) * (0 - int(zero)))
    assert first.levels == 256 and first.clipped_ratio == 0
    assert first.outlier_ratio >= 1
    assert second.layer == "node_c"


def test_cut_values_are_counted(scene: Scene) -> None:
    narrow = Plan("narrow", (Step("quantize_static", {"ranges": "l2"}),))
    cut = [one for one in scene.diagnose(plan=narrow).ranges if one.tensor == "b"]
    seen = scene.evidence.ranges(scene.model, ["b"], histogram=True)["b"]
    assert cut and cut[0].clip_high < seen.sample_high_N.max()
    assert 0 < cut[0].clipped_ratio < 0.01


def test_steps_are_measured_and_those_that_change_nothing_left_out(scene: Scene) -> None:
    steps = scene.diagnose().steps
    assert [step.step for step in steps] == ["Quantize static", "Correct bias"]  # there was no constant to fold
    for step in steps:
        assert step.snr_db == pytest.approx(scene.case.facts.accuracy.snr_db, abs=6)
        assert 0.05 < step.latency_ratio < 20
        assert 0 < step.bytes_ratio < 5
    size = len(scene.result.ir.graph) and (scene.case.facts.bytes.result / scene.case.facts.bytes.original)
    assert steps[-1].bytes_ratio == pytest.approx(size, rel=0.1)


def test_spreads_are_read_from_the_weights(scene: Scene) -> None:
    first, second, unknown = scene.diagnose().layers
    assert first.channel_spread == pytest.approx(100, rel=1e-5)
    assert second.channel_spread is not None and 1 <= second.channel_spread < 10
    assert unknown == BLAMES[2]


def test_findings_are_drawn_from_it(scene: Scene) -> None:
    found = scene.diagnose().findings
    assert any("`node_c` (Conv) costs most" in one.text for one in found)


def test_the_original_itself_has_nothing_to_explain(scene: Scene) -> None:
    left = scene.diagnose((), plan=Plan("original"))
    assert (left.layers, left.ranges, left.steps) == ((), (), ())


def test_what_fails_is_left_empty(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise CandidateError("no")

    monkeypatch.setattr("gossamer.diagnosis.race", fail)
    told = scene.diagnose()
    assert told.steps == () and told.ranges and told.layers
    monkeypatch.setattr("gossamer.diagnosis.run_plan", fail)
    told = scene.diagnose()
    assert told.ranges == () and len(told.layers) == len(BLAMES)


def test_a_model_too_slow_for_the_time_left_has_no_steps(scene: Scene) -> None:
    slow = replace(scene.case.facts, latency_ms=replace(scene.case.facts.latency_ms, original=60_000.0))
    assert scene.diagnose(facts=slow).steps == ()
