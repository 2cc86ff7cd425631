"""Quality: scores against what numpy says of the whole data set at once, in every way it can be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import CandidateError, DataError, ModelError, OptionError
from gossamer.measuring import batches, quality
from gossamer.measuring.quality import Metric, choose_metric, compare, evaluate, preprocessing_warning, score
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.runtimes.contract import Session
from gossamer.runtimes.onnxruntime import open_session

FEATURES, CLASSES = 6, 4


def linear(w_IC: np.ndarray, batch: int | str = "n", tail: str = "") -> Session:
    """x (batch, I) @ w (I, C)."""
    inputs, classes = w_IC.shape
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[{batch}, {inputs}] x) => (float[{batch}, {classes}] y) {{ {tail or "y = MatMul(x, w)"} }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w_IC.astype(np.float32), "w"))
    return open_session(Model(ir.from_proto(proto), "linear"))


def parsed(text: str) -> Session:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    return open_session(Model(ir.from_proto(proto), "parsed"))


def weights(seed: int, noise: float = 0.0) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((FEATURES, CLASSES)) + noise * np.random.default_rng(
        seed
    ).standard_normal((FEATURES, CLASSES))


def data(n: int, seed: int = 0, labelled: bool = True) -> Samples:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n) if labelled else None
    return samples_from_arrays({"x": rng.standard_normal((n, FEATURES)).astype(np.float32)}, labels, "test.npz")


@given(n=st.integers(1, 70), batch=st.sampled_from(["n", 1, 3, 8]), seed=st.integers(0, 5))
def test_scores_are_those_of_the_whole_set_at_once(n: int, batch: int | str, seed: int) -> None:
    samples = data(n, seed)
    w, v = weights(0), weights(1, 0.5)
    x, labels = np.asarray(samples.columns["x"]), samples.labels
    y, z = (x @ w.astype(np.float32)).argmax(1), (x @ v.astype(np.float32)).argmax(1)
    found = evaluate(linear(w, batch), linear(v, batch), samples, Metric("top1"))
    assert [found.original, found.result] == pytest.approx([(y == labels).mean(), (z == labels).mean()])
    assert found.drop == pytest.approx(found.original - found.result)
    assert found.low <= found.drop <= found.high
    assert found.n == n
    assert evaluate(linear(w), linear(v, batch), samples, Metric("agreement")).result == pytest.approx((y == z).mean())


@given(n=st.integers(1, 40), seed=st.integers(0, 5))
def test_noise_is_that_of_the_whole_set_at_once(n: int, seed: int) -> None:
    samples = data(n, seed, labelled=False)
    w, v = weights(0).astype(np.float32), weights(1, 0.1).astype(np.float32)
    x = np.asarray(samples.columns["x"])
    noise, signal = np.square(x @ v - x @ w), np.square(x @ w)
    found = evaluate(linear(w), linear(v), samples, Metric("snr"))
    assert found.snr_db == pytest.approx(-10 * np.log10(noise.sum() / signal.sum()), abs=1e-3)
    assert found.original == 1
    assert found.result == pytest.approx(np.maximum(0, 1 - noise.sum(1) / signal.sum(1)).mean(), abs=1e-5)


def test_one_percent_of_snr_is_twenty_decibels() -> None:
    w = weights(0)
    found = evaluate(linear(w), linear(1.1 * w), data(9, labelled=False), Metric("snr"))
    assert found.snr_db == pytest.approx(20, abs=1e-3)
    assert found.drop == pytest.approx(0.01, abs=1e-5)


def test_equal_models_differ_in_nothing() -> None:
    for metric in ("top1", "agreement", "snr"):
        found = evaluate(linear(weights(0)), linear(weights(0)), data(20), Metric(metric))
        assert (found.drop, found.snr_db) == (0, 200)
        assert found.low <= 0 <= found.high < 0.25


def test_keeping_the_originals_outputs_or_not_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    original, result, samples = linear(weights(0)), linear(weights(1, 0.3)), data(50)
    kept = score(original, samples, Metric("agreement"))
    monkeypatch.setattr(quality, "CACHE_BYTES", 100)
    dropped = score(original, samples, Metric("agreement"))
    assert kept.outputs is not None
    assert dropped.outputs is None
    results = [compare(one, score(result, samples, Metric("agreement"), one)) for one in (kept, dropped)]
    assert results[0] == results[1]


def test_the_original_is_run_once_for_many_candidates() -> None:
    class Counting:
        def __init__(self, session: Session) -> None:
            self.session, self.calls = session, 0

        def run(self, names: None, feeds: dict[str, np.ndarray]) -> Any:
            self.calls += 1
            return self.session.call(names, feeds)

    plain = linear(weights(0))
    counting = Counting(plain)
    original = Session(counting.run, plain.inputs, plain.outputs, 1, "none")
    reference = score(original, data(40), Metric("top1"))
    calls = counting.calls
    for seed in range(3):
        score(linear(weights(seed, 0.2)), data(40), Metric("top1"), reference)
    assert counting.calls == calls


def test_samples_of_different_shapes() -> None:
    text = (
        "g (float[n, t] x) => (float[n, 2] y) { s = ReduceSum<keepdims=1>(x, a) m = Neg(s) y = Concat<axis=1>(s, m) }"
    )
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "a"))
    session = open_session(Model(ir.from_proto(proto), "ragged"))
    rows = [np.full(length, value, np.float32) for length, value in ((3, 1), (5, -1), (5, -2), (2, 1))]
    samples = samples_from_arrays({"x": rows}, np.array([0, 1, 1, 1]))
    found = evaluate(session, session, samples, choose_metric(session, samples))
    assert (found.metric, found.original, found.n) == ("top1", 0.75, 4)


def test_a_model_that_mixes_samples_is_scored_one_by_one() -> None:
    """Dynamic int8 takes its range over the batch; what is scored must be what one sample gives."""
    tail = "q, s, z = DynamicQuantizeLinear(x) d = DequantizeLinear(q, s, z) y = MatMul(d, w)"
    result = linear(weights(0), tail=tail)
    scales = np.geomspace(1e-3, 1, 30)[:, None]
    x = (np.random.default_rng(0).standard_normal((30, FEATURES)) * scales).astype(np.float32)
    samples = samples_from_arrays({"x": x})
    assert batches.batch_size(linear(weights(0)), samples) == batches.LARGEST_BATCH
    assert batches.batch_size(result, samples) == 1
    # in one batch the small samples would vanish: 0 dB; alone each keeps its 8 bits
    assert evaluate(linear(weights(0)), result, samples, Metric("snr")).result > 0.999


def test_a_graph_that_takes_one_sample_whatever_it_says() -> None:
    text = "g (float[n, 6] x) => (float[n, 6] y) { y = Reshape(x, s) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 6]), "s"))
    session = open_session(Model(ir.from_proto(proto), "one"))
    assert evaluate(session, session, data(5), Metric("snr")).n == 5


def test_trailing_axes_of_one_are_dropped() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 4] x) => (float[n, 4, 1, 1] y) { y = Reshape(x, s) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 4, 1, 1]), "s"))
    session = open_session(Model(ir.from_proto(proto), "pooled"))
    samples = samples_from_arrays({"x": np.eye(4, dtype=np.float32)}, np.array([0, 1, 2, 0]))
    assert evaluate(session, session, samples, choose_metric(session, samples)).original == 0.75


# Which metric


def test_metric_follows_labels_and_outputs() -> None:
    assert choose_metric(linear(weights(0)), data(3)).name == "top1"
    assert choose_metric(linear(weights(0)), data(3, labelled=False)).name == "agreement"
    assert choose_metric(linear(weights(0)[:, :1]), data(3, labelled=False)).name == "snr"
    assert choose_metric(linear(weights(0)), data(3), "snr").name == "snr"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 4, 1]), r"label 4; the model has 4 classes, 0 to 3"),
        (np.array([0, -1, 1]), r"label -1; the model has 4 classes"),
        (np.array([0.5, 1, 1]), r"labels are float64 of shape \(3,\); top1 takes whole numbers"),
        (np.eye(4)[:3].astype(int), r"labels are int64 of shape \(3, 4\)"),
    ],
)
def test_labels_that_do_not_suit(labels: np.ndarray, message: str) -> None:
    samples = samples_from_arrays(data(3).columns, labels, "val.npz")
    with pytest.raises(DataError, match=message):
        choose_metric(linear(weights(0)), samples)
    assert choose_metric(linear(weights(0)), samples, "agreement").name == "agreement"


def test_labels_for_a_model_that_does_not_classify() -> None:
    with pytest.raises(DataError, match=r"no output of shape \(batch, classes\); give --metric module:function"):
        choose_metric(linear(weights(0)[:, :1]), data(3))


def test_a_metric_that_does_not_suit() -> None:
    with pytest.raises(DataError, match="top1 needs labels and there are none"):
        choose_metric(linear(weights(0)), data(3, labelled=False), "top1")
    with pytest.raises(OptionError, match="agreement needs an output of shape"):
        choose_metric(linear(weights(0)[:, :1]), data(3), "agreement")
    with pytest.raises(OptionError, match="'top-1' is unknown; did you mean top1"):
        choose_metric(linear(weights(0)), data(3), "top-1")


# A person's own


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    lines = [
        "def positive(outputs, labels): return outputs['y'][:, 0] > 0",
        "def wrong(outputs, labels): return outputs['y']",
        "def broken(outputs, labels): return outputs['z']",
        "constant = 3",
    ]
    (tmp_path / "own_metric_of_test.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return "own_metric_of_test"


def test_own_function(own: str) -> None:
    samples = data(40)
    metric = choose_metric(linear(weights(0)), samples, f"{own}:positive")
    found = evaluate(linear(weights(0)), linear(-weights(0)), samples, metric)
    share = ((np.asarray(samples.columns["x"]) @ weights(0))[:, 0] > 0).mean()
    assert [found.original, found.result] == pytest.approx([share, 1 - share])
    assert found.metric == f"{own}:positive"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", r"returned shape \(8, 4\); it must return one finite number a sample, shape \(8,\)"),
        ("broken", "raised KeyError: 'z'"),
        ("absent", "has no attribute 'absent'; write module:function"),
        ("constant", "it is a int; it must be a function"),
    ],
)
def test_own_function_that_does_not_work(own: str, name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        score(linear(weights(0)), data(8), choose_metric(linear(weights(0)), data(8), f"{own}:{name}"))


def test_own_module_that_does_not_exist() -> None:
    with pytest.raises(OptionError, match="No module named 'nowhere_to_be_found'"):
        choose_metric(linear(weights(0)), data(8), "nowhere_to_be_found:f")


# What goes wrong


def test_nan_names_the_output_and_the_samples() -> None:
    x = np.ones((40, 2), np.float32)
    x[35] = -1
    samples = samples_from_arrays({"x": x})
    bad = parsed("g (float[n, 2] x) => (float[n, 2] y) { y = Sqrt(x) }")
    good = parsed("g (float[n, 2] x) => (float[n, 2] y) { y = Abs(x) }")
    with pytest.raises(CandidateError, match="output 'y' of the result holds NaN on samples 32 to 39"):
        evaluate(good, bad, samples, Metric("snr"))
    with pytest.raises(ModelError, match="output 'y' of the model holds NaN on samples 32 to 39"):
        evaluate(bad, good, samples, Metric("snr"))


def test_equal_infinities_are_no_noise() -> None:
    session = parsed("g (float[n, 2] x) => (float[n, 2] y) { y = Log(x) }")
    samples = samples_from_arrays({"x": np.array([[0, 2], [3, 4]], np.float32)})
    assert evaluate(session, session, samples, Metric("snr")).snr_db == 200


def test_an_output_less() -> None:
    one = parsed("g (float[n, 2] x) => (float[n, 2] y) { y = Abs(x) }")
    other = parsed("g (float[n, 2] x) => (float[n, 2] z) { z = Abs(x) }")
    samples = samples_from_arrays({"x": np.ones((3, 2), np.float32)})
    with pytest.raises(CandidateError, match="the result has no output 'y'"):
        evaluate(one, other, samples, Metric("snr"))


def test_no_samples() -> None:
    with pytest.raises(DataError, match=r"test.npz: there are no samples"):
        choose_metric(linear(weights(0)), data(5).take(np.arange(0)))
    with pytest.raises(DataError, match=r"test.npz: no samples to score"):
        score(linear(weights(0)), data(5).take(np.arange(0)), Metric("top1"))


# Preprocessing


def test_wrong_preprocessing_is_noticed() -> None:
    w = 20 * np.eye(CLASSES)
    labels = np.arange(200) % CLASSES
    right = samples_from_arrays({"x": np.eye(CLASSES, dtype=np.float32)[labels]}, labels)
    wrong = samples_from_arrays({"x": np.eye(CLASSES, dtype=np.float32)[labels[::-1]]}, labels)
    assert preprocessing_warning(score(linear(w), right, Metric("top1"))) is None
    warning = preprocessing_warning(score(linear(w), wrong, Metric("top1")))
    assert warning is not None
    assert "right on only 0 of 200 samples, with a mean confidence of 100%" in warning
    assert "--mean, --std, --scale, --layout and --channels" in warning


def test_few_samples_and_other_metrics_give_no_warning() -> None:
    w = 20 * np.eye(CLASSES)
    one = samples_from_arrays({"x": np.eye(CLASSES, dtype=np.float32)[:1]}, np.array([1]))
    assert preprocessing_warning(score(linear(w), one, Metric("top1"))) is None
    assert preprocessing_warning(score(linear(w), one, Metric("agreement"))) is None
