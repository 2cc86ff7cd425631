"""Streaming over a model: every sample counted once, whatever the batches; bad input named."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arith.histogram import Observed, observed_of
from gossamer.errors import CandidateError, DataError, ModelError
from gossamer.measuring import evidence, ranges
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.ranges import observe
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples, samples_from_arrays


def model_from(text: str) -> Model:
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>' + text)
    return Model(ir.serde.deserialize_model(proto), "test.onnx")


def scaled(batch: str) -> Model:
    """twice = 2x, shown = max(twice, 0)."""
    return model_from(f"""g (float[{batch}, T] x) => (float[{batch}, T] shown) {{
        two = Constant <value_float = 2.0> ()
        twice = Mul (x, two)
        shown = Relu (twice) }}""")


def samples_of(count: int, length: int = 5, seed: int = 0) -> tuple[np.ndarray, Samples]:
    x = np.random.default_rng(seed).normal(size=(count, length)).astype(np.float32)
    return x, samples_from_arrays({"x": x})


def same(first: Observed, second: Observed) -> None:
    np.testing.assert_array_equal(first.sample_low_N, second.sample_low_N)
    np.testing.assert_array_equal(first.sample_high_N, second.sample_high_N)
    assert (first.counts is None) == (second.counts is None)
    if first.counts is not None:
        np.testing.assert_array_equal(first.counts, second.counts)
    assert first.size == second.size


@settings(max_examples=20)
@given(st.integers(1, 2 * ranges.GLANCE[1] - 1), st.sampled_from(["N", "1", "4", "7"]), st.booleans())
def test_equal_to_one_shot_for_any_batch(count: int, batch: str, histogram: bool) -> None:
    x, samples = samples_of(count)
    model = scaled(batch)
    seen = observe(model, ["x", "twice", "shown"], samples, histogram)
    for name, expected in {"x": x, "twice": 2 * x, "shown": np.maximum(2 * x, 0)}.items():
        same(seen[name], observed_of(expected))  # of so few samples the histogram is whole anyway
    assert [value.name for value in model.ir.graph.outputs] == ["shown"]


@pytest.mark.parametrize("batch", ["N", "1", "4", "7"])
@pytest.mark.parametrize("count", [64, 95, 96, 131])
def test_some_32_samples_are_counted_where_the_histogram_need_not_be_whole(count: int, batch: str) -> None:
    x, samples = samples_of(count)
    seen = observe(scaled(batch), ["x", "twice"], samples, histogram=False)
    for name, expected in {"x": x, "twice": 2 * x}.items():
        whole = observed_of(expected)
        np.testing.assert_array_equal(seen[name].counts, observed_of(expected[:: count // 32]).counts)
        same(replace(seen[name], counts=whole.counts), whole)


def test_of_large_tensors_fewer_samples_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "GLANCE_NUMBERS", 1)
    x, samples = samples_of(64)
    seen = observe(scaled("N"), ["twice"], samples, histogram=False)["twice"]
    np.testing.assert_array_equal(seen.counts, observed_of(2 * x[:: 64 // ranges.GLANCE[0]]).counts)


@pytest.mark.parametrize("batch", ["N", "1", "3"])
def test_ragged_samples(batch: str) -> None:
    rng = np.random.default_rng(0)
    x = [rng.normal(size=length).astype(np.float32) for length in (3, 3, 5, 2, 2, 2, 2, 9)]
    seen = observe(scaled(batch), ["twice"], samples_from_arrays({"x": x}), True)["twice"]
    assert seen.counts is not None
    np.testing.assert_array_equal(seen.counts, observed_of(2 * np.concatenate(x)[None]).counts)
    np.testing.assert_array_equal(seen.sample_low_N, [2 * sample.min() for sample in x])


def test_only_a_part_of_the_samples() -> None:
    x, samples = samples_of(9)
    rows = np.array([7, 2, 5])
    same(observe(scaled("N"), ["twice"], samples.take(rows), True)["twice"], observed_of(2 * x[rows]))


TURNED = """g (float[N, T] x) => (float[T, N] turned, float[] total, float[1, 1] fixed, float[M] flat) {
    turned = Transpose <perm = [1, 0]> (x)
    total = ReduceMax <keepdims = 0> (x)
    fixed = ReduceMin <keepdims = 1> (x)
    shape = Constant <value_ints = [-1]> ()
    flat = Reshape (x, shape) }"""


@pytest.mark.parametrize("length", [1, 2, 16])
@pytest.mark.parametrize("name", ["turned", "flat", "total", "fixed"])
def test_tensors_without_a_batch_axis_are_seen_sample_by_sample(name: str, length: int) -> None:
    x, samples = samples_of(6, length)
    expected = {"turned": x, "flat": x, "total": x.max(axis=1), "fixed": x.min(axis=1)}[name]
    same(observe(model_from(TURNED), [name], samples, True)[name], observed_of(expected))


def test_a_free_batch_axis_that_only_one_sample_fits() -> None:
    model = model_from("""g (float[N, 4] x) => (float[1, 2, 2] y) {
        shape = Constant <value_ints = [1, 2, 2]> ()
        y = Reshape (x, shape) }""")
    x, samples = samples_of(5, length=4)
    same(observe(model, ["y"], samples, True)["y"], observed_of(x))


def test_float16_and_float64_are_observed_as_float32() -> None:
    model = model_from("""g (float[N, T] x) => (float16[N, T] half, double[N, T] double) {
        half = Cast <to = 10> (x)
        double = Cast <to = 11> (x) }""")
    x, samples = samples_of(4)
    seen = observe(model, ["half", "double"], samples, True)
    same(seen["half"], observed_of(x.astype(np.float16)))
    same(seen["double"], observed_of(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("histogram", [True, False])
def test_nan_and_infinity_name_tensor_and_sample(bad: float, histogram: bool) -> None:
    x, samples = samples_of(40)
    x[27, 3] = bad
    with pytest.raises(DataError, match="tensor 'twice' is NaN or infinite on sample 27 of memory; check that sample"):
        observe(scaled("N"), ["twice"], samples, histogram)
    with pytest.raises(DataError, match="tensor 'x' is NaN or infinite on sample 27"):
        observe(scaled("8"), ["x"], samples.take(np.arange(20, 30)), histogram)


def test_wrong_names_and_types() -> None:
    _, samples = samples_of(3)
    with pytest.raises(ModelError, match=r"test\.onnx: no node of the main graph computes 'twise'"):
        observe(scaled("N"), ["twise"], samples, False)
    model = model_from("g (float[N, T] x) => (int64[N, T] y) { y = Cast <to = 7> (x) }")
    with pytest.raises(ModelError, match="tensor 'y' holds int64; ranges are of float tensors only"):
        observe(model, ["y"], samples, False)


def test_samples_that_do_not_fit_are_a_candidate_error() -> None:
    model = model_from("g (float[2, 4] x) => (float[2, 4] y) { y = Relu (x) }")
    _, samples = samples_of(3, length=5)
    with pytest.raises(CandidateError, match=r"onnxruntime fails on a batch of calibration samples: .*x"):
        observe(model, ["y"], samples, False)


class Lazy:
    """A column that makes its samples when asked."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, row: int) -> np.ndarray:
        return np.full(50_000, row, np.float32)


