"""Any constraint, either solver: the file computes with what was solved for, and says what it cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.graph.layers_with_weights import NAMES, an_input, layers, matrix_of, uses_in, with_numbers
from tests.passes.graphs import applied, array_of, parse, run

from gossamer.archive.pack import pack
from gossamer.arith.forms import floats_of, stored_bits
from gossamer.constraints.contract import as_text, constraint_from_text
from gossamer.errors import CandidateError, DataError, OptionError
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.nouns.prediction import Prediction
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes import constrain_weights, contract
from gossamer.passes.constrain_weights import Config
from gossamer.solvers import nearest

LAYERS = layers()
TEXTS = (
    "grid:8", "grid:16", "grid:5", "grid:4:asymmetric", "grid:3:group=4", "grid:2", "grid:6:tensor",
    "sparse:0.6", "sparse:2:4", "sparse:0.5+grid:4", "sparse:0.5+codebook:8",
    "codebook:4", "codebook:20", "codebook:3:channel", "codebook:30:dimension=2",
    "low_rank:3", "low_rank:0.6", "low_rank:3+grid:8", "low_rank:4:tucker", "low_rank:4:cp",
)  # fmt: skip
SMALLER = [text for text in TEXTS if not text.startswith("sparse") or "+" in text]


def constrained(
    model: Model, text: str, evidence: Evidence | None = None, scope: Scope | None = None, **config: Any
) -> contract.Result:
    return applied(Step("constrain_weights", {"constraint": text, **config}, scope or Scope()), model, evidence)


def net(depth: int = 3, width: int = 24, seed: int = 3, samples: int = 64) -> tuple[Model, Evidence]:
    """Products with activations between them, and inputs that are far from white, as in a network."""
    rng = np.random.default_rng(seed)
    lines = "".join(f"  a{i} = MatMul(x{i}, w{i})  x{i + 1} = Relu(a{i})" for i in range(depth))
    text = f"test (float[N,{width}] x0) => (float[N,{width}] y) {{ {lines}  y = MatMul(x{depth}, v) }}"
    weights: dict[str, Any] = {f"w{i}": (width, width) for i in range(depth)}
    mixing = rng.normal(size=(width, width)) @ np.diag(np.logspace(0, -1.5, width)) @ rng.normal(size=(width, width))
    rows = [(rng.normal(size=width) @ mixing).astype(np.float32) for _ in range(samples)]
    return parse(text, **weights, v=(width, width)), Evidence(samples_from_arrays({"x0": rows}), 1)


def error_of(model: Model, result: Model, evidence: Evidence) -> float:
    feeds = next(evidence.samples.batches(len(evidence.samples))).feeds
    (wanted, *_), (got, *_) = run(model, x0=feeds["x0"]), run(result, x0=feeds["x0"])
    return float(np.square(wanted - got).sum() / np.square(wanted).sum())


# --- the file


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_the_file_computes_with_the_nearest_floats(name: str, text: str) -> None:
    model, constraint = LAYERS[name], constraint_from_text(text)
    result = constrained(model, text, solver="nearest", form="cast" if "grid" in text else "fastest")
    taken = {each.weight for each in result.predicted}
    numbers, bits = {}, 0
    for weight, (use, *_) in uses_in(model).items():
        if weight.name in taken:
            form = nearest.solve(matrix_of(use), constraint, None, use.k_shape).form
            numbers[weight.name], bits = floats_of(form), bits + stored_bits(form)
    assert result.modified is bool(taken) and len(taken) + len(result.notes) >= 1
    x = an_input(model)
    (wanted, *_), (got, *_) = run(with_numbers(model, numbers), x=x), run(result.model, x=x)
    assert got.shape == wanted.shape and np.allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    if taken and text in SMALLER:
        kept = model.weight_bytes() - 4 * sum(real.size for real in numbers.values())
        assert result.model.weight_bytes() < model.weight_bytes()
        # these weights are too small for bit planes: 5 bits take 8
        assert result.model.weight_bytes() - kept <= 2.2 * bits / 8 + 150


@pytest.mark.parametrize(
    "text", ["grid:2", "grid:3", "grid:5", "grid:6", "grid:7", "codebook:8", "codebook:32", "codebook:100"]
)
@pytest.mark.parametrize("operator", ["MatMul", "Conv", "Gather"])
def test_odd_bits_are_packed(operator: str, text: str) -> None:
    """Weights that are large enough for it take the very bits they need, and 2 % for scales and shapes."""
    texts = {
        "MatMul": "test (float[M,400] x) => (float[M,160] y) { y = MatMul(x, w) }",
        "Conv": "test (float[1,100,6,6] x) => (float[1,160,5,5] y) { y = Conv(x, w) }",
        "Gather": "test (int64[N] x) => (float[N,160] y) { y = Gather(w, x) }",
    }
    shape = {"MatMul": (400, 160), "Conv": (160, 100, 2, 2), "Gather": (400, 160)}[operator]
    model = parse(texts[operator], w=shape)
    result = constrained(model, text, solver="nearest", form="cast").model
    (prediction,) = constrained(model, text, solver="nearest", form="cast").predicted
    assert prediction.stored_bytes <= result.weight_bytes() < 1.02 * prediction.stored_bytes + 300
    assert len(to_bytes(result)) < 1.02 * prediction.stored_bytes + 2500


@given(st.sampled_from(["grid:4", "codebook:16", "low_rank:6", "sparse:0.5"]))
def test_the_same_bytes_twice_and_the_input_untouched(text: str) -> None:
    model, evidence = net()
    before = to_bytes(model)
    once, again = (to_bytes(constrained(model, text, evidence).model) for _ in range(2))
    assert once == again and to_bytes(model) == before


# --- the solvers


@pytest.mark.parametrize(
    "text", ["grid:3", "grid:4", "sparse:0.6", "sparse:2:4", "codebook:8", "low_rank:8", "sparse:0.5+grid:4"]
)
def test_second_order_loses_less(text: str) -> None:
    model, evidence = net()
    wish = "cast" if "grid" in text else "fastest"
    plain = constrained(model, text, evidence, solver="nearest", form=wish)
    second = constrained(model, text, evidence, form=wish)
    sequential = constrained(model, text, evidence, form=wish, sequential=True)
    assert all(each.loss <= each.nearest_loss for each in second.predicted)
    assert sum(each.loss for each in second.predicted) < sum(each.nearest_loss for each in second.predicted)
    errors = [error_of(model, each.model, evidence) for each in (plain, second, sequential)]
    assert errors[1] < 0.8 * errors[0] and errors[2] < errors[0]
    assert to_bytes(sequential.model) != to_bytes(second.model)


@pytest.mark.parametrize("text", ["grid:3", "sparse:0.6"])
def test_sequential_makes_up_for_errors_in_front(text: str) -> None:
    """On samples that were not seen, in all but a few of the networks, and clearly in the mean."""
    ratios = []
    for seed in range(8):
        model, every = net(4, 16, seed, 640)
        seen, fresh = (Evidence(every.samples.take(np.arange(*part)), 1) for part in ((0, 320), (320, 640)))
        wish = "cast" if "grid" in text else "fastest"
        once, in_order = (constrained(model, text, seen, form=wish, sequential=way) for way in (False, True))
        ratios.append(error_of(model, in_order.model, fresh) / error_of(model, once.model, fresh))
        assert all(0 <= each.loss <= each.nearest_loss < each.zero_loss for each in in_order.predicted)
    assert sum(ratio < 1 for ratio in ratios) >= 7 and np.mean(ratios) < 0.85


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 9])
def test_sequential_takes_few_samples_and_dead_inputs(samples: int) -> None:
    model, evidence = net(samples=samples)
    dead = np.zeros((samples, 24), np.float32)
    dead[:, :3] = np.random.default_rng(6).normal(size=(samples, 3))
    for some in (evidence, Evidence(samples_from_arrays({"x0": dead}), 1)):
        once, in_order = (constrained(model, "grid:3", some, sequential=way, form="cast") for way in (False, True))
        assert error_of(model, in_order.model, some) < 4 * error_of(model, once.model, some)


def test_sequential_in_several_steps_still_aims_at_the_float_network() -> None:
    """What the first step did to the layers in front is made up for by the second, unless that cannot be known."""
    model, every = net(4, 16, 1, 640)
    seen, fresh = (Evidence(every.samples.take(np.arange(*part)), 1) for part in ((0, 320), (320, 640)))
    first = constrained(model, "grid:3", seen, Scope(only=("node_a0", "node_a2")), form="cast")
    assert first.model.reference is not None
    errors = [
        error_of(model, constrained(start, "grid:8", seen, form="cast", sequential=True).model, fresh)
        for start in (first.model, replace(first.model, reference=None))
    ]
    assert errors[0] < 0.8 * errors[1]
    others = with_numbers(model, {"w1": 2 * array_of(model, "w1")})
    elsewhere, alone = (replace(first.model, reference=other) for other in (others, None))
    known, unknown = (constrained(each, "grid:8", seen, form="cast", sequential=True) for each in (elsewhere, alone))
    assert to_bytes(known.model) == to_bytes(unknown.model)


def test_layers_of_different_constraints_are_solved_in_the_order_in_which_they_act() -> None:
    """One sequential step for both constraints, beside one step for each, the deeper layers first."""
    ratios = []
    for seed in range(6):
        model, every = net(4, 16, seed, 640)
        seen, fresh = (Evidence(every.samples.take(np.arange(*part)), 1) for part in ((0, 320), (320, 640)))
        together = constrained(model, "grid:3", seen, by_layer={"node_a[01]": "sparse:2:4"}, sequential=True)
        apart = model
        for text, only in (("grid:3", ("node_a2", "node_a3", "node_y")), ("sparse:2:4", ("node_a[01]",))):
            apart = constrained(apart, text, seen, Scope(only=only), sequential=True).model
        texts = {each.layer: each.constraint for each in together.predicted}
        assert [texts[f"node_a{at}"] for at in range(4)] == ["sparse:2:4", "sparse:2:4", "grid:3", "grid:3"]
        ratios.append(error_of(model, together.model, fresh) / error_of(model, apart, fresh))
    assert np.median(ratios) < 0.9


@given(st.permutations(["grid:4", "codebook:8", "sparse:2:4", "sparse:0.5+grid:5"]))
def test_one_step_is_the_steps_of_each_constraint_together(texts: list[str]) -> None:
    model, _ = net()
    by_layer = dict(zip(("node_a0", "node_a1", "node_a2"), texts[1:], strict=True))
    one = constrained(model, texts[0], by_layer=by_layer, solver="nearest", form="cast").model
    each = constrained(model, texts[0], None, Scope(only=("node_y",)), solver="nearest", form="cast").model
    for node, text in by_layer.items():
        each = constrained(each, text, None, Scope(only=(node,)), solver="nearest", form="cast").model
    x = np.random.default_rng(8).normal(size=(5, 24)).astype(np.float32)
    np.testing.assert_array_equal(run(one, x0=x)[0], run(each, x0=x)[0])


@pytest.mark.parametrize(("text", "sequential"), [("grid:6", False), ("grid:6", True), ("codebook:32", False)])
def test_a_rate_trades_loss_for_bits_of_an_archive(text: str, sequential: bool) -> None:
    model, evidence = net(2, 32, samples=320)
    found = [
        constrained(model, text + rate, evidence, sequential=sequential, form="cast" if "grid" in text else "fastest")
        for rate in ("", ":rate=1e-5", ":rate=4e-5")
    ]
    sizes = [len(pack(to_bytes(one.model)).data) for one in found]
    losses = [sum(each.loss / each.zero_loss for each in one.predicted) for one in found]
    assert sizes[0] > sizes[1] > sizes[2] and losses[0] < losses[1] < losses[2] < 0.3


def test_what_takes_no_rate_says_so() -> None:
    model, evidence = net(1)
    with pytest.raises(OptionError, match="is no option of low_rank"):
        constrained(model, "low_rank:4:rate=1e-6", evidence)
    with pytest.raises(OptionError, match="the solver nearest knows no loss to weigh bits against"):
        constrained(model, "grid:4:rate=1e-6", evidence, solver="nearest")


def test_names_in_by_layer_are_checked_and_count_before_patterns() -> None:
    model, _ = net()
    result = constrained(model, "grid:8", by_layer={"node_*": "grid:6", "node_a1": "grid:4"}, form="cast")
    assert [each.constraint for each in result.predicted] == ["grid:6", "grid:4", "grid:6", "grid:6"]
    with pytest.raises(OptionError, match="by_layer 'node_b1' matches no node of test; did you mean node_"):
        constrained(model, "grid:8", by_layer={"node_b1": "grid:4"})
    with pytest.raises(OptionError, match="grid"):
        constrained(model, "grid:8", by_layer={"node_a1": "grit:4"})
    with pytest.raises(OptionError, match="cannot put node 'node_a1' into codebook:1000"):
        constrained(model, "grid:8", by_layer={"node_a1": "codebook:1000"})


def test_a_weight_of_two_layers_cannot_be_two_things() -> None:
    model = parse("test (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w)  y = MatMul(a, w) }", w=(8, 8))
    result = constrained(model, "grid:8", by_layer={"node_[a]": "grid:4"}, form="cast")
    assert not result.modified
    assert "its weight w would have to be grid:4 and grid:8 at once" in result.notes[0]


def test_predictions_are_of_the_objective_and_travel_with_the_plan() -> None:
    model, evidence = net(1)
    steps = tuple(
        Step("constrain_weights", {"constraint": "grid:4"}, Scope(only=(name,))) for name in ("node_a0", "node_y")
    )
    done = contract.run_plan(Plan("two", steps), model, evidence)
    assert [each.layer for each in done.predicted] == ["node_a0", "node_y"]
    first = done.predicted[0]
    assert (first.weight, first.constraint, first.source, first.reason) == ("w0", "grid:4", "samples", "")
    assert 0 < first.loss < first.nearest_loss < first.zero_loss
    assert first.stored_bytes == 24 * 24 // 2 + 4 * 24
    x_NK = next(evidence.samples.batches(64)).feeds["x0"]
    energy = float(np.square(x_NK @ array_of(model, "w0")).sum(axis=1).mean())
    assert first.zero_loss == pytest.approx(energy, rel=1e-4)


def test_without_samples_and_without_usable_ones() -> None:
    model, evidence = net(1)
    alone = constrained(model, "grid:4")
    assert [each.source for each in alone.predicted] == ["noise", "noise"]
    assert alone.notes == ("constrain_weights: second moments from noise, not from samples",)
    zeros = Evidence(samples_from_arrays({"x0": [np.zeros(24, np.float32)] * 9}), 1)
    dead = constrained(model, "grid:4", zeros)
    assert dead.modified
    assert any(
        note.startswith("constrain_weights took the nearest for node_a0") and "zero in every" in note
        for note in dead.notes
    )
    bad = Evidence(samples_from_arrays({"x0": [np.full(24, np.nan, np.float32)] * 9}), 1)
    with pytest.raises(DataError, match="NaN, infinite or too large"):
        constrained(model, "grid:4", bad)
    few = Evidence(evidence.samples.take(np.arange(3)), 1)
    assert any("moments of only 3 samples" in note for note in constrained(model, "grid:4", few).notes)
    assert not any("only" in note for note in constrained(model, "grid:4", evidence).notes)


def test_a_table_that_is_also_read_as_a_matrix_the_other_way_round() -> None:
    text = """test (int64[N,5] rows) => (float[N,5,64] y) {
        a = Gather(table, rows)  b = MatMul(a, wide)  y = MatMul(b, table) }"""
    model = parse(text, table=(80, 64), wide=(64, 80))
    samples = samples_from_arrays({"rows": [np.random.default_rng(i).integers(0, 80, 5) for i in range(12)]})
    result = constrained(model, "grid:8", Evidence(samples, 1), form="cast")
    assert {each.weight: each.reason for each in result.predicted}["wide"] == ""
    assert "there are no moments" in {each.weight: each.reason for each in result.predicted}["table"]
    assert sum("took the nearest" in note for note in result.notes) == 1


# --- shared and sparse


def test_shared_weights_are_one() -> None:
    model, evidence = net(3)
    result = constrained(model, "shared", evidence, Scope(only=("node_a*",)))
    assert set(result.model.ir.graph.initializers) == {"w0", "v"}
    assert result.model.weight_bytes() == 2 * 4 * 24 * 24
    assert sum(each.loss for each in result.predicted) < sum(each.nearest_loss for each in result.predicted)
    plain = constrained(model, "shared", evidence, Scope(only=("node_a*",)), solver="nearest")
    (mean,) = (array for name, array in numbers(plain.model).items() if name != "v")
    assert np.allclose(mean, np.mean([array_of(model, f"w{i}") for i in range(3)], axis=0), atol=1e-6)
    with pytest.raises(
        OptionError, match=r"'node_y' into shared: no other weight in the scope has its shape \(24, 24\)"
    ):
        constrained(model, "shared", None, Scope(only=("node_y",)))


def numbers(model: Model) -> dict[str, np.ndarray]:
    return {name: array_of(model, name) for name in model.ir.graph.initializers}


def test_sparse_weights_have_zeros_and_say_so() -> None:
    model, evidence = net(1)
    result = constrained(model, "sparse:2:4", evidence)
    assert any("zeros bring no speed on this runtime" in note for note in result.notes)
    proto = onnx.load_from_string(to_bytes(result.model))
    assert len(proto.graph.initializer) == 2
    for tensor in proto.graph.initializer:
        w_NK = onnx.numpy_helper.to_array(tensor).T
        assert (np.count_nonzero(w_NK.reshape(-1, 4), axis=1) <= 2).all()
        assert [(each.key, each.value[:3]) for each in tensor.metadata_props] == [("gossamer.sparsity", "2:4")]


# --- refusals


@pytest.mark.parametrize(
    ("name", "text", "config", "reason"),
    [
        ("conv", "sparse:2:5", {}, "its rows of 108 weights are not a multiple of 5"),
        ("conv", "grid:4:group=5", {}, "its rows of 108 weights are not a multiple of the group 5"),
        ("grouped", "low_rank:3:tucker", {}, "tucker takes apart kernels of one group, not of 2"),
        ("product", "low_rank:3:cp", {}, "cp takes apart kernels of more than one position"),
        ("recurrent", "low_rank:3", {}, "a recurrent layer's weights cannot be taken apart"),
        ("product", "codebook:256:channel", {}, "indices and tables take .* bytes, the floats 6144"),
        ("product", "codebook:16", {"form": "dequantize"}, "the form dequantize is one of grids; use form fastest"),
        ("conv", "grid:4", {"form": "matmulnbits"}, "MatMulNBits is no convolution; use form cast"),
        ("product", "grid:16", {"form": "matmulnbits"}, "MatMulNBits takes up to 8 bits, not 16; use form cast"),
        (
            "transposed grouped",
            "grid:8",
            {"form": "dequantize"},
            "scales along one axis, which its weight does not have",
        ),
        ("grouped", "shared", {}, "a grouped convolution's weight cannot be stacked"),
    ],
)
def test_what_cannot_apply(name: str, text: str, config: dict[str, Any], reason: str) -> None:
    """Asked for by name it is an error; else the layer stays as it is with one note."""
    model = LAYERS[name]
    (node,) = (node.name for node in model.ir.graph)
    wanted = f"constrain_weights cannot put node '{node}' into {text}: .*{reason}"
    with pytest.raises(OptionError, match=wanted.replace("+", r"\+")):
        constrained(model, text, None, Scope(only=(node or "",)), **config)
    result = constrained(model, text, **config)
    assert not result.modified and result.model is model
    assert result.notes[0].startswith(f"constrain_weights left {node} as it was: ") and len(result.notes) == 2


def test_a_rank_that_does_not_pay_keeps_the_layer_whole() -> None:
    model, evidence = net(1)
    result = constrained(model, "low_rank:20", evidence)
    assert not result.modified
    assert "node_a0 as it was: at rank 20 its factors have 960 weights, and it has 576; kept whole" in result.notes[0]


def test_a_broken_promise_is_noticed() -> None:
    model, evidence = net(1)
    result = constrained(model, "sparse:0.5", evidence)
    with pytest.raises(CandidateError, match=r"w0 is not sparse:0\.9, as promised"):
        constrain_weights.ensures(model, result, Config("sparse:0.9"))
    with pytest.raises(CandidateError, match="codebook:4 saved nothing"):
        constrain_weights.ensures(model, result, Config("codebook:4"))


def test_prediction_round_trip() -> None:
    prediction = Prediction("a", "w", as_text(constraint_from_text("grid:4")), 1.0, 2.0, 3.0, 4)
    assert msgspec.json.decode(msgspec.json.encode(prediction), type=Prediction) == prediction
