"""Every weight and what it could become: predicted noise of the network's outputs, and stored bytes.

The noise of an option is the objective over the energy of the layer's outputs, times the layer's gain, which was
measured. Noises of layers are summed, as if they were independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np

from gossamer.arith.forms import floats_of
from gossamer.arith.moments import Moments, loss
from gossamer.constraints.composed import Composed
from gossamer.constraints.contract import Constraint
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.graph import factored_form
from gossamer.graph.weight_matrix import WeightMatrix
from gossamer.graph.weight_uses import OPERATORS, read_alike, weight_uses
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.output_noise import output_noise
from gossamer.nouns.model import Model
from gossamer.planning.sensitivity import gains
from gossamer.solvers import nearest
from gossamer.solvers.options import Option, Solve, options
from gossamer.solving import matrix_of, solved_once

SAMPLES = 32  # for gains: noise is a mean over many values
REFERENCE = 0.01  # noise over signal of a layer that is disturbed: far above rounding, far below where nets fall apart
ESTIMATED = "estimated, as time was short"
BETWEEN = "on the curve through those that were solved"


class Entry(NamedTuple):
    """A weight.

    Attributes:
        weight: its initializer.
        nodes: its readers, in graph order.
        options: float first, then every constraint that can apply.
        gain: noise over signal of the network's outputs, over that of the layer's.
    """

    weight: str
    nodes: tuple[str, ...]
    options: tuple[Option, ...]
    gain: float = 1.0

    def noise_ratios(self) -> np.ndarray:
        """Predicted noise over signal of the network's outputs, of every option, float64."""
        return self.gain * np.array([option.noise_ratio for option in self.options])


# weight (G, O, K), its moments, what K was made of, how to solve or None where time is short, entries so far -> options
Offer = Callable[
    [np.ndarray, Moments, tuple[int, ...], Solve | None, Sequence[Entry]],
    tuple[Option, ...],
]


def ledger(
    model: Model,
    evidence: Evidence,
    offer: Offer,
    skip: Sequence[str] = (),
    budget_s: float = 120.0,
    clock: Callable[[], float] = perf_counter,
) -> tuple[Entry, ...]:
    """Solve for what every weight could become, and measure gains.

    Args:
        model: with constants and norms folded, as the plan's first steps leave it.
        offer: what that is: `each` of some constraints, or a `rate_ladder`.
        skip: nodes that stay as they are.
        budget_s: of which solving takes up to three quarters; after that, losses are estimated from other weights'.

    Raises:
        ModelError, DataError, CandidateError: see `Evidence.moments` and `output_noise`.
    """
    begin = clock()
    uses = uses_of(model, skip)
    moments = evidence.moments(model, list(uses))
    solved: list[Entry] = []
    for weight in sorted(uses, key=lambda one: -math.prod(uses[one][0].shape_GOK)):  # what is estimated shall be small
        late = clock() - begin > 0.75 * budget_s
        solve = None if late else partial(solved_once, evidence, model, weight)
        found = offer(matrix_of(uses[weight][0]), moments[weight], uses[weight][0].k_shape, solve, solved)
        found = tuple(option for option in found if not _is_whole(uses[weight], option.constraint))
        solved.append(Entry(weight, tuple(use.node.name or "" for use in uses[weight]), found))
    by_weight = {entry.weight: entry for entry in solved}
    entries = [by_weight[weight] for weight in uses]
    return _with_gains(entries, uses, moments, model, evidence, begin + budget_s - clock(), clock)


def each(constraints: Sequence[Constraint], thin: Sequence[float] = (), then: Grid = Grid(4)) -> Offer:  # noqa: B008
    """An offer of these constraints to every weight, as far as they can apply to its shape.

    Args:
        thin: and of factors of low rank, of so great a share of the weights that they stand for.
        then: the grid of the factors.
    """

    def offer(
        w_GOK: np.ndarray, moments: Moments, k_shape: tuple[int, ...], solve: Solve | None, solved: Sequence[Entry]
    ) -> tuple[Option, ...]:
        _, rows, columns = w_GOK.shape
        ranks = dict.fromkeys(int(share * rows * columns / (rows + columns)) for share in thin)
        thinner = [Composed(LowRank(rank), then) for rank in ranks if rank > 0]
        found = options(w_GOK, (*constraints, *thinner), moments, solve or nearest.solve, k_shape)
        return found if solve else _estimated(found, solved)

    return offer


def uses_of(model: Model, skip: Sequence[str] = ()) -> dict[str, list[WeightMatrix]]:
    """Initializer -> its readers, of weights that all of these see as the same matrix."""
    nodes = (node for node in model.ir.graph if node.op_type in OPERATORS and node.name not in skip)
    found = weight_uses(nodes, embeddings=True).uses
    return {weight.name or "": readers for weight, readers in found.items() if read_alike(readers)}


def _is_whole(uses: Sequence[WeightMatrix], constraint: Constraint | None) -> bool:
    """Whether a weight would stay whole that was to be taken apart."""
    apart = isinstance(constraint, Composed) and isinstance(constraint.first, LowRank)
    return apart and bool(factored_form.obstacle(uses))


def _estimated(found: Sequence[Option], solved: Sequence[Entry]) -> tuple[Option, ...]:
    """Losses of the nearest point, times what solving gained elsewhere under the same constraint."""
    shares: dict[Constraint | None, list[float]] = {}
    for other in solved:
        for option in other.options:
            if option.nearest_loss > 0 and option.reason != ESTIMATED:
                shares.setdefault(option.constraint, []).append(option.loss / option.nearest_loss)
    return tuple(
        option._replace(loss=option.loss * float(np.median(shares.get(option.constraint, [1.0]))), reason=ESTIMATED)
        for option in found
    )


def _with_gains(
    entries: Sequence[Entry],
    uses: Mapping[str, list[WeightMatrix]],
    moments: Mapping[str, Moments],
    model: Model,
    evidence: Evidence,
    budget_s: float,
    clock: Callable[[], float],
) -> tuple[Entry, ...]:
    """Every weight disturbed alone, by the option whose noise is closest to the reference.

    By the solver's own answer to it, as the outputs hear the biased errors of plain rounding up to twice as loud.
    """
    references = {entry.weight: _reference(entry) for entry in entries}
    known = {weight: option for weight, option in references.items() if option is not None}
    noise = output_noise(model, list(known), evidence.samples.first(SAMPLES), evidence.threads)

    def measure(weight: str) -> float:
        use, chosen = uses[weight][0], known[weight].constraint
        if chosen is None:
            return 0.0
        w_GOK = matrix_of(use)
        real_GOK = floats_of(solved_once(evidence, model, weight, w_GOK, chosen, moments[weight], use.k_shape).form)
        seen_ratio = float(loss(w_GOK - real_GOK, moments[weight]).sum()) / known[weight].zero_loss
        heard_ratio = noise({weight: use.from_matrix(real_GOK)})  # of these samples, as that is
        return heard_ratio * known[weight].noise_ratio / seen_ratio if seen_ratio > 0 else 0.0

    ratios = {weight: option.noise_ratio for weight, option in known.items()}
    found = gains(list(known), ratios, measure, max(budget_s, 0.0), clock)
    return tuple(entry._replace(gain=found.get(entry.weight, 1.0)) for entry in entries)


def _reference(entry: Entry) -> Option | None:
    noisy = [option for option in entry.options if option.noise_ratio > 0]
    noisy = [option for option in noisy if option.reason not in (ESTIMATED, BETWEEN)] or noisy  # solved already
    return min(noisy, key=lambda one: abs(np.log(one.noise_ratio / REFERENCE)), default=None)
