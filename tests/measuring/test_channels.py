from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import CandidateError, DataError, ModelError
from gossamer.measuring import evidence as evidence_module
from gossamer.measuring.channels import MOST_CALLS, activation_rows, channel_peaks
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays


def parse(batch: str = "N", length: str = "3") -> Model:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    test (float[{batch},{length},4] x) => (float[{batch},{length},4] y) <float two = {{2}}, int64[1] axis = {{1}}> {{
        a = Mul(x, two)
        flat = ReduceMax<keepdims=0>(a, axis)
        count = Size(a)
        sum = ReduceSum<keepdims=0>(a)
        y = Neg(a)
    }}"""
    proto = onnx.parser.parse_model(text)
    onnx.checker.check_model(proto)
    return Model(ir.serde.deserialize_model(proto), "test")


@given(st.integers(1, 11), st.sampled_from(["N", "1", "2", "5"]), st.integers(0, 2**16))
def test_the_same_whatever_the_batch(n: int, batch: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, 3, 4)) * np.logspace(-2, 2, 4)).astype(np.float32)
    found = channel_peaks(parse(batch), ["x", "a", "flat", "y"], samples_from_arrays({"x": x}))
    assert {name: peak.dtype for name, peak in found.items()} == dict.fromkeys(("x", "a", "flat", "y"), np.float64)
    np.testing.assert_array_equal(found["x"], np.abs(x).max((0, 1)))
    np.testing.assert_array_equal(found["a"], 2 * np.abs(x).max((0, 1)))
    np.testing.assert_array_equal(found["y"], found["a"])
    np.testing.assert_array_equal(found["flat"], np.abs(2 * x.max(1)).max(0))


@given(st.permutations(range(6)), st.integers(0, 6))
def test_order_and_parts_do_not_matter(order: list[int], cut: int) -> None:
    x = np.random.default_rng(5).normal(size=(6, 3, 4)).astype(np.float32)
    samples, model = samples_from_arrays({"x": x}), parse()
    whole = channel_peaks(model, ["a"], samples)["a"]
    parts = [channel_peaks(model, ["a"], samples.take(np.array(rows, int)))["a"] for rows in (order[:cut], order[cut:])]
    np.testing.assert_array_equal(np.max([part for part in parts if part.size], axis=0), whole)
    assert not cut or parts[0].size  # no sample, no channels


def test_ragged_samples() -> None:
    x = [np.full((length, 4), -length, np.float32) for length in (1, 5, 3)]
    found = channel_peaks(parse(length="T"), ["a"], samples_from_arrays({"x": x}))
    assert found["a"].tolist() == [10.0] * 4


def test_what_has_no_channels_is_refused() -> None:
    samples = samples_from_arrays({"x": np.ones((2, 3, 4), np.float32)})
    with pytest.raises(ModelError, match="no node of the main graph computes 'nothing'"):
        channel_peaks(parse(), ["nothing"], samples)
    with pytest.raises(ModelError, match="'count' holds 0 axes of int64"):
        channel_peaks(parse(), ["count"], samples)
    with pytest.raises(ModelError, match="'sum' holds 0 axes of float32"):
        channel_peaks(parse(), ["sum"], samples)


def test_a_last_axis_that_changes_is_refused() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> test (float[N,T] x) => (float[N,T] y) { y = Neg(x) }'
    )
    x = [np.ones(3, np.float32), np.ones(5, np.float32)]
    with pytest.raises(ModelError, match="'y' has 3 channels on one sample and 5 on another"):
        channel_peaks(Model(ir.serde.deserialize_model(proto), "test"), ["y"], samples_from_arrays({"x": x}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_sample_is_named(bad: float) -> None:
    x = np.ones((4, 3, 4), np.float32)
    x[2, 1, 1] = bad
    with pytest.raises(DataError, match="'y' is NaN or infinite on sample 2 of memory"):
        channel_peaks(parse(), ["y"], samples_from_arrays({"x": x}))


def test_a_sample_that_does_not_fit_is_the_candidates_failure() -> None:
    with pytest.raises(CandidateError, match="onnxruntime fails on a calibration sample: "):
        channel_peaks(parse(), ["y"], samples_from_arrays({"x": np.ones((2, 3, 5), np.float32)}))


def test_evidence_keeps_what_it_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def counting(model: Model, names: list[str], *rest: Any) -> dict[str, np.ndarray]:
        asked.append(list(names))
        return channel_peaks(model, names, *rest)

    monkeypatch.setattr(evidence_module, "channel_peaks", counting)
    model, evidence = parse(), Evidence(samples_from_arrays({"x": np.ones((2, 3, 4), np.float32)}))
    evidence.channel_peaks(model, ["a"])
    assert evidence.channel_peaks(model, ["y", "a"])["a"].tolist() == [2.0] * 4
    evidence.channel_peaks(model, ["y"])
    evidence.channel_peaks(model.clone(), ["y"])  # another model
    assert asked == [["a"], ["y"], ["y"]]


@pytest.mark.parametrize("batch", ["N", "2"])
def test_whole_rows_of_samples_spread_evenly(batch: str) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3, 4)).astype(np.float32)
    found = activation_rows(parse(batch), ["a", "x"], samples_from_arrays({"x": x}))
    assert len(found["a"]) == MOST_CALLS
    chosen = np.linspace(0, 39, MOST_CALLS * (2 if batch == "2" else 1)).astype(int)
    np.testing.assert_allclose(np.concatenate(found["a"]), 2 * x[chosen].reshape(-1, 4))
    np.testing.assert_array_equal(np.concatenate(found["x"]), x[chosen].reshape(-1, 4))


def test_enough_rows_are_enough() -> None:
    x = np.zeros((10, 700, 4), np.float32)
    assert len(activation_rows(parse(length="700"), ["a"], samples_from_arrays({"x": x}))["a"]) == 2
