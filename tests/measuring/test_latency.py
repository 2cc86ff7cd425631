"""Latency: turns, summaries and clean-up, on a clock that only the models move."""

from __future__ import annotations

import gc
import os
from itertools import groupby
from time import perf_counter, sleep

import numpy as np
import pytest

from gossamer.measuring import latency
from gossamer.runtimes.contract import Session


class Clock:
    """Time that passes only when a model runs."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now_s

    def session(self, name: str, *call_ms: float) -> Session:
        """A model whose calls take these times in turn, the last one for ever."""
        left = list(call_ms)

        class Handle:
            def run(handle, names: None, feeds: object) -> list[np.ndarray]:
                self.calls.append(name)
                self.now_s += (left.pop(0) if len(left) > 1 else left[0]) / 1000
                return []

        return Session(Handle().run, {}, {}, 1, "onnxruntime 1.0")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "perf_counter", clock)
    monkeypatch.setattr(latency, "thread_time", clock)
    return clock


def test_turns_alternate(clock: Clock) -> None:
    latency.race({name: clock.session(name, 7) for name in "abc"}, {}, timing=latency.Timing(rounds=4))
    turns = "".join(name for name, _ in groupby(clock.calls))
    # warm-up abc, then abc cba abc cba; neighbouring turns of one model read as one
    assert turns == "abc" + "abcbabcba"


@pytest.mark.parametrize(("threads", "calls"), [(1, 3), (2, 10)])  # five milliseconds, or twenty
def test_a_turn_is_shorter_by_the_threads_own_clock(clock: Clock, threads: int, calls: int) -> None:
    models = {"slow": clock.session("slow", 50), "quick": clock.session("quick", 2)}
    other = type("Clock", (), {"__call__": lambda self: clock.now_s})()  # as real time and a thread's are two clocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "perf_counter", other)
        latency.race(models, {}, threads, timing=latency.Timing(rounds=1))
    assert clock.calls == (["slow"] + ["quick"] * calls) * 2


def test_it_ends_once_every_ratio_is_known(clock: Clock) -> None:
    models = {"a": clock.session("a", 60), "b": clock.session("b", 30), "c": clock.session("c", 20)}
    assert len(latency.race(models, {}, timing=latency.Timing(rounds=25, budget_s=99, precision=0.01))["a"]) == 5
    assert len(latency.race(models, {}, timing=latency.Timing(rounds=25, budget_s=99))["a"]) == 25


def test_a_ratio_that_wavers_is_timed_for_longer(clock: Clock) -> None:
    wavering = clock.session("b", *([25, 35] * 13))
    times = latency.race(
        {"a": clock.session("a", 60), "b": wavering}, {}, timing=latency.Timing(rounds=20, budget_s=99, precision=0.01)
    )
    assert len(times["a"]) == 20


def test_ratio_is_taken_within_rounds(clock: Clock) -> None:
    # the machine slows down threefold in the middle; both models feel it, the ratio does not
    original = clock.session("a", 36, 36, 36, 108, 108, 36)
    result = clock.session("b", 24, 24, 24, 72, 72, 24)
    found = latency.compare_latency(original, result, {}, threads=1, timing=latency.Timing(rounds=5))
    assert [found.original, found.result] == pytest.approx([36, 24])
    assert [found.low, found.ratio, found.high] == pytest.approx([1.5, 1.5, 1.5])
    assert found.threads == 1
    assert found.runtime.startswith("onnxruntime 1.")


def test_spread_is_the_tenth_and_ninetieth_percentile(clock: Clock) -> None:
    result = clock.session("b", 25, *(25 + extra for extra in range(11)))
    found = latency.compare_latency(clock.session("a", 60), result, {}, timing=latency.Timing(rounds=11))
    ratios = [60 / (25 + extra) for extra in range(11)]
    assert found.low == pytest.approx(np.percentile(ratios, 10))
    assert found.high == pytest.approx(np.percentile(ratios, 90))


def test_budget_ends_it_after_five_rounds(clock: Clock) -> None:
    times = latency.race(
        {"a": clock.session("a", 200), "b": clock.session("b", 100)}, {}, timing=latency.Timing(rounds=50, budget_s=0.5)
    )
    assert len(times["a"]) == len(times["b"]) == 5


def test_very_slow_models_are_not_timed_five_rounds(clock: Clock) -> None:
    times = latency.race(
        {"a": clock.session("a", 9000), "b": clock.session("b", 9000)}, {}, timing=latency.Timing(budget_s=3)
    )
    assert [len(times[name]) for name in "ab"] == [1, 1]


@pytest.mark.parametrize("threads", [1, 2])
def test_everything_is_put_back(clock: Clock, threads: int) -> None:
    class Broken:
        def run(self, names: None, feeds: object) -> None:
            assert not gc.isenabled()
            raise RuntimeError("no")

    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with pytest.raises(RuntimeError, match="no"):
        latency.race({"a": Session(Broken().run, {}, {}, threads, "none")}, {}, threads=threads)
    assert gc.isenabled()
    assert before is None or os.sched_getaffinity(0) == before


def test_one_thread_is_timed_without_what_others_take() -> None:
    """Sleeping stands for waiting until another program leaves the processor."""

    class Sleeping:
        def run(self, names: None, feeds: object) -> None:
            sleep(0.03)
            sum(range(300_000))

    session = Session(Sleeping().run, {}, {}, 1, "none")
    if latency._clock(1) is not perf_counter:
        assert latency.race({"a": session}, {}, threads=1, timing=latency.Timing(rounds=1))["a"][0] < 30
    assert latency.race({"a": session}, {}, threads=2, timing=latency.Timing(rounds=1))["a"][0] > 30


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no pinning")
def test_the_calling_thread_is_pinned_meanwhile() -> None:
    with latency.pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    with latency.pinned(10_000):  # more than there are: all
        assert len(os.sched_getaffinity(0)) >= 1


def test_idle_processors_are_looked_for_once_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(latency, "sleep", naps.append)
    latency._idlest.cache_clear()
    for period in (7, 7, 8):
        assert len(latency._idlest(1, (0, 1), period)) == 1
    assert len(naps) == 2
    latency._idlest.cache_clear()
