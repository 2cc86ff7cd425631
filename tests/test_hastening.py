from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.integers import WEIGHT_BITS
from tests.planning.graphs import parse

from gossamer.constraints.contract import as_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.errors import OptionError
from gossamer.hastening import Measured, Table, hasten, time_layers
from gossamer.measuring import prices
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.latency import Timing
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run_plan
from gossamer.planning import priced, ways
from gossamer.planning.priced import Place, Priced
from gossamer.planning.ways import Way
from gossamer.runtimes import onnxruntime

BASE = Plan("int8", (Step("fold_constants"), Step("quantize_static", {"ranges": "l2"}), Step("correct_bias")))
WAYS = (Way(), Way(None, True), Way(LowRank(4), True), Way(Grid(8, granularity=32)))
FULL_MS = 10.0
NOISE, TIME = np.array([0, 1e-4, 1e-2, 1e-5]), np.array([1, 0.3, 0.2, 0.7])  # of the ways


def table(layers: int = 5, other_ms: float = 1.0) -> Table:
    each = (FULL_MS - other_ms) / layers
    every = [
        Priced(f"w{at}", (f"n{at}",), WAYS, (1 + at) * NOISE, each * TIME)
        for at in range(layers)
    ]  # fmt: skip
    return Table(tuple(every), BASE, FULL_MS)


def way_of(plan: Plan, node: str) -> Way:
    """What a plan makes of it."""
    quantized = any(s.method == "quantize_static" and node not in s.scope.skip for s in plan.steps)
    for step in plan.steps:
        if step.method == "constrain_weights" and node in step.scope.only:
            return next(way for way in WAYS if way.constraint and as_text(way.constraint) == step.config["constraint"])
    return Way(None, quantized)


def runtime(
    found: Table, overhead_ms: float = 0.0, most_noise: float = 1.0
) -> tuple[list[tuple[float, bool]], Callable[[Plan], Measured]]:
    """Measures what was promised and a constant on top; the floor holds up to some noise."""
    seen: list[tuple[float, bool]] = []

    def attempt(plan: Plan) -> Measured:
        places = [one.ways.index(way_of(plan, one.nodes[0])) for one in found.priced]
        chosen = list(zip(found.priced, places, strict=True))
        real_ms = found.other_ms + overhead_ms + sum(float(one.ms_W[at]) for one, at in chosen)
        seen.append((real_ms, sum(float(one.noise_W[at]) for one, at in chosen) <= most_noise))
        return Measured(real_ms / FULL_MS, seen[-1][1])

    return seen, attempt


@pytest.mark.parametrize("overhead_ms", [0.0, 0.4, 1.5])
def test_the_last_plan_is_within_the_limit_as_measured(overhead_ms: float) -> None:
    found = table()
    seen, attempt = runtime(found, overhead_ms)
    hasten(found, 6.0, FULL_MS, False, attempt)
    assert seen[-1][0] <= 6.0
    assert len(seen) == (1 if overhead_ms == 0 else 2)
    assert all(real_ms > 6.0 for real_ms, _ in seen[:-1])


def test_room_below_the_limit_is_spent_where_the_floor_is_missed() -> None:
    found = table()
    seen, attempt = runtime(found, overhead_ms=-2.0, most_noise=3e-4)
    hasten(found, 5.0, FULL_MS, False, attempt)
    assert len(seen) > 1 and seen[0][0] < seen[-1][0] <= 5.0


@pytest.mark.parametrize("overhead_ms", [0.0, 0.6])
def test_the_fastest_that_keeps_the_floor_is_looked_for_below_the_best_so_far(overhead_ms: float) -> None:
    found = table()
    seen, attempt = runtime(found, overhead_ms, most_noise=0.04)
    bytes_alone = found.other_ms + overhead_ms + 0.3 * (FULL_MS - 1.0)  # as fast as integers are without low rank
    hasten(found, None, bytes_alone, True, attempt)
    assert min(real_ms for real_ms, held in seen if held) < bytes_alone
    assert not all(held for _, held in seen) and len(seen) <= 6


def test_nothing_is_tried_where_the_best_so_far_is_as_fast_as_it_gets() -> None:
    found = table()
    seen, attempt = runtime(found)
    hasten(found, None, found.least_ms, True, attempt)
    assert not seen


