"""The second moments of what weights are multiplied with: one streaming pass over the samples.

One pass serves all: the inputs of all layers are fetched beside the model's outputs, and counted while the runtime
works on the next batch. Memory is O(one batch + the moments). Layers that read the same tensor share a sum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gossamer.arith.moments import Moments
from gossamer.errors import CandidateError, DataError
from gossamer.measuring.batches import reason
from gossamer.measuring.fetching import with_outputs
from gossamer.measuring.gathering import MEMORY_BYTES, Batching, Counted, Gathering
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Feeds, Session
from gossamer.runtimes.onnxruntime import open_session

BATCH_BYTES = 64_000_000  # of inputs and fetched tensors; twice this is held, as counting lags one batch behind
LARGEST_BATCH = 16  # activations that nobody fetches grow with the batch as well


def moments(
    model: Model,
    weights: Collection[str],
    samples: Samples,
    threads: int = 1,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, Moments]:
    """H = E[x x^T] of these weights, summed over all their uses and positions.

    A weight used as a matrix and as a table counts its look-ups as if all rows were looked up equally often. Arrays of
    weights that read the same tensor are one array, so they must not be written to. Where a model has an input
    "attention_mask", what products and tables see at masked positions does not count: outputs there are not used, and
    in short texts they are the most.

    Args:
        weights: names of initializers that `graph.weight_matrix` can lay out as matrices.
        samples: at least one, with an array for every input.
        threads: of the runtime; counting runs beside it on one more.
        memory_bytes: of sums; what goes beyond lies in mapped files that vanish with the arrays.

    Returns:
        initializer name -> moments; float32, all zero for a layer whose input always is.

    Raises:
        ModelError: a name is of no weight matrix, or of one that two nodes sum over different axes of.
        DataError: there are no samples, or the input of a layer held NaN, infinity or a number too large to square.
        CandidateError: the runtime refuses the model, or fails on a batch.
    """
    if not len(samples):
        raise DataError(f"{samples.source}: no samples to take moments from; give at least one")
    gathering = Gathering(model, weights, memory_bytes)
    batching = find_batching(gathering, samples, threads)
    take_in(gathering, _fetched(gathering, samples, batching), batching)
    return gathering.result(len(samples))


def take_in(gathering: Gathering, batches: Iterator[Counted], batching: Batching) -> None:
    """Count each batch while the runtime computes the next.

    Raises:
        DataError: a number is not finite, or too large to square.
    """
    with ThreadPoolExecutor(max_workers=1) as counter:
        counted = counter.submit(lambda: None)  # nothing yet
        for batch in batches:
            counted.result()
            counted = counter.submit(gathering.add, batch, batching)
            del batch
        counted.result()


def _fetched(gathering: Gathering, samples: Samples, batching: Batching) -> Iterator[Counted]:
    for feeds, rows, where in fed(samples, batching):
        yield Counted(feeds | fetch(batching.session, gathering.fetched, feeds), rows, where)


def fed(samples: Samples, batching: Batching) -> Iterator[Counted]:
    """The samples as the runtime takes them."""
    done = 0
    for batch in samples.batches(batching.size):
        rows = _rows(batch.feeds)
        feeds = padded(batch.feeds, batching.size) if batching.fixed else batch.feeds
        first, last = samples.rows[done], samples.rows[done + rows - 1]
        which = f"sample {first}" if rows == 1 else f"one of the samples {first} to {last}"
        yield Counted(feeds, rows, f"{which} of {samples.source}")
        done += rows


def find_batching(gathering: Gathering, samples: Samples, threads: int) -> Batching:
    """The model's own batch size; or as many samples as fit, if all tensors double with a second sample.

    Raises:
        CandidateError: the runtime refuses the model, or fails on its first sample.
    """
    fetched = gathering.fetched
    session = open_session(with_outputs(gathering.model, fetched, "moments"), threads)
    if session.static_batch:
        return Batching(session, session.static_batch, True)
    one = next(samples.take(np.arange(1)).batches(1)).feeds
    alone = one | fetch(session, fetched, one)
    try:
        feeds = padded(one, 2)
        twice = feeds | fetch(session, fetched, feeds)
    except CandidateError:  # its batch axis is free in name only
        return Batching(session, 1, False)
    same = {name for name in gathering.needed if np.array_equal(alone[name], twice[name], equal_nan=True)}
    if any(name not in same and twice[name].size != 2 * alone[name].size for name in gathering.needed):
        return Batching(session, 1, False)
    one_bytes = sum(array.nbytes for array in alone.values())
    size = max(1, min(LARGEST_BATCH, BATCH_BYTES // max(one_bytes, 1)))
    return Batching(session, size, False, frozenset(same))


def fetch(session: Session, names: Sequence[str], feeds: Feeds) -> dict[str, np.ndarray]:
    """Some tensors for one batch.

    Raises:
        CandidateError: the runtime fails on it.
    """
    if not names:
        return {}
    try:
        return dict(zip(names, session.run(feeds, names), strict=True))
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise CandidateError(f"onnxruntime fails on a batch of calibration samples: {reason(error)}") from error


def padded(feeds: Feeds, size: int) -> Feeds:
    """The same rows and the last one again until there are `size`."""
    chosen = np.minimum(np.arange(size), _rows(feeds) - 1)
    return {name: array if len(array) == size else array[chosen] for name, array in feeds.items()}


def _rows(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))
