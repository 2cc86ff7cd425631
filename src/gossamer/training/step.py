"""One step of training: gradients of a step's samples, and the change that they make."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from gossamer.errors import CandidateError
from gossamer.training.lessons import Piece
from gossamer.training.memory import at_most, within_memory
from gossamer.training.nonfinite import first_nonfinite
from gossamer.training.run import Run
from gossamer.training.sparsity.contract import Moment


def seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of a step (dropout) come from its number alone, so that no generator's state has to be kept."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def take_step(
    run: Run, pieces: Sequence[Piece], count: int, at: Moment | None = None, may_diverge: bool = False
) -> float:
    """One step of the optimizer; the mean loss over this process's samples before it.

    Args:
        pieces: this process's share of the step's samples.
        count: samples of the whole step, over all processes.
        at: where the run is; None for a step that is taken back.
        may_diverge: a loss that is not finite is given back, and nothing changed.

    Raises:
        CandidateError: a loss that is not finite, with the layer where it began; or want of memory.
    """
    parts: list[Piece] = []

    def whole_step(most: int) -> float:
        parts[:] = at_most(pieces, most, run.job.data.fixed_batch)
        return gradients(run, parts, count)

    loss = within_memory(run, whole_step)
    if not math.isfinite(loss) and may_diverge:
        return loss
    if not math.isfinite(loss):
        raise CandidateError(_diverged(run, parts))
    shaper = run.job.pupil.shaper
    if shaper is not None:
        shaper.after_backward(at)
    if run.job.options.clip:
        run.fabric.clip_gradients(run.wrapped, run.optimizer, max_norm=run.job.options.clip, error_if_nonfinite=False)
    run.optimizer.step()
    if shaper is not None:
        shaper.after_step(at)
    return loss


def gradients(run: Run, parts: Sequence[Piece], count: int) -> float:
    """Gradients of the mean loss over a whole step's samples; the mean over this process's."""
    world = run.fabric.world_size
    seen = sum(part.size for part in parts)
    whole = world * seen if run.job.data.fixed_batch else count  # parts of a fixed batch may have been filled up
    run.optimizer.zero_grad()
    total = torch.zeros((), device=run.fabric.device)
    for index, part in enumerate(parts):
        alone = world > 1 and index < len(parts) - 1  # processes share their gradients once a step
        with run.fabric.no_backward_sync(run.wrapped, enabled=alone) if world > 1 else torch.enable_grad():
            loss, _ = run.wrapped(run.fabric.to_device(part))
            run.fabric.backward(loss * (part.size * world / whole))
        total += loss.detach() * part.size
    return float(total) / seen


def _diverged(run: Run, parts: Sequence[Piece]) -> str:
    """What to say of a loss that is not finite."""
    student = run.job.pupil.student
    found = (first_nonfinite(student, run.fabric.to_device(part)) for part in parts)
    layer = next(filter(None, found), "")
    begun = f"{layer} is the first that is not finite" if layer else "all layers are finite, the loss itself is not"
    place = run.place
    return (
        f"the loss became NaN or infinite in epoch {place.epoch + 1}, step {place.step + 1}: {begun}; "
        f"the best weights so far are kept; lower the rate (it was at most {place.rate:.3g}) or clip"
    )
