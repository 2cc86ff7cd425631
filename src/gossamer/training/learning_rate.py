"""The learning rate: how it runs over the steps, and a test that finds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from torch.optim import Optimizer

from gossamer.errors import CandidateError
from gossamer.training.options import Options

TEST_STEPS = 40
LOWEST, HIGHEST = 1e-5, {"adamw": 0.3, "sgd": 10.0}
LEAST = {
    "adamw": 1e-4,
    "sgd": 1e-3,
}  # at the bottom of a loss all look bad, and less teaches nothing
SMOOTHING = 0.8  # of the losses, against the noise between batches
WORSE = 2.0  # times the least loss: here the test ends
BACK = 4  # the rate of the least loss, divided by this, is safe for many steps


def rate_at(step: int, steps: int, options: Options, peak: float) -> float:
    """The rate of one step out of all: a function of the step alone, so that nothing of it has to be kept.

    It rises in a line, then stays, or falls along half a cosine (Loshchilov and Hutter 2017).
    """
    rising = math.ceil(steps * options.warm_up)
    if step < rising:
        return peak * (step + 1) / rising
    if options.schedule == "constant":
        return peak
    return peak * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """The same rate for all parameters, but for groups that have a ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]


def range_test(step: Callable[[int, float], float], optimizer: str) -> float:
    """The rate to train with (Smith 2017): rates rise step by step until the loss does, too.

    Args:
        step: number of the step and rate -> the loss before that step; not finite once it has diverged.
        optimizer: adamw or sgd, which says how high to go.

    Raises:
        CandidateError: the loss is not finite from the start.
    """
    highest = HIGHEST[optimizer]
    rates = [LOWEST * (highest / LOWEST) ** (index / (TEST_STEPS - 1)) for index in range(TEST_STEPS)]
    losses: list[float] = []
    for index, rate in enumerate(rates):
        loss = step(index, rate)
        if not math.isfinite(loss):
            break
        losses.append(loss)
        smooth = smoothed(losses)
        if smooth[-1] > WORSE * min(smooth) and index > TEST_STEPS // 10:
            break
    if not losses:
        raise CandidateError(
            "the loss is NaN or infinite before the first step; look at the model's outputs on this data"
        )
    return max(pick(rates, losses), LEAST[optimizer])


def pick(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at the least smoothed loss, and a safe way back from it; `losses` may be shorter."""
    smooth = smoothed(losses)
    return rates[smooth.index(min(smooth))] / BACK


def smoothed(losses: Sequence[float]) -> list[float]:
    """The exponential moving average, without its pull to zero in the beginning."""
    sums = accumulate(losses, lambda past, loss: SMOOTHING * past + (1 - SMOOTHING) * loss, initial=0.0)
    return [value / (1 - SMOOTHING**count) for count, value in enumerate(sums) if count]