def test_a_limit_out_of_reach_says_what_can_be_reached() -> None:
    with pytest.raises(OptionError, match=r"1 ms cannot be reached: the smallest is 2\.8 ms, at a predicted loss of"):
        hasten(table(), 1.0, FULL_MS, False, lambda plan: None)


def test_a_plan_that_fails_ends_the_search() -> None:
    seen: list[Plan] = []
    hasten(table(), 6.0, FULL_MS, True, seen.append)
    assert len(seen) == 1


def test_factors_come_before_the_quantizers_and_what_stays_in_float_behind_them() -> None:
    every = tuple(Priced(f"w{at}", (f"n[{at}]",), (WAYS[at],), np.zeros(1), np.ones(1)) for at in range(len(WAYS)))
    plan = Table(every, BASE, FULL_MS).within(20.0).plan
    assert [step.method for step in plan.steps] == [
        "fold_constants", "constrain_weights", "quantize_static", "constrain_weights", "correct_bias",
    ]  # fmt: skip
    assert plan.steps[1].scope == Scope(only=("n[[]2]",)) and plan.steps[3].scope == Scope(only=("n[[]3]",))
    assert plan.steps[2].scope == Scope(skip=("n[[]0]", "n[[]3]")) and plan.steps[2].config == {"ranges": "l2"}


def test_without_integers_nothing_is_quantized() -> None:
    every = tuple(Priced(f"w{at}", (f"n{at}",), (WAYS[at],), np.zeros(1), np.ones(1)) for at in (0, 3))
    plan = Table(every, BASE, FULL_MS).within(20.0).plan
    assert [step.method for step in plan.steps] == ["fold_constants", "constrain_weights"]


def test_layers_of_a_real_network_are_timed_and_its_plans_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    monkeypatch.setattr(prices, "TIMING", Timing(rounds=1, budget_s=0.01))
    monkeypatch.setattr(priced, "CLEARLY", 1e9)  # whatever the clock says
    monkeypatch.setattr(ways, "GROUPS", (32,))
    monkeypatch.setattr(ways, "RANKS", (1 / 4, 1 / 2))
    random = np.random.default_rng(0)
    model = parse(
        "test (float[N,64] x) => (float[N,48] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }",
        a=(64, 48),
        b=(48, 48),
    )
    for value in model.ir.graph.initializers.values():
        value.const_value = ir.tensor(
            random.normal(size=np.asarray(value.const_value).shape).astype(np.float32), name=value.name
        )
    x = random.normal(size=(64, 64)).astype(np.float32)
    evidence = Evidence(samples_from_arrays({"x": x}))
    base = Plan("int8", (Step("fold_constants"), Step("quantize_static", {"weight_bits": WEIGHT_BITS})))
    found = time_layers(model, evidence, {}, Place(onnxruntime, 1, {"x": x[:1]}), base, 1.0)
    assert [one.nodes for one in found.priced] == [("node_h",), ("node_y",)]
    for one in found.priced:
        noise = dict(zip(map(str, one.ways), one.noise_W, strict=True))
        assert noise["float"] == 0 < noise["int8"] < noise["low_rank:24"] < noise["low_rank:12"]
        assert noise["low_rank:24"] < noise["low_rank:24 in int8"] and (one.ms_W > 0).all()
    for way in found.priced[0].ways:
        one_way = tuple(only(one, way) for one in found.priced)
        applied = run_plan(replace(found, priced=one_way).within(1e9).plan, model, evidence)
        assert applied.modified == any(one.ways != (Way(),) for one in one_way)
        y, real = (onnxruntime.open_session(net).run({"x": x})[0] for net in (model, applied.model))
        predicted = sum(float(one.noise_W[0]) for one in one_way)
        # grids are predicted without solving for them
        assert predicted / 8 - 1e-9 < np.square(real - y).mean() / np.square(y).mean() < 4 * predicted + 1e-9


def only(one: Priced, way: Way) -> Priced:
    """A weight that has no choice; in float if it cannot be computed this way."""
    at = one.ways.index(way) if way in one.ways else 0
    return one._replace(ways=(one.ways[at],), noise_W=one.noise_W[[at]], ms_W=one.ms_W[[at]])
