"""What is known of the calibration split: gathered when first asked for, then kept."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.arith.histogram import Observed
from gossamer.measuring.ranges import observe
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples


class Evidence:
    """Statistics of models over one set of samples. Candidates that share a prepared model share its statistics.

    Args:
        samples: the calibration split.
        threads: of the runtime.
    """

    def __init__(self, samples: Samples, threads: int = 1) -> None:
        self.samples = samples
        self.threads = threads
        # by identity: graphs are not hashable by content. The model is kept, so its id is not given to another.
        self._ranges: dict[int, tuple[Model, dict[str, Observed]]] = {}

    def ranges(self, model: Model, names: Sequence[str], histogram: bool) -> dict[str, Observed]:
        """What `observe` says of these tensors; only those not seen yet, or seen without histogram, cost a pass.

        Raises:
            ModelError, DataError, CandidateError: see `observe`.
        """
        _, known = self._ranges.setdefault(id(model), (model, {}))
        missing = [n for n in names if n not in known or (histogram and known[n].counts is None)]
        if missing:
            known.update(observe(model, missing, self.samples, histogram, self.threads))
        return {name: known[name] for name in names}
