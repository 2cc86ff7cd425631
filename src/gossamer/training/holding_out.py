"""Samples that training does not learn from: some choose the epoch, others verify what comes out."""

from __future__ import annotations

import numpy as np

from gossamer.errors import DataError
from gossamer.intake.splits import equal_samples, fill
from gossamer.nouns.samples import Samples

FEWEST = 10
SHARE = 10  # one in so many
MOST = 2000


def hold_out(samples: Samples, seed: int = 0, parts: int = 1) -> tuple[list[Samples], Samples]:
    """Parts of a tenth of the samples each, at most 2000, and the rest to learn from.

    Samples of equal content count as one and stay in one part, so that nothing that was learnt is asked again. The
    parts keep the samples' order; the same seed gives the same parts.

    Raises:
        DataError: fewer than ten different samples.
    """
    groups = equal_samples(samples)
    if len(groups) < FEWEST:
        raise DataError(
            f"{samples.source}: {len(groups)} different samples; training needs {FEWEST} at least, "
            "and hundreds to be worth it"
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    size = min(MOST, len(samples) // SHARE)
    *held, rest = fill([groups[place] for place in order], (size,) * parts)
    return [samples.take(places) for places in held], samples.take(rest)
