from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.measuring.means import Kept, Mean, half_means, joined, mean_of, shrunk
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays


def parse(text: str) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    onnx.checker.check_model(proto)
    return Model(ir.serde.deserialize_model(proto), "test")


TEXT = """test (float[BATCH,3,4] x) => (float[BATCH,4] pooled, float[M,4] rows, float[K,4] joined)
    <int64[1] axis = {1}, int64[2] flat = {-1, 4}, int64[1] first = {0}> {
    pooled = ReduceMean<keepdims=0>(x, axis)
    rows = Reshape(x, flat)
    one = Slice(rows, first, axis)
    joined = Concat<axis=0>(rows, one)
}"""


@given(st.integers(1, 13), st.sampled_from(["N", "1", "2", "5"]))
def test_even_and_odd_samples(n: int, batch: str) -> None:
    """Whatever the batch: one row a sample, or several, or rows that are nobody's."""
    x = np.random.default_rng(n).normal(size=(n, 3, 4)).astype(np.float32)
    means = half_means(parse(TEXT.replace("BATCH", batch)), ["pooled", "rows", "joined"], samples_from_arrays({"x": x}))
    halves = x[0::2], (x[1::2] if n > 1 else x)
    for name in ("pooled", "rows"):
        for got, half in zip(means[name], halves, strict=True):
            assert got.mean_O.dtype == np.float64 and got.mean_O.shape == (4,) and got.samples == len(half)
            assert np.allclose(got.mean_O, half.mean(axis=(0, 1)), atol=1e-6)
            rows = half.mean(axis=1).astype(np.float64)
            variance = rows.var(axis=0, ddof=1) / len(rows) if len(rows) > 1 else np.zeros(4)
            assert np.allclose(got.variance_O, variance, atol=1e-6)
        if n > 1:
            assert np.allclose(joined(*means[name]).mean_O, x.mean(axis=(0, 1)), atol=1e-6)
    assert np.isfinite(means["joined"][0].mean_O).all()


def test_a_batch_without_rows_of_its_samples_counts_as_one() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3, 4)).astype(np.float32)
    even, odd = half_means(parse(TEXT.replace("BATCH", "2")), ["joined"], samples_from_arrays({"x": x}))["joined"]
    for got, pair in ((even, x[:2]), (odd, x[2:])):
        rows = pair.reshape(-1, 4)
        assert np.allclose(got.mean_O, np.concatenate([rows, rows[:1]]).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("batch", ["N", "1", "2"])
def test_outputs_are_kept_as_they_come(batch: str) -> None:
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    calls = Kept(["pooled", "rows"])
    half_means(parse(TEXT.replace("BATCH", batch)), ["pooled"], samples_from_arrays({"x": x}), kept=calls)
    kept = {name: [outputs[name] for outputs in calls.outputs.values()] for name in calls.names}
    size = int(batch.replace("N", "1"))
    assert [len(array) for array in kept["pooled"]] == ([1] * 5 if size == 1 else [2, 2, 1])
    np.testing.assert_allclose(np.concatenate(kept["pooled"]), x.mean(axis=1), atol=1e-6)
    assert [len(array) for array in kept["rows"]] == [3 * size] * len(kept["rows"])  # more than one row a sample: whole


@pytest.mark.parametrize("batch", ["N", "1", "2"])
@pytest.mark.parametrize("limit", [1, 50, 100, 10**6])
def test_outputs_over_the_limit_are_thinned_out(batch: str, limit: int) -> None:
    x = np.random.default_rng(0).normal(size=(13, 3, 4)).astype(np.float32)
    samples, calls = samples_from_arrays({"x": x}), Kept(["pooled"], limit)
    half_means(parse(TEXT.replace("BATCH", batch)), ["pooled"], samples, kept=calls)
    held = [outputs["pooled"] for outputs in calls.outputs.values()]
    assert len(held) == 1 or sum(array.nbytes for array in held) <= limit
    assert len(np.unique(np.diff(list(calls.outputs)))) <= 1
    rows = np.concatenate([call.rows for call in calls.of(samples)])
    assert [len(call) for call in calls.of(samples)] == [len(array) for array in held]
    assert len(rows) == 13 or limit < 10**6
    np.testing.assert_allclose(np.concatenate(held), x[rows].mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_samples_that_do_not_meddle_go_together(threads: int) -> None:
    model = parse(
        "test (float[N,3,4] x) => (float[N,4] y) <int64[1] axis = {1}> { y = ReduceMean<keepdims=0>(x, axis) }"
    )
    x, calls = np.random.default_rng(0).normal(size=(70, 3, 4)).astype(np.float32), Kept(["y"])
    even, odd = half_means(model, ["y"], samples_from_arrays({"x": x}), threads, calls)["y"]
    assert [len(outputs["y"]) for outputs in calls.outputs.values()] == [32, 32, 6]
    np.testing.assert_allclose(
        np.concatenate([outputs["y"] for outputs in calls.outputs.values()]), x.mean(axis=1), atol=1e-6
    )
    assert even.samples == odd.samples == 35
    np.testing.assert_allclose(even.mean_O, x[0::2].mean(axis=(0, 1)), atol=1e-6)


def test_ragged_samples() -> None:
    model = parse("test (float[N,T,4] x) => (float[M,4] y) <int64[2] flat = {-1, 4}> { y = Reshape(x, flat) }")
    x = [np.full((length, 4), length, np.float32) for length in (1, 5, 3, 7)]
    even, odd = half_means(model, ["y"], samples_from_arrays({"x": x}))["y"]
    assert even.mean_O == pytest.approx(2) and odd.mean_O == pytest.approx(
        6
    )  # each sample weighs the same, however long it is


@given(st.integers(2, 30), st.integers(0, 2**16))
def test_means_that_chance_may_have_made_are_drawn_to_zero(n: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal([0, 100], 1, size=(n, 2))
    mean = mean_of(rows)
    taken = shrunk(mean)
    assert (np.abs(taken) <= np.abs(mean.mean_O)).all() and (taken * mean.mean_O >= 0).all()
    assert taken[1] == pytest.approx(100, rel=0.05)
    ten = Mean(np.array([1.0, 0.0]), np.array([9.0, 0.0]), n)
    assert shrunk(ten).tolist() == [0.1, 0.0]
