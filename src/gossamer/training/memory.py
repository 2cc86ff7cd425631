"""Want of memory: the batch is halved once, and what failed is done again in twice as many parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from gossamer.errors import CandidateError
from gossamer.training.lessons import Piece
from gossamer.training.run import Run

T = TypeVar("T")


def within_memory(run: Run, work: Callable[[int], T]) -> T:
    """What the work gives, called with the most samples that may go through the module at once.

    Raises:
        CandidateError: memory does not suffice for half of what was asked for either; or for all of it, where a batch
            cannot be halved: a model of fixed batch, or several processes, which must stay in step.
    """
    shortage = ""
    try:
        return work(run.place.batch)
    except (RuntimeError, MemoryError) as error:
        if not _is_of_memory(error):
            raise
        shortage = str(error).strip().split("\n", 1)[0][:200]  # the error itself would keep all tensors alive
    _halve(run, shortage)
    try:
        return work(run.place.batch)
    except (RuntimeError, MemoryError) as error:
        if not _is_of_memory(error):
            raise
        raise CandidateError(_too_little(run)) from None


def at_most(pieces: Sequence[Piece], most: int, fixed_batch: int | None) -> list[Piece]:
    """Pieces cut into parts of so many samples; those of a fixed batch stay whole."""
    if fixed_batch:
        return list(pieces)
    return [part for piece in pieces for part in _cut(piece, most)]


def _cut(piece: Piece, most: int) -> list[Piece]:
    if piece.size <= most:
        return [piece]
    size = math.ceil(piece.size / math.ceil(piece.size / most))
    spans = [slice(start, start + size) for start in range(0, piece.size, size)]
    return [
        Piece(
            tuple(tensor[span] for tensor in piece.inputs),
            tuple(tensor[span] for tensor in piece.taught),
            None if piece.labels is None else piece.labels[span],
        )
        for span in spans
    ]


def _is_of_memory(error: BaseException) -> bool:
    text = str(error)
    known = "can't allocate memory" in text or "not enough memory" in text
    return known or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _halve(run: Run, shortage: str) -> None:
    run.optimizer.zero_grad()
    torch.cuda.empty_cache()  # does nothing where CUDA was not used
    place, options = run.place, run.job.options
    if place.batch < 2 or place.batch < options.batch or run.fabric.world_size > 1 or run.job.data.fixed_batch:
        raise CandidateError(_too_little(run))
    place.batch = math.ceil(place.batch / 2)
    run.job.watch.say(
        f"memory does not suffice for a batch of {options.batch} ({shortage}); "
        f"going on with {place.batch}, twice as many a step, so that the steps stay as they were"
    )


def _too_little(run: Run) -> str:
    return (
        f"memory does not suffice for a batch of {run.place.batch}; give a smaller batch and as much more accumulate, "
        "or a smaller model"
    )
