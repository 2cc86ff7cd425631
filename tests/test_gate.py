"""The gate refuses what must not leave: wrong types, other names, NaN, a file that does not open."""

from __future__ import annotations

from os import utime
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer import gate
from gossamer.errors import CandidateError, ModelError
from gossamer.gate import Baseline, baseline, check_types, judge, meets, open_original, open_timed, unchanged
from gossamer.measuring.latency import Timing
from gossamer.measuring.quality import choose_metric
from gossamer.nouns.budget import Budget
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency
from gossamer.nouns.samples import samples_from_arrays
from gossamer.nouns.target import Target

QUICK = Timing(budget_s=0.1)
NET = '<ir_version: 10, opset_import: ["" : 21]>\nnet (float[N,4] x) => (float[N,3] y) '


def write(path: Path, body: str = "{ y = MatMul(x, w) }", header: str = NET, **weights: np.ndarray) -> Path:
    proto = onnx.parser.parse_model(header + body)
    weights = weights or {"w": np.arange(12, dtype=np.float32).reshape(4, 3)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(proto, path)
    return path


@pytest.fixture
def original(tmp_path: Path) -> Baseline:
    path = write(tmp_path / "original.onnx")
    opened = open_original(path, Target())
    samples = samples_from_arrays({"x": np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)})
    return baseline(opened, path, samples, choose_metric(opened.session, samples))


def metric(original: Baseline):  # type: ignore[no-untyped-def]
    return choose_metric(original.session, original.samples)


def test_the_original_against_itself_has_no_drop_and_no_gain(original: Baseline, tmp_path: Path) -> None:
    for facts in (
        unchanged(original),
        judge(tmp_path / "original.onnx", original, metric(original), ("FLOAT",), QUICK),
    ):
        assert facts.accuracy.drop == 0 and facts.accuracy.n == 20
        assert facts.bytes.original == facts.bytes.result == (tmp_path / "original.onnx").stat().st_size
        assert 0.2 < facts.latency_ms.ratio < 5


def test_a_promised_type_that_is_not_in_the_file_is_refused(original: Baseline, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="promised INT8 weights, but holds 48 bytes of FLOAT"):
        judge(tmp_path / "original.onnx", original, metric(original), ("INT8",), QUICK)
    check_types(tmp_path / "original.onnx", ("FLOAT",))


def test_another_output_name_is_refused(original: Baseline, tmp_path: Path) -> None:
    other = write(tmp_path / "other.onnx", "{ z = MatMul(x, w) }", NET.replace("y)", "z)"))
    with pytest.raises(CandidateError, match="other names"):
        judge(other, original, metric(original), (), QUICK)


def test_nan_is_refused_naming_the_output(original: Baseline, tmp_path: Path) -> None:
    weights = {"w": np.ones((4, 3), np.float32), "minus": np.float32([-1e30])}
    bad = write(tmp_path / "bad.onnx", "{ a = MatMul(x, w)  b = Mul(a, minus)  y = Sqrt(b) }", **weights)
    with pytest.raises(CandidateError, match="'y'"):
        judge(bad, original, metric(original), (), QUICK)


def test_a_file_that_does_not_open_is_refused(original: Baseline, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(CandidateError, match="onnxruntime refuses the model"):
        judge(tmp_path / "bad.onnx", original, metric(original), (), QUICK)
    with pytest.raises(ModelError, match="only a model that runs can be compressed"):
        open_original(tmp_path / "bad.onnx", Target())


def test_a_small_file_is_opened_once_until_it_is_written_anew(original: Baseline, tmp_path: Path) -> None:
    path = write(tmp_path / "other.onnx")
    first = open_timed(path, original)
    assert open_timed(path, original) is first
    write(path, w=np.ones((4, 3), np.float32))
    utime(path, ns=(1, 1))  # whatever the clock's resolution
    again = open_timed(path, original)
    assert again is not first and np.array_equal(
        again.session.run(original.feeds)[0], np.sum(original.feeds["x"]) * np.ones((1, 3), np.float32)
    )


def test_files_do_not_stay_open_that_are_large_or_slow(
    original: Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "other.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(gate, "KEPT_BYTES", path.stat().st_size - 1)
        assert open_timed(path, original) is not open_timed(path, original)
    with monkeypatch.context() as patch:
        patch.setattr(gate, "QUICK_S", 0.0)
        assert open_timed(path, original) is not open_timed(path, original)
    assert not original.opened.kept


@pytest.mark.parametrize("quick_s", [0.0, 10.0])
def test_scores_do_not_depend_on_how_many_calls_go_side_by_side(
    quick_s: float, original: Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "QUICK_S", quick_s)
    path = write(tmp_path / "other.onnx", w=np.arange(12, dtype=np.float32).reshape(4, 3) ** 0.9)
    rule = metric(original)
    afresh = baseline(original.opened, tmp_path / "original.onnx", original.samples, rule)
    assert np.array_equal(afresh.scores.values_N, original.scores.values_N)
    facts = judge(path, afresh, rule, (), QUICK)
    assert facts.accuracy.snr_db == pytest.approx(judge(path, original, rule, (), QUICK).accuracy.snr_db)


@given(st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 1))
def test_the_floor_is_on_the_point_or_with_confidence_on_the_bound(drop: float, half: float, floor: float) -> None:
    facts = measured(Accuracy("top1", 1.0, 1.0 - drop, drop, drop - half, drop + half, 100, 20.0))
    if abs(drop - floor) > 1e-6:
        assert meets(facts, Budget(floor)) == (drop <= floor)
    if abs(drop + half - floor) > 1e-6:
        assert meets(facts, Budget(floor, confident=True)) == (drop + half <= floor)


def measured(accuracy: Accuracy) -> Facts:
    """Four times smaller and twice as fast."""
    return Facts(accuracy, Bytes(4_000, 1_000), Latency(2.0, 1.0, 2.0, 1.9, 2.1, 1, "none"))


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (Budget(max_bytes=1_000), True),
        (Budget(max_bytes=999), False),
        (Budget(max_size_ratio=0.25), True),
        (Budget(max_size_ratio=0.24), False),
        (Budget(max_latency_ratio=0.5), True),
        (Budget(max_latency_ratio=0.49), False),
    ],
)
def test_limits_are_of_the_file_and_of_its_latency(limits: Budget, kept: bool) -> None:
    assert meets(measured(Accuracy("top1", 1.0, 1.0, 0.0, 0.0, 0.0, 100, 20.0)), limits) == kept
