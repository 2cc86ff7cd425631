"""What the activations of a model look like: one streaming pass over the samples, memory O(one batch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from gossamer.arith.histogram import Observed, Tally
from gossamer.errors import CandidateError, DataError, ModelError
from gossamer.measuring.batches import ahead, opened
from gossamer.measuring.fetching import with_outputs
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Batch, Samples
from gossamer.runtimes.contract import Session
from gossamer.runtimes.onnxruntime import open_session

BATCH_BYTES = 64_000_000  # of inputs and observed activations; twice this is held, as counting lags one batch behind
LARGEST_BATCH = 16  # activations that nobody observes grow with the batch as well
GLANCE = (4, 32)  # samples, at least and at most, whose numbers are counted where the histogram need not be whole,
GLANCE_NUMBERS = 200_000  # and the numbers of each tensor that are enough for its outline


def observe(
    model: Model, names: Sequence[str], samples: Samples, histogram: bool, threads: int = 1
) -> dict[str, Observed]:
    """The extremes of every sample and the histogram of some tensors of the main graph.

    Counting takes longer than running many a network. So unless the whole histogram is asked for, only the numbers of
    some 4 to 32 samples are counted, spread evenly; the extremes are always those of all.

    A model of fixed batch size gets exactly that; what pads the last batch is not observed. In a fixed batch above
    one, a tensor whose first axis is no multiple of the batch counts as one sample.

    Args:
        names: float tensors: inputs of the graph or results of its nodes.
        samples: at least one, with an array for every input.
        histogram: whether to count the numbers of all samples.
        threads: of the runtime; counting runs beside it on one more.

    Raises:
        ModelError: there is no such tensor, or it does not hold floats.
        DataError: a tensor held NaN or infinity; the text names it and the sample. Minus infinity alone is a mask's,
            and left for the caller to find (`Observed.finite`).
        CandidateError: the runtime refuses the model, or fails on a batch.
    """
    wanted = list(dict.fromkeys(names))
    inputs = {value.name for value in model.ir.graph.inputs}
    fetched = [name for name in wanted if name not in inputs]
    tallies = {name: _Tallies(Tally(histogram=False), Tally(histogram=True)) for name in wanted}
    fetching = partial(open_session, with_outputs(model, fetched, "ranges"))
    session, workers = opened(fetching, model.weight_bytes(), samples, threads)
    size, fixed = _batch_size(session, fetched, samples, workers)
    done = 0

    def run(batch: Batch) -> tuple[Mapping[str, np.ndarray], dict[str, np.ndarray]]:
        feeds = _padded(batch.feeds, size) if fixed else batch.feeds
        return feeds, _run(session, fetched, feeds)

    with ThreadPoolExecutor(max_workers=1) as counter:
        counted = counter.submit(_count, {}, {}, 1, _Seen(0, 0, None))  # nothing yet
        for batch, (feeds, fresh) in ahead(run, samples.batches(size), workers):
            arrays = {**feeds, **fresh}
            del fresh
            counted.result()
            rows = _rows(batch.feeds)
            seen_now = _Seen(done, rows, None if histogram else len(samples))
            counted = counter.submit(_count, tallies, arrays, _rows(feeds), seen_now)
            done += rows
            del arrays  # the counter drops them one by one, and the runtime uses their memory again
        counted.result()
    seen = {
        name: replace(tally.extremes.result(), counts=tally.counts.result().counts) for name, tally in tallies.items()
    }
    for name, observed in seen.items():
        _check_finite(name, observed, samples)
    return seen


class _BatchSize(NamedTuple):
    size: int
    fixed: bool


def _batch_size(session: Session, fetched: Sequence[str], samples: Samples, workers: int) -> _BatchSize:
    """The model's own batch size; or as many samples as fit in memory, if all tensors have one row for each."""
    shapes = [shape for _, shape in session.inputs.values()]
    if shapes and shapes[0] and isinstance(shapes[0][0], int) and shapes[0][0] > 0:
        return _BatchSize(shapes[0][0], True)
    if not len(samples):
        return _BatchSize(1, False)
    one = next(samples.take(np.arange(1)).batches(1)).feeds
    alone = _run(session, fetched, one)
    try:
        twice = _run(session, fetched, _padded(one, 2))
    except CandidateError:  # its batch axis is free in name only
        return _BatchSize(1, False)
    if any(array.shape[:1] != (1,) for array in alone.values()) or any(
        array.shape[:1] != (2,) for array in twice.values()
    ):
        return _BatchSize(1, False)
    one_bytes = sum(array.nbytes for array in (*one.values(), *alone.values()))
    return _BatchSize(max(1, min(LARGEST_BATCH, BATCH_BYTES // workers // max(one_bytes, 1))), False)


def _padded(feeds: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """The same rows and the last one again until there are `size`."""
    chosen = np.minimum(np.arange(size), _rows(feeds) - 1)
    return {name: array if len(array) == size else array[chosen] for name, array in feeds.items()}


def _rows(feeds: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(feeds.values())))


def _run(session: Session, fetched: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not fetched:
        return {}
    try:
        return dict(zip(fetched, session.run(feeds, fetched), strict=True))
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise CandidateError(f"onnxruntime fails on a batch of calibration samples: {line}") from error


class _Tallies(NamedTuple):
    """Of one tensor: of all samples, and of those whose numbers are counted."""

    extremes: Tally
    counts: Tally


class _Seen(NamedTuple):
    """How many samples came before a batch and are in it; and of how many a few are counted, None for all."""

    before: int
    rows: int
    total: int | None

    def counted(self, numbers: int) -> slice:
        """Those samples of the batch whose numbers are counted, of a tensor with so many numbers a sample."""
        few = min(max(-(-GLANCE_NUMBERS // max(numbers, 1)), GLANCE[0]), GLANCE[1])
        every = 1 if self.total is None else max(1, self.total // few)
        return slice(-self.before % every, self.rows, every)


def _count(tallies: Mapping[str, _Tallies], arrays: dict[str, np.ndarray], size: int, seen: _Seen) -> None:
    """Take in a batch of `size` samples, of which the last may be padding; empties `arrays`."""
    for name, (extremes, counts) in tallies.items():
        array = arrays.pop(name)
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ModelError(f"tensor {name!r} holds {kind}; ranges are of float tensors only")
        if array.ndim == 0 or len(array) % size:  # no row for each sample: taken whole
            chosen = seen.counted(array.size)
            rows, picked = array[None], slice(0, int(chosen.start < chosen.stop))
        else:
            rows = array.reshape(size, -1 if array.size else 0)[: seen.rows]
            picked = seen.counted(rows.shape[1])
        extremes.add(rows)
        counts.add(rows[picked])


def _check_finite(name: str, observed: Observed, samples: Samples) -> None:
    if observed.finite:
        return
    bad = ~(np.isfinite(observed.sample_low_N) & np.isfinite(observed.sample_high_N))
    if (observed.sample_low_N[bad] == -np.inf).all() and (observed.sample_high_N[bad] < np.inf).all():
        return
    first = int(np.argmax(bad))
    where = f"sample {samples.rows[first]}" if bad.size == len(samples) else "a sample"
    raise DataError(
        f"tensor {name!r} is NaN or infinite on {where} of {samples.source}; check that sample, the preprocessing "
        "and the model's weights"
    )
