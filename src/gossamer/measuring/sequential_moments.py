"""Moments behind weights that are already compressed, stage by stage, as in GPTQ (Frantar et al. 2022).

With the float graph beside it, each layer's input is also compared with the one it should have, on two parts of the
samples, so that its weight can aim at the float graph's output: see `arith.float_target`.

A stage is all weights with equally many weighted layers in front of them. What lies in front of a stage is computed
once and held, so that all stages together cost about one pass over the samples and the counting; but tensors at a cut
that are larger than the limit are not held, and computed again from the last cut that was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gossamer.arith.float_target import Drift, pooled
from gossamer.arith.moments import Moments, pooled_moments
from gossamer.errors import DataError
from gossamer.graph.weight_matrix import WeightMatrix
from gossamer.measuring.gathering import MEMORY_BYTES, Counted, Gathering, with_named_states
from gossamer.measuring.moments import fed, find_batching, moments, take_in
from gossamer.measuring.paired_moments import IN_FLOAT, drift_of
from gossamer.measuring.skips import skip_of
from gossamer.measuring.staged import CONSTANT, Held, cut, depths
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples

HELD_BYTES = 400_000_000
EVERYWHERE = -1  # the level of weights that several levels share
PARTS = 4  # one batch of so many is held out

Drifts = tuple[Drift, Drift | None]


class Seen(NamedTuple):
    """What is known of a stage.

    Attributes:
        moments: of all samples, by initializer.
        drifts: of the weights that can aim at the float graph's output: of the samples to fit, and of those held out.
    """

    moments: dict[str, Moments]
    drifts: dict[str, Drifts]


class Part(NamedTuple):
    """Of some samples: the moments, which of them are of stacks, and what comes past the layers, by weight."""

    moments: dict[str, Moments]
    paired: frozenset[str]
    besides: dict[str, np.ndarray]


class Walk:
    """Goes through a model's weights in the order in which they act. Ask for the stages in order, each once:

        walk = Walk(model, weights, samples)
        for stage, names in enumerate(walk.stages):
            found = walk.moments(model, stage)
            ...compress the weights `names`, in `model` or in a clone that is `model` from then on...

    `walk.seen(model, stage)` gives the moments and how the inputs differ from those in the float graph.

    Between two stages only the numbers of initializers may change: nodes and tensors keep their names. A weight that
    layers of several depths share comes first, with its moments in the model as it is then.

    Args:
        weights: as for `moments`. Layers whose weights are not named are part of what lies between.
        held_bytes: of tensors at a cut, besides the samples' inputs; about twice that while a cut moves on.
        memory_bytes: of the sums of a stage.
        beside_float: compare with `model` as it is now, which is the float graph; of it as much is held. What is given
            to `seen` may be another model, with the same tensors in front of these weights.

    Attributes:
        stages: names of initializers.

    Raises:
        ModelError, DataError, CandidateError: see `moments`.
    """

    def __init__(
        self,
        model: Model,
        weights: Collection[str],
        samples: Samples,
        threads: int = 1,
        memory_bytes: int = MEMORY_BYTES,
        held_bytes: int = HELD_BYTES,
        beside_float: bool = False,
    ) -> None:
        if not len(samples):
            raise DataError(f"{samples.source}: no samples to take moments from; give at least one")
        self.samples, self.threads, self.memory_bytes = samples, threads, memory_bytes
        gathering = Gathering(model, weights, memory_bytes)
        self.layers = frozenset(use.node.name or "" for uses in gathering.uses.values() for use in uses)
        depth = depths(gathering.model, self.layers)
        self.skips: dict[str, str] = {}
        names: dict[int, list[str]] = {}
        for name, uses in gathering.uses.items():
            levels = {_level(use, depth) for use in uses}
            level = levels.pop() if len(levels) == 1 else EVERYWHERE
            names.setdefault(level, []).append(name)
            if level > 0 and len(uses) == 1 and (skip := skip_of(uses[0], depth, level)):
                self.skips[name] = skip
        self.levels = tuple(sorted(names))
        self.stages = tuple(tuple(names[level]) for level in self.levels)
        self.batching = find_batching(gathering, samples, threads)
        if beside_float and not self.batching.fixed:  # several batches, so that one can be held out
            self.batching = self.batching._replace(size=max(1, min(self.batching.size, len(samples) // PARTS)))
        batches = list(fed(samples, self.batching))
        self.marks = [(rows, where) for _, rows, where in batches]
        self.masks = [feeds[gathering.mask] if gathering.mask else None for feeds, _, _ in batches]
        self.reference = gathering.model if beside_float else None
        feeds = [feeds for feeds, _, _ in batches]
        self.held = Held(feeds, held_bytes, threads, optimize=True)
        self.float_held = Held(feeds, held_bytes, threads, optimize=True)

    def moments(self, model: Model, stage: int) -> dict[str, Moments]:
        """Of the weights of one stage, with the numbers that `model` has in front of them now.

        Raises:
            DataError, CandidateError: see `moments`.
        """
        return self.seen(model, stage, aside=False).moments

    def seen(self, model: Model, stage: int, aside: bool = True) -> Seen:
        """The moments of one stage, and how its inputs differ from those in the float graph.

        Args:
            aside: whether to look at the float graph, if there is one.

        Raises:
            DataError, CandidateError: see `moments`.
        """
        names, level = self.stages[stage], self.levels[stage]
        if level == EVERYWHERE:
            return Seen(moments(model, names, self.samples, self.threads, self.memory_bytes), {})
        reference = self.reference if aside and level > 0 else None  # at level 0 nothing has changed
        clone = with_named_states(model)
        self.held.advance(clone, cut(clone, depths(clone, self.layers), level))
        if reference is not None:
            self.float_held.advance(reference, cut(reference, depths(reference, self.layers), level))
        every = range(len(self.marks))
        held_out = every[PARTS - 1 :: PARTS] if reference is not None else range(0)
        parts = [self._taken_in(model, names, [at for at in every if at not in held_out], reference)]
        if held_out:
            parts.append(self._taken_in(model, names, held_out, reference))
        return _seen(parts)

    def _taken_in(self, model: Model, names: Sequence[str], chosen: Sequence[int], reference: Model | None) -> Part:
        skips = {} if reference is None else {name: self.skips[name] for name in names if name in self.skips}
        gathering = Gathering(model, names, self.memory_bytes, reference is not None, skips)
        take_in(gathering, self._batches(gathering, chosen, reference), self.batching)
        found = gathering.result(sum(self.marks[at][0] for at in chosen))
        return Part(found, gathering.paired, gathering.besides)

    def _batches(self, gathering: Gathering, chosen: Sequence[int], reference: Model | None) -> Iterator[Counted]:
        names = [name for name in gathering.needed if not name.endswith(IN_FLOAT)]
        in_float = [name.removesuffix(IN_FLOAT) for name in gathering.needed if name.endswith(IN_FLOAT)]
        now = _tensors(self.held, gathering.model, names, chosen)
        then = ({} for _ in chosen) if reference is None else _tensors(self.float_held, reference, names, chosen)
        for index, needed, floats in zip(chosen, now, then, strict=True):
            needed |= {name + IN_FLOAT: floats[name] for name in in_float}
            mask = self.masks[index]
            if gathering.mask and mask is not None:
                needed[gathering.mask] = mask
            yield Counted(needed, *self.marks[index])


def _tensors(held: Held, model: Model, names: Sequence[str], chosen: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
    """These tensors, batch by batch; those that are not held are computed."""
    missing = [name for name in names if name not in held.batches[0]]
    rows = held.run(model, missing, chosen) if missing else ([] for _ in chosen)
    for index, arrays in zip(chosen, rows, strict=True):
        known = dict(zip(missing, arrays, strict=True))
        yield {name: known[name] if name in known else held.batches[index][name] for name in names}


def _seen(parts: Sequence[Part]) -> Seen:
    """Of all parts of the samples together."""
    found, drifts = {}, {}
    for name, first in parts[0].moments.items():
        every = [part.moments[name] for part in parts]
        if name in parts[0].paired:
            besides = (part.besides.get(name) for part in parts)
            pairs = zip(every, besides, strict=True)
            own = [drift_of(np.asarray(each.h_GKK), each.samples, beside) for each, beside in pairs]
            drifts[name] = (own[0], own[1] if len(own) > 1 else None)
            found[name] = first._replace(h_GKK=pooled(own).h_GKK, samples=sum(each.samples for each in own))
        else:
            found[name] = pooled_moments(every)
    return Seen(found, drifts)


def _level(use: WeightMatrix, depth: dict[str, int]) -> int:
    """How many weighted layers lie in front of a use."""
    return max(depth.get(value.name or "", CONSTANT) for value in use.node.outputs) - 1
