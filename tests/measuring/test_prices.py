from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest

from gossamer.measuring import prices
from gossamer.measuring.kernels import Kernel, Signature
from gossamer.measuring.latency import Timing
from gossamer.measuring.prices import cache_folder, price_list
from gossamer.runtimes import onnxruntime

SMALL = Signature("MatMul", (4, 64), (64, 32))
OTHER = Signature("Gemm", (1, 32), (16, 32), (("transB", 1),))
FLOAT, BYTES, BLOCKS = Kernel("float"), Kernel("int8"), Kernel("blocks", 4, 32)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "TIMING", Timing(rounds=1, budget_s=0.01))


def measured(monkeypatch: pytest.MonkeyPatch) -> list[Signature]:
    """The layers that are measured from now on."""
    seen: list[Signature] = []
    real = prices._measure

    def spy(signature: Signature, *rest: object) -> object:
        seen.append(signature)
        return real(signature, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prices, "_measure", spy)
    return seen


def test_what_was_measured_is_read_from_disk_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = price_list([(SMALL, FLOAT), (SMALL, BLOCKS)], onnxruntime, 1, tmp_path)
    assert first[SMALL, FLOAT].ratio == 1.0
    assert 0 < first[SMALL, BLOCKS].ms < inf
    seen = measured(monkeypatch)
    again = price_list([(SMALL, BLOCKS), (SMALL, BYTES), (OTHER, FLOAT)], onnxruntime, 1, tmp_path)
    assert again[SMALL, BLOCKS] == first[SMALL, BLOCKS]
    assert seen == [SMALL, OTHER]  # the one for its new way alone
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]


def test_other_threads_have_other_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    price_list([(SMALL, FLOAT)], onnxruntime, 1, tmp_path)
    seen = measured(monkeypatch)
    price_list([(SMALL, FLOAT)], onnxruntime, 2, tmp_path)
    assert seen == [SMALL]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"machine": {}, "prices": {}, "version": 2}', '{"machine": {}, "prices": {}}']
)
def test_a_file_that_is_torn_or_of_another_machine_is_measured_anew(tmp_path: Path, content: str) -> None:
    price_list([(SMALL, FLOAT)], onnxruntime, 1, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert price_list([(SMALL, FLOAT)], onnxruntime, 1, tmp_path)[SMALL, FLOAT].ratio == 1.0
    assert len(json.loads(file.read_text())["prices"]) == 1


def test_two_runs_do_not_forget_each_others_prices(tmp_path: Path) -> None:
    price_list([(SMALL, FLOAT)], onnxruntime, 1, tmp_path)
    price_list([(OTHER, FLOAT)], onnxruntime, 1, tmp_path)
    (file,) = tmp_path.iterdir()
    assert len(json.loads(file.read_text())["prices"]) == 2


def test_a_folder_that_cannot_be_written_costs_no_result(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = price_list([(SMALL, FLOAT)], onnxruntime, 1, tmp_path / "file" / "below")
    assert found[SMALL, FLOAT].ratio == 1.0


def test_a_way_that_the_layer_does_not_have_costs_infinitely_much(tmp_path: Path) -> None:
    odd = Signature("MatMul", (4, 30), (30, 32))
    found = price_list([(odd, FLOAT), (odd, BLOCKS)], onnxruntime, 1, tmp_path)
    assert found[odd, FLOAT].ms < inf
    assert found[odd, BLOCKS].ratio is None
    assert found[odd, BLOCKS].ms == inf


def test_past_its_time_nothing_more_is_measured(tmp_path: Path) -> None:
    ticks = iter([0.0, 0.0, 5.0])
    found = price_list(
        [(SMALL, FLOAT), (OTHER, FLOAT)], onnxruntime, 1, tmp_path, budget_s=1.0, clock=lambda: next(ticks)
    )
    assert list(found) == [(SMALL, FLOAT)]


def test_the_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("GOSSAMER_CACHE")
    assert cache_folder().parts[-1] in ("gossamer", "cache")
