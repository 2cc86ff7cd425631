"""Samples put into calls, and calls side by side."""

from __future__ import annotations

from math import inf
from threading import Event, current_thread
from time import sleep

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.measuring.batches import MOST_WORKERS, QUICK_S, SMALL_BYTES, ahead, call_s, opened
from gossamer.nouns.samples import samples_from_arrays
from gossamer.runtimes.contract import Feeds, Session


@given(st.lists(st.integers(), max_size=20), st.integers(1, 5))
def test_results_come_in_order_whoever_made_them(items: list[int], workers: int) -> None:
    assert list(ahead(lambda item: -item, items, workers)) == [(item, -item) for item in items]


def test_one_worker_is_the_caller_itself() -> None:
    names = [made for _, made in ahead(lambda _: current_thread().name, range(3), 1)]
    assert names == [current_thread().name] * 3


def test_calls_are_made_side_by_side() -> None:
    both = [Event(), Event()]

    def meet(at: int) -> bool:
        both[at].set()
        return both[1 - at].wait(10)  # the other is under way too

    assert all(met for _, met in ahead(meet, range(2), 2))


def test_no_more_is_read_than_workers_need() -> None:
    read: list[int] = []
    items = (read.append(at) or at for at in range(100))
    first, _ = next(iter(ahead(lambda item: item, items, 2)))
    assert first == 0 and len(read) <= 3


def test_what_a_worker_meets_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda item: 1 // item, [1, 0, 2], 2))


class Opener:
    """A model whose calls take some time, and the numbers of threads that it was opened for."""

    def __init__(self, call_s: float = 0.0, shared: bool = True) -> None:
        self.call_s, self.shared = call_s, shared
        self.threads: list[int] = []

    def __call__(self, threads: int) -> Session:
        def call(names: list[str] | None, feeds: Feeds) -> list[np.ndarray]:
            sleep(self.call_s)
            return []

        self.threads.append(threads)
        return Session(call, {}, {}, threads, "one", self.shared)


SAMPLES = samples_from_arrays({"x": np.zeros((3, 2))})


def test_quick_calls_go_side_by_side() -> None:
    session, at_once = opened(Opener(), SMALL_BYTES - 1, SAMPLES, 4)
    assert (session.threads, at_once) == (1, 4)
    assert opened(Opener(), 0, SAMPLES, 1000)[1] == MOST_WORKERS


@pytest.mark.parametrize(
    ("opener", "weight_bytes", "tried"),
    [(Opener(2 * QUICK_S), 0, [1, 4]), (Opener(shared=False), 0, [1, 4]), (Opener(), SMALL_BYTES, [4])],
)
def test_others_have_all_processors_in_every_call(opener: Opener, weight_bytes: int, tried: list[int]) -> None:
    session, at_once = opened(opener, weight_bytes, SAMPLES, 4)
    assert (session.threads, at_once) == (4, 1) and opener.threads == tried


def test_one_processor_has_one_worker() -> None:
    session, at_once = opened(Opener(), 0, SAMPLES, 1)
    assert (session.threads, at_once) == (1, 1)


def test_a_call_that_fails_is_not_quick() -> None:
    def fail(names: list[str] | None, feeds: Feeds) -> list[np.ndarray]:
        raise RuntimeError("no")

    assert call_s(Session(fail, {}, {}, 1, "one"), {}) == inf
