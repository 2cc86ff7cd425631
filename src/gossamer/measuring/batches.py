"""Running a session over samples: how many go into one call, and one call after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf
from time import perf_counter
from typing import TypeVar

import numpy as np

from gossamer.nouns.samples import Batch, Samples
from gossamer.runtimes.contract import Session

Outputs = dict[str, np.ndarray]  # output name -> (B, ...)
T = TypeVar("T")
U = TypeVar("U")

LARGEST_BATCH = 32
BATCH_BYTES = 8_000_000  # of inputs; a network's activations are some ten times as big
SMALL_BYTES = 16_000_000  # of weights: more takes long to read, so a call cannot be quick
QUICK_S = 0.002  # for one sample; what such a call computes between its layers takes no memory worth mentioning
MOST_WORKERS = 8
SAME = 1e-3  # of the largest output: kernels for one sample and for many differ by rounding, far less than this


def batch_size(session: Session, samples: Samples, limit_bytes: int = BATCH_BYTES) -> int:
    """How many samples to give the session in one call, if it takes as many as it gets with inputs of `limit_bytes`.

    A model whose batch axis is fixed gets just that many. Else up to 32, if the first sample comes out the same
    alone and in company: a model that mixes samples (dynamic int8 takes its ranges over the whole batch, some
    models put time on the first axis) is scored one sample at a time, as it will be used.
    """
    if session.static_batch:
        return session.static_batch
    if len(samples) < 2:
        return 1
    pair = next(samples.take(np.arange(2)).batches(2))
    if not _independent(session, pair):
        return 1
    sample_bytes = sum(array.nbytes for array in pair.feeds.values()) // 2
    return max(1, min(LARGEST_BATCH, limit_bytes // max(1, sample_bytes)))


def opened(
    open_session: Callable[[int], Session], weight_bytes: int, samples: Samples, processors: int
) -> tuple[Session, int]:
    """A session for all samples, and how many calls of it are to be under way at once.

    Calls of a quick model go side by side, one processor each: nobody waits for another, and no thread has to be woken,
    which takes as long as its kernels. Others have their kernels shared among threads, call by call, as what a call
    holds is not held twice.

    Args:
        open_session: opens the model for so many threads.
    """
    if processors > 1 and weight_bytes < SMALL_BYTES and len(samples):
        session = open_session(1)
        together = at_once(session, call_s(session, next(samples.first(1).batches(1)).feeds), processors)
        if together > 1:
            return session, together
    return open_session(processors), 1


def at_once(session: Session, seconds: float, processors: int) -> int:
    """How many calls of a session are to be under way together, of which one takes so many seconds."""
    side_by_side = session.shared and session.threads == 1 and seconds < QUICK_S
    return min(processors, MOST_WORKERS) if side_by_side else 1


def call_s(session: Session, feeds: Mapping[str, np.ndarray]) -> float:
    """Seconds of a second call; infinite if it fails, which whoever runs the samples will meet and explain."""
    try:
        session.run(feeds)
        begin = perf_counter()
        session.run(feeds)
        return perf_counter() - begin
    except Exception:  # onnxruntime's errors share no type
        return inf


def ahead(work: Callable[[T], U], items: Iterable[T], workers: int) -> Iterator[tuple[T, U]]:
    """Each item with what comes of it, in order, while workers are at the next ones; one by one for one worker."""
    if workers < 2:
        yield from ((item, work(item)) for item in items)
        return
    waiting: deque[tuple[T, Future[U]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > workers:
                first, made = waiting.popleft()
                yield first, made.result()
        while waiting:
            first, made = waiting.popleft()
            yield first, made.result()


def run_batch(session: Session, feeds: Mapping[str, np.ndarray], size: int) -> Outputs:
    """All outputs for a batch of any length, in calls of at most `size` samples."""
    count = len(next(iter(feeds.values())))
    parts = [
        session.run({name: array[start : start + size] for name, array in feeds.items()})
        for start in range(0, count, size)
    ]
    if len(parts) == 1:
        return dict(zip(session.outputs, map(np.asarray, parts[0]), strict=True))
    columns = zip(*parts, strict=True)
    return {name: np.concatenate(column) for name, column in zip(session.outputs, columns, strict=True)}


def _independent(session: Session, pair: Batch) -> bool:
    """Whether the first of two samples gives the same outputs alone as beside the second."""
    if len(next(iter(pair.feeds.values()))) < 2:  # the two have different shapes
        return False
    try:
        together = session.run(pair.feeds)
        alone = session.run({name: array[:1] for name, array in pair.feeds.items()})
    except Exception:  # the graph takes one sample only, whatever its input says; onnxruntime's errors share no type
        return False
    return all(_is_row_of(one, many) for one, many in zip(alone, together, strict=True))


def _is_row_of(one: np.ndarray, many: np.ndarray) -> bool:
    one, many = np.asarray(one), np.asarray(many)
    if many.ndim == 0 or many.shape != (2, *one.shape[1:]) or one.shape[0] != 1:
        return False
    if many.dtype.kind not in "fiub":
        return bool(np.array_equal(one[0], many[0]))
    largest = float(np.max(np.abs(one), initial=0, where=np.isfinite(one)))
    return bool(np.allclose(one[0], many[0], rtol=SAME, atol=SAME * largest, equal_nan=True))


def reason(error: Exception) -> str:
    """The first line of what the runtime says, short enough for a message."""
    return str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
