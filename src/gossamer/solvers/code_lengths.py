"""Code lengths in the choice of integers: what a bit costs is weighed against the loss, unknown by unknown.

As in CERWU (2025), the sweep that GPTQ (Frantar et al., 2022) makes takes of each weight not the nearest level but the
one of least  d (w - q)^2 + price(q),  d the loss that an error costs once the columns to come have made up for it.
Arrays are (G, K, O), as in `arith.lattice`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gossamer.arith import entropy
from gossamer.arith.forms import Indexed
from gossamer.arith.lattice import Choose, Lattice
from gossamer.arith.moments import Moments, loss
from gossamer.arith.weight_grid import Grid
from gossamer.solvers.input_steps import AN_OCTAVE

_FEW = 8  # levels that are all tried
_UNSEEN = 0.5  # times that a level counts as seen beyond those it was, at most
_UNSEEN_ALL = 0.02  # of all weights, for all levels together, at most


class Prices(NamedTuple):
    """What each integer costs, in the unit of the loss.

    Attributes:
        price_V: of integers from `low` on; all of infinite rate are finite numbers still.
        low: the first integer.
    """

    price_V: np.ndarray
    low: int

    def of(self, integers: np.ndarray) -> np.ndarray:
        """The price of each integer, float64."""
        return np.asarray(self.price_V[integers.astype(np.intp) - self.low])


def lagrangian(form: Grid | Indexed, w_GOK: np.ndarray, moments: Moments, rate: float) -> float:
    """Loss + rate * bits, these as `written_bits` has them."""
    lost = loss(np.asarray(w_GOK, np.float64) - form.real().reshape(w_GOK.shape), moments)
    return float(lost.sum()) + rate * written_bits(form)


def written_bits(form: Grid | Indexed) -> float:
    """Of all integers together, or of all indices; of inputs with steps of their own, step by step.

    How large the integers of an input are follows from its step, and an archive tells columns apart by that.
    """
    if not isinstance(form, Grid):
        return entropy.entropy_bits(form.indices_GOV)
    if form.scale.shape[1:] != (1, form.integers.shape[-1]) or form.scale.shape[2] == 1:
        return entropy.integer_bits(form.integers)
    octaves = np.broadcast_to(np.round(np.log2(form.scale) * AN_OCTAVE), form.integers.shape)
    return sum(entropy.integer_bits(form.integers[octaves == one]) for one in np.unique(octaves))


def prices_of(integers: np.ndarray, low: int, high: int, rate: float, indices: bool = False) -> Prices:
    """Prices under the code that is best for these integers; levels that do not occur count as seen a little.

    Args:
        rate: the loss that one bit is worth.
        indices: neighbours have nothing in common; else they share cells, see `arith.entropy.cells_of`.
    """
    levels = high - low + 1
    counts, doublings = np.bincount(integers.astype(np.intp).ravel() - low, minlength=levels), 0
    if not indices:
        counts, doublings = entropy.cells_of(counts)
    unseen = min(_UNSEEN, _UNSEEN_ALL * integers.size / len(counts))
    bits_V = np.log2((integers.size + unseen * len(counts)) / (counts + unseen)) + doublings
    return Prices(rate * np.repeat(bits_V, 1 << doublings)[:levels], low)


def choose(
    wanted: np.ndarray, lattice: Lattice, worth: np.ndarray, prices: Prices, now: np.ndarray | None = None
) -> np.ndarray:
    """For every number alone the integer of least worth * (wanted - value)^2 + price, float32.

    Among the levels around the number, the one before them on the way to zero, and zero; where there are few, among
    all of them.

    Args:
        worth: broadcasts against `wanted`, as the arrays of the lattice do.
        now: integers that are to be among the candidates as well.
    """
    if lattice.high - lattice.low < _FEW:
        each = np.arange(lattice.low, lattice.high + 1, dtype=np.float32).reshape(-1, *(1,) * wanted.ndim)
        tried = np.broadcast_to(each, (len(each), *wanted.shape))
    else:
        with np.errstate(over="ignore", under="ignore"):  # a quotient beyond float32 saturates like any other
            steps = wanted.astype(np.float32) / lattice.scale_GKO
        size, sign = np.floor(np.abs(steps)), np.copysign(np.float32(1), steps)
        inward = [lattice.zero_GKO + sign * np.maximum(size + by, 0) for by in (1, 0, -1)]
        rest = [np.broadcast_to(lattice.zero_GKO, wanted.shape)] + ([] if now is None else [now])
        tried = np.clip(np.stack(inward + rest), lattice.low, lattice.high).astype(np.float32)
    cost = worth * (wanted - lattice.values(tried)) ** 2 + prices.of(tried)
    best, least = tried[0], cost[0]
    for other, price in zip(tried[1:], cost[1:], strict=True):  # half the time of argmin
        best, least = np.where(price < least, other, best), np.minimum(price, least)
    return best if lattice.keep_GKO is None else np.where(lattice.keep_GKO, best, lattice.zero_GKO).astype(np.float32)


def priced(rows_GO: np.ndarray, prices: Prices) -> Choose:
    """The choice of `choose` for `arith.lattice`'s sweep and descent.

    Args:
        rows_GO: what the loss of each row counts.
    """

    def chosen(wanted: np.ndarray, column: Lattice, worth: np.ndarray, now: np.ndarray | None) -> np.ndarray:
        return choose(wanted, column, worth * rows_GO, prices, now)

    return chosen
