"""Latency: models timed against each other in one process, in turns, so that a busy machine slows all alike.

With one thread the clock is the calling thread's own processor time: on an idle machine that is the time that passes,
on a busy one it leaves out the time other programs had the processor. With more threads it is the time that passes.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from statistics import median
from time import get_clock_info, perf_counter, sleep, thread_time
from typing import NamedTuple

import numpy as np

from gossamer.nouns.facts import Latency
from gossamer.runtimes.contract import Session

TURN_MS = 20.0  # a turn shorter than a scheduler's time slice would catch its noise,
OWN_TURN_MS = 5.0  # unless the clock counts the thread's own time only
FEWEST_ROUNDS = 5
PATIENCE = 4  # times the budget that the fewest rounds may take, if single calls are slow
NEIGHBOURS_S = 5.0  # for so long the idlest processors are taken to stay the idlest


class Timing(NamedTuple):
    """How long to time.

    Attributes:
        rounds: at most this many.
        budget_s: stop after so many seconds, but not before five rounds unless those would take four times as long.
        precision: stop, but not before five rounds, once every model's ratio to the first is known to this share of it.
    """

    rounds: int = 25
    budget_s: float = 3.0
    precision: float = 0.0


TRIAL = Timing(budget_s=0.8, precision=0.02)  # enough to sort candidates,
PROOF = Timing(budget_s=3.0, precision=0.004)  # and to tell the person


def compare_latency(
    original: Session,
    result: Session,
    feeds: Mapping[str, np.ndarray],
    threads: int = 1,
    timing: Timing = Timing(),  # noqa: B008
) -> Latency:
    """Time two models against each other on one batch.

    Both sessions must have been opened with `threads`. The ratio is taken within each round, where both models
    met the same neighbours, and only then summarised: its median, and its 10th and 90th percentile over rounds.

    Args:
        feeds: input name -> array, as both sessions take them, batch axis included.
        timing: for how long.
    """
    times = race({"original": original, "result": result}, feeds, threads, timing)
    return summarise(times["original"], times["result"], threads, result.runtime)


def summarise(original_ms: Sequence[float], result_ms: Sequence[float], threads: int, runtime: str) -> Latency:
    """The latency of two models of one race, given what `race` found of each."""
    ratios = np.divide(original_ms, result_ms)
    return Latency(
        original=median(original_ms),
        result=median(result_ms),
        ratio=float(np.median(ratios)),
        low=float(np.percentile(ratios, 10)),
        high=float(np.percentile(ratios, 90)),
        threads=threads,
        runtime=runtime,
    )


def race(
    sessions: Mapping[str, Session],
    feeds: Mapping[str, np.ndarray],
    threads: int = 1,
    timing: Timing = Timing(),  # noqa: B008
) -> dict[str, list[float]]:
    """Time many models on one batch, in turns whose order alternates: A B C, C B A, A B C ...

    In its turn a model is called until 20 ms have passed (5 by the thread's own clock), once at least. Meanwhile the
    process is pinned to `threads` processors, where the system allows, and garbage collection waits.

    Args:
        feeds: input name -> array, as all sessions take them, batch axis included.
        timing: for how long.

    Returns:
        Session name -> one latency a round, in milliseconds: the median of the turn's calls. All lists are as long.
    """
    feeds = dict(feeds)
    order = list(sessions)
    times: dict[str, list[float]] = {name: [] for name in order}
    clock = _clock(max(threads, *(session.threads for session in sessions.values())))
    with pinned(threads), _no_garbage_collection():
        for session in sessions.values():  # warm-up: the first calls allocate, and pack weights
            _turn(session, feeds, clock)
        begin = perf_counter()
        for done in range(timing.rounds):
            spent_s, enough = perf_counter() - begin, done >= FEWEST_ROUNDS
            if spent_s > timing.budget_s and (enough or spent_s > PATIENCE * timing.budget_s):
                break
            if timing.precision and enough and _uncertainty(list(times.values())) < timing.precision:
                break
            for name in order:
                times[name].append(_turn(sessions[name], feeds, clock))
            order.reverse()
    return times


def _uncertainty(times: Sequence[Sequence[float]]) -> float:
    """Half the width of a median's notch (McGill, Tukey and Larsen, 1978), of the ratio that is known least."""
    ratios = np.divide(times[0], times[1:])
    low, middle, high = np.percentile(ratios, [25, 50, 75], axis=1)
    return float(np.max(1.57 * (high - low) / (middle * np.sqrt(len(times[0]))), initial=0.0))


def _turn(session: Session, feeds: dict[str, np.ndarray], clock: Callable[[], float]) -> float:
    """The median latency of a turn's calls, in milliseconds."""
    call = session.call
    calls_ms: list[float] = []
    left_ms = OWN_TURN_MS if clock is thread_time else TURN_MS
    while left_ms > 0:
        begin = clock()
        call(None, feeds)
        calls_ms.append((clock() - begin) * 1000)
        left_ms -= calls_ms[-1]
    return median(calls_ms)


def _clock(threads: int) -> Callable[[], float]:
    """Processor time of the calling thread if it does all the work and the system counts it finely, else real time."""
    fine = get_clock_info("thread_time").resolution <= 1e-6
    return thread_time if threads == 1 and fine else perf_counter


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this process on `threads` processors, the idlest; every thread gets its own set back in the end.

    One thread: only the calling thread is pinned, as it does all the work. More: every thread of the process is,
    as the runtime's pool was made when the session was opened. Where the system offers no pinning, nothing happens.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    chosen = _idlest(threads, tuple(sorted(os.sched_getaffinity(0))), int(perf_counter() / NEIGHBOURS_S))
    before = _affinities([0] if threads == 1 else _threads())
    try:
        for thread in before:
            _set_affinity(thread, chosen)
        yield
    finally:
        for thread, processors in before.items():
            _set_affinity(thread, processors)


def _threads() -> list[int]:
    """Ids of all threads of this process; 0, the calling one, where the system does not list them."""
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return [0]


def _affinities(threads: list[int]) -> dict[int, set[int]]:
    found = {}
    for thread in threads:
        try:
            found[thread] = os.sched_getaffinity(thread)
        except OSError:  # the thread has ended
            continue
    return found


def _set_affinity(thread: int, processors: Collection[int]) -> None:
    try:
        os.sched_setaffinity(thread, processors)
    except OSError:  # the thread has ended, or a container forbids it: the measurement is still a measurement
        pass


@lru_cache(maxsize=1)
def _idlest(count: int, allowed: tuple[int, ...], period: int) -> frozenset[int]:
    """Those of the allowed processors that idled most in 40 ms; found out once a period, as many races are short."""
    if len(allowed) <= count:
        return frozenset(allowed)
    before = _idle_ticks()
    sleep(0.04)
    after = _idle_ticks()
    idled = {processor: after.get(processor, 0) - before.get(processor, 0) for processor in allowed}
    return frozenset(sorted(allowed, key=lambda processor: -idled[processor])[:count])


def _idle_ticks() -> dict[int, int]:
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
    return {int(row[0][3:]): int(row[4]) for row in rows}
