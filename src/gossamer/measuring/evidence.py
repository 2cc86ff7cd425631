"""What is known of the calibration split: gathered when first asked for, then kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np

from gossamer.arith.histogram import Observed
from gossamer.arith.moments import Moments
from gossamer.measuring.channels import activation_rows, channel_peaks
from gossamer.measuring.moments import moments
from gossamer.measuring.ranges import observe
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.nouns.schooling import School

KEPT_BYTES = 1_000_000_000  # of what `once` remembers

T = TypeVar("T")


class Evidence:
    """Statistics of models over one set of samples. Candidates that share a prepared model share its statistics.

    Args:
        samples: the calibration split.
        threads: of the runtime.
        school: where models are trained, if there are samples for that.
    """

    def __init__(self, samples: Samples, threads: int = 1, school: School | None = None) -> None:
        self.samples = samples
        self.threads = threads
        self.school = school
        # by identity: graphs are not hashable by content. The model is kept, so its id is not given to another.
        self._ranges: dict[tuple[int, bool], tuple[Model, dict[str, Observed]]] = {}
        self._peaks: dict[int, tuple[Model, dict[str, np.ndarray]]] = {}
        self._rows: dict[int, tuple[Model, dict[str, tuple[np.ndarray, ...]]]] = {}
        self._moments: dict[int, tuple[Model, dict[str, Moments]]] = {}
        self._made: dict[tuple[int, Hashable], tuple[Model, object]] = {}
        self._made_bytes = 0

    def ranges(self, model: Model, names: Sequence[str], histogram: bool) -> dict[str, Observed]:
        """What `observe` says of these tensors; only those not seen yet cost a pass.

        What is said without the whole histogram does not depend on whether it is known, so that the same plan always
        gives the same bytes.

        Raises:
            ModelError, DataError, CandidateError: see `observe`.
        """
        _, known = self._ranges.setdefault((id(model), histogram), (model, {}))
        missing = [name for name in names if name not in known]
        if missing:
            known.update(observe(model, missing, self.samples, histogram, self.threads))
        return {name: known[name] for name in names}

    def channel_peaks(self, model: Model, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The largest magnitude of every channel of these tensors, float64 (C,); see `channels.channel_peaks`.

        Raises:
            ModelError, DataError, CandidateError: see there.
        """
        _, known = self._peaks.setdefault(id(model), (model, {}))
        missing = [name for name in names if name not in known]
        if missing:
            known.update(channel_peaks(model, missing, self.samples, self.threads))
        return {name: known[name] for name in names}

    def activation_rows(self, model: Model, names: Sequence[str]) -> dict[str, tuple[np.ndarray, ...]]:
        """Whole rows of these tensors on the first few samples, (R, C) each; see `channels.activation_rows`.

        Raises:
            ModelError, CandidateError: see there.
        """
        _, known = self._rows.setdefault(id(model), (model, {}))
        missing = [name for name in names if name not in known]
        if missing:
            known.update(activation_rows(model, missing, self.samples, self.threads))
        return {name: known[name] for name in names}

    def moments(self, model: Model, weights: Sequence[str]) -> dict[str, Moments]:
        """What `moments` says of these weights, by initializer name; only those not seen yet cost a pass.

        The arrays are kept, and shared between weights: they must not be written to.

        Raises:
            ModelError, DataError, CandidateError: see there.
        """
        _, known = self._moments.setdefault(id(model), (model, {}))
        missing = [name for name in weights if name not in known]
        if missing:
            known.update(moments(model, missing, self.samples, self.threads))
        return {name: known[name] for name in weights}

    def once(self, model: Model, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives for this model and key; made once, and kept as long as all that is kept stays below 1 GB.

        For results of seconds of work that candidates share, such as a weight solved for a constraint.
        """
        place = (id(model), key)
        if place in self._made:
            return self._made[place][1]  # type: ignore[return-value]  # the key says which type it is
        made = make()
        size_bytes = _nbytes(made)
        if self._made_bytes + size_bytes <= KEPT_BYTES:
            self._made[place] = (model, made)
            self._made_bytes += size_bytes
        return made


def _nbytes(value: object) -> int:
    """Of the arrays in a tuple of tuples."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    return sum(map(_nbytes, value)) if isinstance(value, tuple) else 0
