"""Which epoch's weights are kept, where not the score alone says it: zeros on their way, and penalties that go too far.

All of it is asked between two epochs, and depends on nothing but the weights and the place, so that a run that was
killed goes on as it was.
"""

from __future__ import annotations

from gossamer.errors import CandidateError
from gossamer.training.learning_rate import rate_at
from gossamer.training.run import Run
from gossamer.training.sparsity.contract import Moment


def is_best(run: Run, score: float | None, at: Moment) -> bool:
    """Whether the student is to be kept: it scores best, or nothing that was kept counts yet."""
    if _driven_to_zero(run, at):
        return False
    best = run.place.best_score
    return best is None or (score is not None and score > best)


def is_settled(run: Run, at: Moment) -> bool:
    """Whether the student is as sparse as it is to be; until then the last epoch is kept, whatever its score."""
    shaper = run.job.pupil.shaper
    return shaper is None or shaper.settled(at)


def is_ruined(run: Run, at: Moment) -> bool:
    """Whether penalties drove a layer to zero, from where it would not come back; then the best so far is kept.

    Raises:
        CandidateError: nothing is better than the beginning.
    """
    place, penalties = run.place, run.job.pupil.penalties
    layer = _driven_to_zero(run, at) if place.step == 0 else ""
    if not layer or penalties is None:
        return False
    said = f"penalty {penalties.text} drove all weights of {layer} to zero in epoch {place.epoch}; lower it"
    if not place.best_epoch or place.best_score is None:
        raise CandidateError(said)
    if run.fabric.is_global_zero:
        run.job.watch.say(f"{said}; going on with the best so far, that of epoch {place.best_epoch}")
    return True


def _driven_to_zero(run: Run, at: Moment) -> str:
    """The first layer that penalties left without weights, by name, or ""."""
    penalties = run.job.pupil.penalties
    if penalties is None or run.place.epoch == 0:
        return ""
    return penalties.driven_to_zero(rate_at(at.done, at.total, run.job.options, run.place.rate))
