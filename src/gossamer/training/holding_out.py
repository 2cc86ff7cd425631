"""Samples that training does not learn from: some choose the epoch, others verify what comes out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gossamer.errors import DataError
from gossamer.intake.splits import equal_samples, fill, without
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


def keep_apart(samples: Samples, measured: Sequence[Samples]) -> tuple[Samples, tuple[str, ...]]:
    """The samples without those that results are measured on, as what is known by heart proves nothing; and a note.

    Raises:
        DataError: none is left.
    """
    left = without(samples, measured)
    if not len(left):
        raise DataError(
            f"{samples.source}: all samples of --train-data are among those of --data, which measure the result; "
            "give others to learn from"
        )
    if len(left) == len(samples):
        return samples, ()
    gone = len(samples) - len(left)
    return left, (f"{gone:,} of {len(samples):,} training samples also measure the result: left out",)
