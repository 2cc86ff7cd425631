"""Shrinking: limits, attempts and what becomes of a limit that cannot be reached."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from tests.packaged import demo_in
from tests.passes.graphs import make, normal
from tests.quick import first_round_only, time_little

import gossamer
from gossamer import shrinking
from gossamer.archive.pack import pack
from gossamer.archive.unpacking import read_archive
from gossamer.errors import OptionError
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Plan
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run_plan
from gossamer.planning import rate_ladder
from gossamer.planning.limits import Attempt
from gossamer.shrinking import MOST_TRAINED, Ledger, shrink, train_smaller, weigh, weigh_archives


def net() -> Model:
    """Three products, of which the middle one is loudest."""
    nodes, x = [], "x"
    for at in range(3):
        y = "y" if at == 2 else f"a{at}"
        nodes.append(helper.make_node("MatMul", [x, f"w{at}"], [y], name=f"product{at}"))
        x = y
    return make(nodes, ("n", 64), {f"w{at}": normal(64, 64, seed=at) for at in range(3)})


@pytest.fixture(scope="module")
def found() -> Ledger:
    return weigh(net(), evidence(), {}, 60.0)


def evidence() -> Evidence:
    return Evidence(samples_from_arrays({"x": normal(64, 64, seed=9)}))


def size_of(plan: Plan) -> int:
    return len(to_bytes(run_plan(Plan("p", plan.steps[:-1]), net(), evidence()).model))


def test_files_are_within_their_limits(found: Ledger) -> None:
    for limit in (30_000, 15_000, 9_000):
        assert 0.7 * limit < size_of(found.within(limit).plan) <= limit


def test_the_smallest_limit_that_holds_is_searched(found: Ledger) -> None:
    tried: list[float] = []

    def attempt(plan: Plan) -> Attempt:
        tried.append(size_of(plan))
        return Attempt(tried[-1], tried[-1] > 12_000)

    shrink(found, 50_000, None, True, attempt)
    assert 4 <= len(tried) <= 10
    assert min(size for size in tried if size > 12_000) < 14_500


def test_a_limit_is_tried_first_and_not_undercut_unless_size_is_the_aim(found: Ledger) -> None:
    tried: list[float] = []
    shrink(found, 50_000, 20_000, False, lambda plan: tried.append(size_of(plan)) or Attempt(tried[-1], True))
    assert len(tried) == 2 and tried[0] == tried[1] <= 20_000


def test_a_limit_that_breaks_the_floor_ends_it(found: Ledger) -> None:
    tried: list[Plan] = []
    shrink(found, 50_000, 20_000, True, lambda plan: tried.append(plan) or Attempt(20_000, False))
    assert [plan.name for plan in tried] == ["20 kB of weights", "20 kB of weights, in order"]


def test_out_of_reach_says_the_smallest(found: Ledger) -> None:
    with pytest.raises(OptionError, match=r"1,000 bytes cannot be reached: the smallest is \d,\d{3} bytes"):
        shrink(found, 50_000, 1_000, True, lambda plan: None)


def test_limits_that_nodes_put_out_of_reach_do_not_end_the_search(found: Ledger) -> None:
    """Where everything holds, the smallest file is searched too, though not every limit can be made."""
    tried: list[Plan] = []
    shrink(found, 50_000, None, True, lambda plan: tried.append(plan) or Attempt(size_of(plan), True))
    least = min(tried, key=size_of)
    with pytest.raises(OptionError, match="the smallest is") as told:
        found.within(found.least_bytes)
    smallest = float(re.findall(r"the smallest is ([\d,]+)", str(told.value))[0].replace(",", ""))
    assert size_of(least) <= 1.05 * smallest


def test_what_is_smaller_than_all_that_held_is_trained_by_bisection(found: Ledger) -> None:
    tried: list[float] = []

    def attempt(plan: Plan) -> Attempt:
        assert plan.name.endswith(", in order")
        tried.append(size_of(plan))
        return Attempt(tried[-1], tried[-1] > 8_000)

    train_smaller(found, 15_000.0, None, attempt)
    assert len(tried) == MOST_TRAINED and tried[0] <= 0.7 * 15_000
    assert tried[1] < 8_000 < tried[0] and tried[1] < tried[2] < tried[0]


def test_training_begins_at_a_limit_that_nothing_held_and_ends_where_it_fails(found: Ledger) -> None:
    tried: list[float] = []
    train_smaller(found, None, 9_000, lambda plan: tried.append(size_of(plan)) or Attempt(tried[-1], False))
    assert len(tried) == 1 and 6_000 < tried[0] <= 9_000
    train_smaller(found, 1_000.0, None, lambda plan: pytest.fail("below what any allocation reaches"))


def test_the_demo_network_becomes_eight_times_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time_little(monkeypatch)
    first_round_only(monkeypatch)
    folder = demo_in(tmp_path, 300)
    budget = gossamer.Budget(0.03, "latency", max_size_ratio=1 / 8)
    record = gossamer.compress(folder / "original.onnx", folder / "data.npz", budget, tmp_path / "out")
    assert record.met and 8 * record.bytes.result <= record.bytes.original
    again = gossamer.apply(tmp_path / "out/plan.yaml", folder / "original.onnx")
    gossamer.save(again, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out/model.onnx").read_bytes()


def test_the_smallest_download_is_an_archive_that_keeps_the_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_little(monkeypatch)
    monkeypatch.setattr(shrinking, "MOST_ATTEMPTS", 3)
    monkeypatch.setattr(shrinking, "MOST_IN_ORDER", 1)
    monkeypatch.setattr(rate_ladder, "RIVALS", ())
    folder = demo_in(tmp_path, 300)
    budget = gossamer.Budget(0.03, "download")
    record = gossamer.compress(folder / "original.onnx", folder / "data.npz", budget, tmp_path / "out")
    assert record.met and record.chosen.endswith(("to download", "to download, in order"))
    assert record.artifact == str(tmp_path / "out/model.goss")
    assert record.bytes.result == (tmp_path / "out/model.goss").stat().st_size < record.bytes.original / 15
    assert read_archive(tmp_path / "out/model.goss") == (tmp_path / "out/model.onnx").read_bytes()
    sizes = {one.plan.name: one.facts.bytes.result for one in record.candidates if one.facts and one.met}
    assert sizes[record.chosen] <= min(sizes.values()) * 1.006
    again = gossamer.apply(tmp_path / "out/plan.yaml", folder / "original.onnx")
    gossamer.save(again, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out/model.onnx").read_bytes()
    assert record.forecast is not None and all("rate=" in one.constraint for one in record.forecast.predictions)


def test_limits_of_archives_learn_from_what_archives_came_to() -> None:
    found = weigh_archives(net(), evidence(), {}, 60.0)
    tried: list[tuple[float, int]] = []

    def attempt(plan: Plan) -> Attempt:
        size = len(pack(to_bytes(run_plan(plan, net(), evidence()).model)).data)
        tried.append((float(plan.name.split()[0]) * 1e3, size))
        return Attempt(size, True)

    shrink(found, 50_000, 6_000, True, attempt)
    off = [abs(np.log(size / limit)) for limit, size in tried]
    assert max(off[1:]) < 0.12 and min(size for _, size in tried) < 3_000


def test_a_limit_out_of_reach_returns_the_best_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time_little(monkeypatch)
    first_round_only(monkeypatch)
    folder = demo_in(tmp_path, 90)
    record = gossamer.compress(
        folder / "original.onnx", folder / "data.npz", gossamer.Budget(0.05, max_bytes=10_000), tmp_path / "out"
    )
    assert not record.met
    assert any("10,000 bytes cannot be reached: the smallest is" in warning for warning in record.warnings)
    kept = [one for one in record.candidates if one.facts and one.facts.accuracy.drop <= 0.05]
    assert record.bytes.result == min(one.facts.bytes.result for one in kept if one.facts)  # of those, the smallest
    assert np.isfinite(record.latency_ms.ratio)