def test_memory_does_not_grow_with_the_samples() -> None:
    def peak(count: int) -> int:
        samples = Samples({"x": Lazy()}, rows=np.arange(count))  # type: ignore[dict-item]
        tracemalloc.start()
        observe(scaled("N"), ["x", "twice"], samples, True)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(200) < 1.5 * peak(50)  # 50 are more than two batches already


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], bool]]:
    """What was asked of `observe`."""
    asked: list[tuple[list[str], bool]] = []

    def counting(
        model: Model, names: Sequence[str], samples: Samples, histogram: bool, threads: int
    ) -> dict[str, Observed]:
        asked.append((list(names), histogram))
        return ranges.observe(model, names, samples, histogram, threads)

    monkeypatch.setattr(evidence, "observe", counting)
    return asked


def test_evidence_observes_only_what_is_missing(passes: list[tuple[list[str], bool]]) -> None:
    x, samples = samples_of(4)
    known, model = Evidence(samples), scaled("N")
    same(known.ranges(model, ["x", "twice"], False)["twice"], observed_of(2 * x))
    known.ranges(model, ["twice"], False)
    known.ranges(model, ["twice", "shown"], True)
    assert list(known.ranges(model, ["shown"], True)) == ["shown"]
    assert passes == [(["x", "twice"], False), (["twice", "shown"], True)]


def test_evidence_says_the_same_whatever_was_asked_before() -> None:
    """Else a plan replayed by itself might not give the bytes that it gave among others."""
    samples, model = samples_of(70)[1], scaled("N")
    alone = Evidence(samples).ranges(model, ["twice"], False)["twice"]
    known = Evidence(samples)
    whole = known.ranges(model, ["twice"], True)["twice"].counts
    assert whole is not None and whole.sum() == 70 * 5
    same(known.ranges(model, ["twice"], False)["twice"], alone)
    assert alone.counts is not None and alone.counts.sum() == 35 * 5


def test_evidence_keeps_models_apart(passes: list[tuple[list[str], bool]]) -> None:
    known = Evidence(samples_of(4)[1])
    first = scaled("N")
    for model in (first, scaled("N"), first):
        known.ranges(model, ["twice"], False)
    assert len(passes) == 2
    alive = weakref.ref(first)
    del first, model
    gc.collect()
    assert alive() is not None  # else the next model might get its id, and its statistics


def test_minus_infinity_alone_is_for_the_caller_to_find() -> None:
    """Masks hold it on purpose."""
    x, samples = samples_of(40)
    x[27, 3] = -np.inf
    seen = observe(scaled("N"), ["twice"], samples, True)["twice"]
    assert not seen.finite and np.isneginf(seen.sample_low_N).sum() == 1
    x[28, 3] = np.nan
    with pytest.raises(DataError, match="sample 27"):
        observe(scaled("N"), ["twice"], samples, True)
