"""How good a student is on samples that it does not learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gossamer.training.averages import holding
from gossamer.training.lessons import Piece
from gossamer.training.losses.labelled import Column, columns_of
from gossamer.training.memory import at_most, within_memory
from gossamer.training.run import Run


class Judged(NamedTuple):
    """Means over the validation samples.

    Attributes:
        loss: the weighted sum of the losses; None if it is not finite.
        right: share whose arg-max is the label's, or without labels the teacher's; None if there are no classes.
        score: what is compared between epochs; greater is better, None is worst.
    """

    loss: float | None
    right: float | None
    score: float | None


def judge(run: Run) -> Judged:
    """The student, averaged if there is an average, in eval mode; every process judges its share.

    With labels of classes the share of right answers counts, and between equals the loss; else the loss alone, as it
    tells more than arg-maxima when a teacher's outputs are at hand. With penalties it is the loss too, and they are
    part of it: of right answers the beginning often has the most.
    """
    fabric, lessons = run.fabric, run.job.validation
    own = np.arange(fabric.global_rank, len(lessons), fabric.world_size)
    size = run.job.options.batch
    steps = [own[start : start + size] for start in range(0, len(own), size)]
    sums = torch.zeros(3, dtype=torch.float64)  # loss, right, samples
    run.job.pupil.eval()
    with torch.no_grad(), holding(run.job.pupil.student, run.average), fabric.autocast():
        for pieces in lessons.in_turn(steps, size):
            sums += within_memory(run, partial(_sums, run, pieces))
    run.job.pupil.train()
    loss_sum, hits, count = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").tolist()
    loss = loss_sum / count
    if not math.isfinite(loss):
        return Judged(None, None, None)
    if hits < 0:
        return Judged(loss, None, -loss)
    right = hits / count
    if lessons.samples.labels is None or run.job.pupil.penalties is not None:
        return Judged(loss, right, -loss)
    return Judged(loss, right, right - 1e-6 * min(loss, 1e3))


def _sums(run: Run, pieces: list[Piece], most: int) -> Tensor:
    """The sums of losses, of right answers, and of samples, (3,)."""
    sums, columns = torch.zeros(3, dtype=torch.float64), columns_of(run.job.pupil.losses)
    for piece in at_most(pieces, most, run.job.validation.fixed_batch):
        here = run.fabric.to_device(piece)
        loss, outputs = run.job.pupil(here)
        sums += torch.tensor([float(loss) * piece.size, _all_hits(outputs, here, columns), piece.size])
    return sums


def _all_hits(outputs: tuple[Tensor, ...], piece: Piece, columns: Sequence[Column]) -> float:
    """How many samples' arg-max is right, the mean over tasks."""
    if piece.labels is None:
        return _hits(outputs[0], piece.taught[0].argmax(1) if _is_taught(outputs, piece) else None, piece.size)
    hits = [_hits(outputs[column.output], column.of(piece.labels), piece.size) for column in columns]
    return sum(hits) / len(hits)


def _is_taught(outputs: tuple[Tensor, ...], piece: Piece) -> bool:
    """Whether the teacher speaks of the first output."""
    return bool(piece.taught) and outputs[0].ndim > 1 and outputs[0].shape == piece.taught[0].shape


def _hits(scores: Tensor, truth: Tensor | None, size: int) -> float:
    """Of one output, positions of a sample averaged; -inf where nothing has classes."""
    if scores.ndim < 2 or scores.shape[1] < 2 or truth is None or truth.is_floating_point():
        return -np.inf
    return float((scores.argmax(1) == truth).double().reshape(size, -1).mean(1).sum())
