"""One option for every layer: the least predicted loss within a limit on size or latency.

The multiple-choice knapsack (Sinha and Zoltners 1979), as SPDY (Frantar and Alistarh 2022) uses it for sparsity. A
Lagrange multiplier gives a bound on what any allocation can reach and, with a greedy allocation beside it, rules most
options out. Dynamic programming over partial allocations, of which only those stay that no other beats in both cost
and loss, settles the rest. Costs are never rounded; where more than `STATES` partial allocations stay, each stretch of
the cost axis keeps its best one, so that the result is no worse than the optimum for a limit smaller by one such
stretch a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gossamer.errors import OptionError

STATES = 4000  # partial allocations kept at most
BISECTIONS = 60  # of the multiplier, on a logarithmic scale
NEAR = 1e-5  # relative: as close to the bound as any prediction deserves; there the search is left out
SLACK = 1e-12  # relative: sums of floats


class Allocation(NamedTuple):
    """An option for every layer.

    Attributes:
        choices: place of the option, layer by layer.
        loss, cost: summed over layers; the cost is within the limit.
        least_loss: no allocation within the limit has less loss than this.
    """

    choices: tuple[int, ...]
    loss: float
    cost: float
    least_loss: float


class _Table(NamedTuple):
    """Options of all layers as matrices (L, J), by rising cost and falling loss.

    Rows with fewer than J options repeat their last; `places_LJ` says where each option was in the lists given.
    """

    loss_LJ: np.ndarray
    cost_LJ: np.ndarray
    places_LJ: np.ndarray


class _Bound(NamedTuple):
    """What Lagrange's multiplier says.

    Attributes:
        multiplier: loss that a unit of cost is worth.
        least_loss: of any allocation within the limit.
        excess_LJ: how much taking an option instead of its layer's best one adds to that.
        best_L: each layer's least loss + multiplier * cost.
        choices_L: a feasible allocation.
    """

    multiplier: float
    least_loss: float
    excess_LJ: np.ndarray
    best_L: np.ndarray
    choices_L: np.ndarray


def allocate(
    losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], limit: float, unit: str = "bytes"
) -> Allocation:
    """The least summed loss whose summed cost is within the limit.

    Args:
        losses, costs: of every option, a float array (options,) for each layer; an option whose loss or cost is not
            finite is left out.
        limit: of the summed cost.
        unit: of costs, for the message.

    Raises:
        OptionError: no allocation is within the limit; the text says the smallest reachable cost and its loss. Or a
            layer has no option.
    """
    table = _table(losses, costs)
    least = _allocation(table, np.zeros(len(losses), np.intp), 0.0)
    if not least.cost <= limit:
        raise OptionError(
            f"{limit:,.6g} {unit} cannot be reached: the smallest is {least.cost:,.6g} {unit}, at a predicted loss of "
            f"{least.loss:.3g}; allow at least that much, or more kinds of compression"
        )
    bound = _lagrange(table, limit)
    greedy = _allocation(table, _filled(table, bound.choices_L, limit), bound.least_loss)
    if greedy.loss - bound.least_loss <= NEAR * abs(greedy.loss):
        return greedy
    return _searched(table, bound, greedy, limit)


def cheapest(
    losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], max_loss: float, unit: str = "of loss"
) -> Allocation:
    """The least summed cost whose summed loss is within `max_loss`; `least_loss` is the least loss of all then.

    Raises:
        OptionError: no allocation is; the text says the smallest reachable loss and its cost. Or a layer has no option.
    """
    try:
        found = allocate(costs, losses, max_loss, unit)
    except OptionError as error:
        raise OptionError(str(error).replace("at a predicted loss of", "at a cost of")) from error
    least_loss = sum((float(loss[np.isfinite(loss)].min()) for loss in map(np.asarray, losses)), 0.0)
    return Allocation(found.choices, found.cost, found.loss, least_loss)


def _table(losses: Sequence[np.ndarray], costs: Sequence[np.ndarray]) -> _Table:
    """The options that no other of their layer beats."""
    rows = [_row(layer, *both) for layer, both in enumerate(zip(losses, costs, strict=True))]
    widest = max((len(places) for places in rows), default=1)
    places_LJ = np.array([np.append(row, np.full(widest - len(row), row[-1])) for row in rows], np.intp)
    places_LJ = places_LJ.reshape(len(rows), widest)
    loss_LJ, cost_LJ = (
        np.array([np.asarray(one, np.float64)[places] for one, places in zip(given, places_LJ, strict=True)])
        for given in (losses, costs)
    )
    return _Table(loss_LJ.reshape(places_LJ.shape), cost_LJ.reshape(places_LJ.shape), places_LJ)


def _row(layer: int, loss_J: np.ndarray, cost_J: np.ndarray) -> np.ndarray:
    if len(loss_J) != len(cost_J):
        raise OptionError(f"layer {layer} has {len(loss_J)} losses and {len(cost_J)} costs; each option needs both")
    usable = np.flatnonzero(np.isfinite(loss_J) & np.isfinite(cost_J))
    if not len(usable):
        raise OptionError(f"layer {layer} has no option with a finite loss and cost; leave it out or keep it in float")
    loss_J, cost_J = np.asarray(loss_J, np.float64), np.asarray(cost_J, np.float64)
    return _unbeaten(cost_J, loss_J, usable[np.argsort(loss_J[usable], kind="stable")])


def _allocation(table: _Table, choices_L: np.ndarray, least_loss: float) -> Allocation:
    """Summed in the order of layers, as the search sums."""
    at = np.arange(len(choices_L))
    loss, cost = (sum(part[at, choices_L].tolist(), 0.0) for part in (table.loss_LJ, table.cost_LJ))
    return Allocation(tuple(table.places_LJ[at, choices_L].tolist()), loss, cost, least_loss)


def _lagrange(table: _Table, limit: float) -> _Bound:
    """Bisect the multiplier until the allocation it chooses is just within the limit."""
    at, last = np.arange(len(table.cost_LJ)), table.cost_LJ.shape[1] - 1

    def within(choices_L: np.ndarray) -> bool:
        return sum(table.cost_LJ[at, choices_L].tolist(), 0.0) <= limit

    truest_L = np.full(len(at), last)
    if within(truest_L):
        return _bound(table, 0.0, truest_L, limit)
    steps = np.diff(table.cost_LJ, axis=1)
    high = 2.0 * float(np.ptp(table.loss_LJ, axis=1).max() / steps[steps > 0].min())  # every layer's cheapest
    low, chosen_L = high * 1e-18, np.zeros(len(at), np.intp)
    for _ in range(BISECTIONS):
        middle = float(np.sqrt(low) * np.sqrt(high))
        choices_L = (table.loss_LJ + middle * table.cost_LJ).argmin(axis=1)
        if within(choices_L):
            high, chosen_L = middle, choices_L
        else:
            low = middle
    return max((_bound(table, one, chosen_L, limit) for one in (low, high)), key=lambda bound: bound.least_loss)


def _bound(table: _Table, multiplier: float, choices_L: np.ndarray, limit: float) -> _Bound:
    paid_LJ = table.loss_LJ + multiplier * table.cost_LJ
    best_L = paid_LJ.min(axis=1)
    return _Bound(multiplier, float(best_L.sum() - multiplier * limit), paid_LJ - best_L[:, None], best_L, choices_L)


def _filled(table: _Table, choices_L: np.ndarray, limit: float) -> np.ndarray:
    """Spend what is left of the limit: time and again the option that takes most loss away for its extra cost."""
    choices_L, at = choices_L.copy(), np.arange(len(choices_L))
    for _ in range(table.loss_LJ.size):
        loss_L1, cost_L1 = (part[at, choices_L][:, None] for part in (table.loss_LJ, table.cost_LJ))
        left = limit - sum(cost_L1[:, 0].tolist(), 0.0)
        gain_LJ, extra_LJ = loss_L1 - table.loss_LJ, table.cost_LJ - cost_L1
        allowed = (gain_LJ > SLACK * np.abs(loss_L1)) & (extra_LJ <= left)
        if not allowed.any():
            break
        worth_LJ = np.divide(gain_LJ, extra_LJ, out=np.full(gain_LJ.shape, -1.0), where=allowed & (extra_LJ > 0))
        layer, option = np.unravel_index(worth_LJ.argmax(), worth_LJ.shape)
        before = choices_L[layer]
        choices_L[layer] = option
        if _allocation(table, choices_L, 0.0).cost > limit:  # by the last bit of a sum
            choices_L[layer] = before
            break
    return choices_L


def _searched(table: _Table, bound: _Bound, greedy: Allocation, limit: float) -> Allocation:
    """Dynamic programming, layer by layer, over what the bound has not ruled out."""
    ceiling = greedy.loss - bound.least_loss
    ceiling += SLACK * (abs(greedy.loss) + abs(bound.least_loss) + bound.multiplier * abs(limit))
    after_cost_L = _sums_behind(table.cost_LJ.min(axis=1))
    after_best_L = _sums_behind(bound.best_L)
    start = bound.least_loss + bound.multiplier * limit
    cost_S, loss_S = np.zeros(1), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    exact = True
    for layer, excess_J in enumerate(bound.excess_LJ):
        options = np.flatnonzero(excess_J <= ceiling)
        cost_X = (cost_S[:, None] + table.cost_LJ[layer, options]).ravel()
        loss_X = (loss_S[:, None] + table.loss_LJ[layer, options]).ravel()
        hope_X = loss_X + bound.multiplier * cost_X + (after_best_L[layer] - start)
        kept = np.flatnonzero((hope_X <= ceiling) & (cost_X + after_cost_L[layer] <= limit * (1 + SLACK)))
        kept = _unbeaten(cost_X, loss_X, kept) if len(options) > 1 else kept
        if len(kept) > STATES:
            kept, exact = _thinned(cost_X, kept), False
        if not len(kept):
            return greedy
        history.append((kept // len(options), options[kept % len(options)]))
        cost_S, loss_S = cost_X[kept], loss_X[kept]
    within = np.where(cost_S <= limit, loss_S, np.inf)
    state = int(within.argmin())
    if not within[state] < greedy.loss:
        return greedy._replace(least_loss=greedy.loss if exact else greedy.least_loss)
    least = float(within[state]) if exact else bound.least_loss
    return _allocation(table, _traced(history, state), least)


def _sums_behind(values_L: np.ndarray) -> np.ndarray:
    """For each layer, the sum over the layers that follow it."""
    return np.concatenate([np.cumsum(values_L[::-1])[::-1][1:], [0.0]])


def _unbeaten(cost_X: np.ndarray, loss_X: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Of some partial allocations those that none beats in both cost and loss, by rising cost."""
    ordered = kept[np.argsort(cost_X[kept], kind="stable")]
    loss = loss_X[ordered]
    least_before = np.minimum.accumulate(np.concatenate([[np.inf], loss[:-1]]))
    return np.asarray(ordered[loss < least_before])


def _thinned(cost_X: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The last, and so the best, of each of `STATES` stretches of the cost axis."""
    cost = cost_X[kept]
    stretch = np.floor((cost - cost[0]) / (cost[-1] - cost[0]) * STATES)
    return np.asarray(kept[np.append(np.diff(stretch) > 0, True)])


def _traced(history: Sequence[tuple[np.ndarray, np.ndarray]], state: int) -> np.ndarray:
    """The options that led to a final state."""
    choices = []
    for parents_S, options_S in reversed(history):
        choices.append(int(options_S[state]))
        state = int(parents_S[state])
    return np.array(choices[::-1])
