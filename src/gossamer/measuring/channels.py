"""Channels of activations: the largest magnitude of each over all samples, and whole rows of a few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gossamer.errors import CandidateError, DataError, ModelError
from gossamer.measuring.batches import reason
from gossamer.measuring.fetching import with_outputs
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Session
from gossamer.runtimes.onnxruntime import open_session

MOST_CALLS = 16
ENOUGH_ROWS = 1024
ROWS_BYTES = 256_000_000


def channel_peaks(model: Model, names: Sequence[str], samples: Samples, threads: int = 1) -> dict[str, np.ndarray]:
    """max |x| over the samples and all axes but the last, which counts the channels.

    Memory is O(one batch). How the samples fall into batches does not matter, nor does what pads the last of them:
    that is a sample again.

    Args:
        names: float tensors: inputs of the graph or results of its nodes.

    Returns:
        name -> float64 (C,); empty for a tensor that no sample reached.

    Raises:
        ModelError: there is no such tensor, it does not hold floats, or its last axis changes its length.
        DataError: a tensor held NaN or infinity; the text names it and the sample.
        CandidateError: the runtime refuses the model, or fails on a sample.
    """
    fetched = _made(model, names)
    session = open_session(with_outputs(model, fetched, "channels"), threads)
    peaks: dict[str, np.ndarray] = {name: np.zeros(0) for name in names}
    done = 0
    for batch in samples.batches(session.static_batch or 1):
        arrays = _tensors(session, fetched, batch.feeds)
        for name, known_C in peaks.items():
            peak_C = _peaks(name, arrays[name])
            if not np.isfinite(peak_C).all():
                raise DataError(
                    f"tensor {name!r} is NaN or infinite on sample {samples.rows[done]} of {samples.source}, or on one "
                    "of the same batch; check that sample, the preprocessing and the model's weights"
                )
            if known_C.size and known_C.shape != peak_C.shape:
                raise ModelError(
                    f"tensor {name!r} has {known_C.size} channels on one sample and {peak_C.size} on another; "
                    "only tensors whose last axis keeps its length have channels"
                )
            peaks[name] = np.maximum(known_C, peak_C) if known_C.size else peak_C
        done += len(next(iter(batch.feeds.values())))
    return peaks


def activation_rows(
    model: Model, names: Sequence[str], samples: Samples, threads: int = 1
) -> dict[str, tuple[np.ndarray, ...]]:
    """Some samples' activations in full, to try a quantizer on: the last axis counts the channels.

    At most 16 calls, spread evenly, fewer once every tensor has 1,024 rows or all of them together take 256 MB.

    Returns:
        name -> an array (R, C) for each call.

    Raises:
        ModelError: there is no such tensor.
        CandidateError: the runtime refuses the model, or fails on a sample.
    """
    fetched = _made(model, names)
    session = open_session(with_outputs(model, fetched, "channels"), threads)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    size = session.static_batch or 1
    spread = np.linspace(0, len(samples) - 1, min(len(samples), size * MOST_CALLS)).astype(int)
    for batch in samples.take(spread).batches(size):
        total = sum(array.nbytes for arrays in rows.values() for array in arrays)
        fewest = min((sum(map(len, arrays)) for arrays in rows.values()), default=0)
        if total > ROWS_BYTES or fewest >= ENOUGH_ROWS:
            break
        arrays = _tensors(session, fetched, batch.feeds)
        for name, kept in rows.items():
            kept.append(arrays[name].reshape(-1, arrays[name].shape[-1]))
    return {name: tuple(kept) for name, kept in rows.items()}


def _made(model: Model, names: Sequence[str]) -> list[str]:
    """Those of the names that are no inputs."""
    inputs = {value.name for value in model.ir.graph.inputs}
    return [name for name in dict.fromkeys(names) if name not in inputs]


def _tensors(session: Session, fetched: list[str], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One batch's inputs and what is computed of them, by name."""
    try:
        return feeds | dict(zip(fetched, session.run(feeds, fetched) if fetched else [], strict=True))
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise CandidateError(f"onnxruntime fails on a calibration sample: {reason(error)}") from error


def _peaks(name: str, array: np.ndarray) -> np.ndarray:
    """max |x| over all axes but the last, (C,); NaN stays NaN."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.ndim:
        kind = f"{array.ndim} axes of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ModelError(f"tensor {name!r} holds {kind}; only float tensors with at least one axis have channels")
    rows = array.reshape(-1, array.shape[-1] if array.size else 0)
    largest = np.maximum(rows.max(axis=0, initial=0), -rows.min(axis=0, initial=0))  # no copy of the tensor
    return np.asarray(largest, np.float64)
