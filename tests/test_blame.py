"""Blame on nets in which the culprit is known: one tensor whose channels differ a thousandfold."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from tests.passes.graphs import make, normal

from gossamer import blame as module
from gossamer.blame import Timed, blame
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.planning.guard import culprits
from gossamer.runtimes import onnxruntime

CHANNELS, LAYERS, LOUD = 8, 6, 3
INT8 = Plan("int8", (Step("fold_constants"), Step("quantize_static"), Step("correct_bias")))
TIMED = Timed(onnxruntime, 1, {"x": normal(1, CHANNELS, 9, 9, seed=3)})


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RACE_S", 0.2)


def chain(loud: float) -> Model:
    """Convolutions in a row. Channel 0 behind convolution 3 is `loud` times as loud, and read as much fainter."""
    nodes, weights, x = [], {}, "x"
    for at in range(LAYERS):
        w = normal(CHANNELS, CHANNELS, 3, 3, seed=at) / 8
        w[0] *= loud if at == LOUD else 1
        w[:, 0] /= loud if at == LOUD + 1 else 1
        weights[f"w{at}"] = w
        y = "y" if at == LAYERS - 1 else f"c{at}"
        nodes.append(helper.make_node("Conv", [x, f"w{at}"], [y], name=f"conv{at}", pads=[1, 1, 1, 1]))
        x = y
    return make(nodes, ("n", CHANNELS, 9, 9), weights)


def evidence() -> Evidence:
    return Evidence(samples_from_arrays({"x": normal(16, CHANNELS, 9, 9, seed=1)}))


def test_every_integer_layer_is_listed_in_order_and_the_culprit_leads() -> None:
    blames = blame(INT8, chain(1000.0), evidence(), TIMED, {})
    assert [one.node for one in blames] == [f"conv{at}" for at in range(LAYERS)]
    assert [one.position for one in blames] == sorted(one.position for one in blames)
    worst = max(blames, key=lambda one: one.added_ratio)
    assert worst.node == f"conv{LOUD + 1}"  # it reads the tensor that 8 bits cannot hold
    assert worst.restored_with == (f"conv{LOUD}",)  # which stays rounded as long as one of the two is left
    assert worst.restored_db is not None and worst.restored_db > 10
    assert worst.restored_latency_ratio is not None and worst.restored_latency_ratio > 0.5
    # what little there is to gain for nothing may come before
    assert {f"conv{LOUD}", f"conv{LOUD + 1}"} in [set(move) for move in culprits(blames)[:2]]


def test_only_the_suspects_are_restored() -> None:
    blames = blame(INT8, chain(1000.0), evidence(), TIMED, {}, suspects=2)
    assert sum(one.restored_db is not None for one in blames) == 2


def test_at_least_one_suspect_is_restored_however_short_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_affordable", lambda *_: (8, 6))
    blames = blame(INT8, chain(1000.0), evidence(), TIMED, {}, budget_s=1e-9)
    assert len(blames) == LAYERS
    assert [one.restored_latency_ratio is not None for one in blames].count(True) == 1


def test_nothing_is_to_blame_where_nothing_is_quantized() -> None:
    plan = Plan("float", (Step("fold_constants"),))
    assert blame(plan, chain(1.0), evidence(), TIMED, {}) == ()


def test_dynamic_and_weight_only_steps_have_layers_to_blame_too() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
    ]
    net = make(nodes, ("n", 64), {"a": normal(64, 64), "b": normal(64, 32, seed=2)})
    samples = Evidence(samples_from_arrays({"x": normal(16, 64, seed=5)}))
    timed = Timed(onnxruntime, 1, {"x": np.zeros((1, 64), np.float32)})
    for step in (Step("quantize_dynamic"), Step("constrain_weights", {"solver": "nearest", "form": "dequantize"})):
        assert {one.node for one in blame(Plan("p", (step,)), net, samples, timed, {})} == {
            "first",
            "second",
        }
