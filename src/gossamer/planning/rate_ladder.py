"""What a weight would take in an archive at several rates, and what noise that costs: a ladder for the allocation.

A grid at a rate gives the noise that its rate asks for. With N weights whose noise falls by 6 dB a bit, the rate at
which the last bit of each is worth its noise D (over signal) is  2 ln 2 D / N,  and measured noise is within 1 dB of
that. So a grid is solved at three rates, and the rungs between lie on a curve through these; codebooks and vectors of
them are solved at the noise where they come close. Rates are the same few numbers for all weights, five in a decade:
two weights of one node must agree on one.

One scale serves a whole matrix: all its rows hear the same inputs, so that an error costs the same in each, and the
step that is best for loss + rate * bits is the same for all (Gish and Pierce, 1968). Scales of rows would have to be
written, too. Tables have them, as an error in a row costs what the row is looked up for; and so have the lowest noises,
where 256 steps of one size do not reach the largest weights. There theory is all that rungs need: 6 dB a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import msgspec
import numpy as np

from gossamer.arith.entropy import entropy_bits
from gossamer.arith.forms import Indexed, stored_bits
from gossamer.arith.moments import Moments, loss
from gossamer.arith.weight_grid import Grid as OnGrid
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.grid import Grid
from gossamer.planning.ledger import BETWEEN, ESTIMATED, Entry
from gossamer.solvers.contract import Solved
from gossamer.solvers.options import Option, Solve

STEPS = 5  # of rates in a decade: two decibels each
RUNGS_DB = np.arange(-46.0, -7.0, 10 / STEPS)
FINE = 7  # rungs from the lowest noise on, with scales of rows
FINE_ANCHOR = 3
ANCHORS = (9, 13, 18)  # of the others: those that are solved
RIVALS = ((Codebook(16), 13), (Codebook(16), 18), (Codebook(64, dimension=2), 18))
DB_A_BIT = 20 * np.log10(2)
MOST_OF_RIVALS = 20_000  # weights: of 60 larger ones none came out more than 2 % smaller so, and they take long
FLOAT_BITS = 17  # of a scale or table entry in an archive, once rounded: see passes.round_floats


def ladder(
    w_GOK: np.ndarray, moments: Moments, k_shape: tuple[int, ...], solve: Solve | None, solved: Sequence[Entry]
) -> tuple[Option, ...]:
    """The weight left in float, and on every rung; `stored_bytes` are those of an archive, at order-0 entropies.

    Args:
        solve: None where time is short: then sizes are those of weights that were `solved`, for as many weights.
    """
    signal = float(loss(w_GOK, moments).sum())
    whole = Option(None, 0.0, 0.0, signal, 4 * w_GOK.size)
    if not signal > 0 or not w_GOK.size:
        return whole, Option(Grid(2), 0.0, 0.0, signal, 1)  # whatever it is, no output hears of it
    coarse = Grid(8, granularity="tensor" if moments.rows_GO is None else "channel")
    if solve is None:
        return whole, *_estimated(coarse, w_GOK.size, signal, solved)
    asked: list[tuple[Grid | Codebook, int]] = [(Grid(8), FINE_ANCHOR), *((coarse, rung) for rung in ANCHORS)]
    asked += [one for one in RIVALS if w_GOK.size <= MOST_OF_RIVALS and not one[0].obstacle(w_GOK.shape)]
    found = [_option(on_rung(*one, w_GOK.size), solve, w_GOK, moments, k_shape) for one in asked]
    fine, anchors, rivals = found[0], found[1 : 1 + len(ANCHORS)], found[1 + len(ANCHORS) :]
    return whole, *_fine_rungs(w_GOK.size, fine), *_coarse_rungs(coarse, w_GOK.size, anchors), *rivals


def on_rung(constraint: Grid | Codebook, rung: int, weights: int) -> Grid | Codebook:
    """The constraint at the rate that leads to the noise of a rung, give or take a decibel."""
    first = round(STEPS * np.log10(2 * np.log(2) * 10 ** (RUNGS_DB[0] / 10) / weights))
    return msgspec.structs.replace(constraint, rate=min(float(f"{10 ** ((first + rung) / STEPS):.1e}"), 1.0))


def _option(
    constraint: Grid | Codebook, solve: Solve, w_GOK: np.ndarray, moments: Moments, k_shape: tuple[int, ...]
) -> Option:
    solved = solve(w_GOK, constraint, moments, k_shape)
    return Option(constraint, *solved[1:4], _archived_bytes(solved), solved.reason)


def _archived_bytes(solved: Solved) -> int:
    match solved.form:
        case OnGrid(integers=integers, scale=scale):
            bits = entropy_bits(integers) + FLOAT_BITS * scale.size
        case Indexed(indices_GOV=indices, tables_TVD=tables):
            bits = entropy_bits(indices) + FLOAT_BITS * tables.size
        case other:
            bits = stored_bits(other)
    return max(ceil(bits / 8), 1)


def _fine_rungs(weights: int, anchor: Option) -> list[Option]:
    """The line of 6 dB a bit through one anchor."""
    away_db = RUNGS_DB[:FINE] - RUNGS_DB[FINE_ANCHOR]
    return [
        anchor._replace(
            constraint=on_rung(Grid(8), rung, weights),
            loss=anchor.loss * float(10 ** (decibels / 10)),
            stored_bytes=ceil(anchor.stored_bytes - decibels / DB_A_BIT * weights / 8),
            reason=anchor.reason if rung == FINE_ANCHOR else BETWEEN,
        )
        for rung, decibels in enumerate(away_db)
    ]


def _coarse_rungs(grid: Grid, weights: int, anchors: Sequence[Option]) -> list[Option]:
    """The parabola through three anchors, in decibels of noise and in bits; these as t, bits = log2(1 + 2^t).

    Many bits fall by one for 6 dB, few by a share for each: t is close to a straight line from end to end.
    """
    signal = anchors[0].zero_loss
    noise_db = 10 * np.log10([max(one.noise_ratio, 1e-12) for one in anchors])
    bits = np.array([8 * one.stored_bytes / weights for one in anchors])
    through = np.vander(ANCHORS, 3)
    noise, t = np.linalg.solve(through, noise_db), np.linalg.solve(through, np.log2(np.expm1(bits * np.log(2))))
    return [
        Option(
            on_rung(grid, rung, weights),
            signal * float(10 ** (np.polyval(noise, rung) / 10)),
            anchors[0].nearest_loss,
            signal,
            ceil(np.logaddexp2(0.0, np.polyval(t, rung)) * weights / 8),
            anchors[0].reason if rung in ANCHORS else BETWEEN,
        )
        for rung in range(FINE, len(RUNGS_DB))
    ]


def _estimated(grid: Grid, weights: int, signal: float, solved: Sequence[Entry]) -> list[Option]:
    """The noise asked for, at the bytes a weight that other weights needed for it; at theory's, if there is none."""
    shares = [
        [option.stored_bytes / entry.options[0].stored_bytes for option in entry.options[1 : 1 + len(RUNGS_DB)]]
        for entry in solved
        if len(entry.options) > len(RUNGS_DB) and entry.options[1].reason != ESTIMATED
    ]
    share = np.median(shares, axis=0) if shares else np.maximum(-RUNGS_DB - 4, 1) / 6 / 32
    return [
        Option(
            on_rung(grid if rung >= FINE else Grid(8), rung, weights),
            signal * float(10 ** (decibels / 10)),
            signal * float(10 ** (decibels / 10)),
            signal,
            max(int(4 * weights * part), 1),
            ESTIMATED,
        )
        for rung, (decibels, part) in enumerate(zip(RUNGS_DB, share, strict=True))
    ]
