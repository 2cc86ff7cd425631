"""What a weight would take in an archive at several rates, and what noise that costs: a ladder for the allocation.

A grid at a rate gives the noise that its rate asks for. With N weights whose noise falls by 6 dB a bit, the rate at
which the last bit of each is worth its noise D (over signal) is  2 ln 2 D / N,  and measured noise is within 1 dB of
that. So a grid is solved at two rates, and the other rungs lie on a curve through these; codebooks and vectors of
them are solved at the noise where they come close. Rates are the same few numbers for all weights, five in a decade:
two weights of one node must agree on one.

One scale serves a whole matrix: all its rows hear the same inputs, so that an error costs the same in each, and the
step that is best for loss + rate * bits is the same for all (Gish and Pierce, 1968). Scales of rows would have to be
written, too; tables have them, as an error in a row costs what the row is looked up for. Inputs have steps of their own
where they differ in energy so much that this saves more than the steps take: see `solvers.input_steps`. Where 256 steps
of the size that a noise asks for do not reach the largest weights, integers have 16 bits: an archive writes them in as
many bits as they need, eight of EfficientNet-Lite0's where floats took 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Literal, TypeVar

import msgspec
import numpy as np

from gossamer.arith.entropy import entropy_bits
from gossamer.arith.forms import Indexed, stored_bits
from gossamer.arith.moments import Moments, for_others, loss
from gossamer.arith.weight_grid import Grid as OnGrid
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.grid import Grid, taps_of
from gossamer.errors import DataError
from gossamer.planning.ledger import BETWEEN, ESTIMATED, Entry
from gossamer.solvers.code_lengths import written_bits
from gossamer.solvers.contract import Solved
from gossamer.solvers.input_steps import Worth, steps_of_inputs, worth_of_inputs
from gossamer.solvers.options import Option, Solve

Rated = TypeVar("Rated", Grid, Codebook)
STEPS = 5  # of rates in a decade: two decibels each
RUNGS_DB = np.arange(-66.0, -7.0, 10 / STEPS)
ROOMY = 0.7  # of what one step for all reaches: above, a solver hardly finds coarser ones worth their noise
FINEST_DB = -40.0  # what 256 levels a row reach, give or take what rows are like
NOISIER = 1.25  # than asked for, at most: where some inputs reach their largest weight with coarser steps alone
ANCHORS = (21, 27)  # those that are solved
RIVALS = ((Codebook(16), 21), (Codebook(16), 27), (Codebook(64, dimension=2), 27))
_BITS_APART = (RUNGS_DB[ANCHORS[1]] - RUNGS_DB[ANCHORS[0]]) / (20 * np.log10(2))  # of the anchors, were bits many
MOST_OF_RIVALS = 20_000  # weights: of 60 larger ones none came out more than 2 % smaller so, and they take long
STEP_BITS, NODE_BITS = 12, 800  # of an input's step in an archive, beside those of other weights; of a tensor of them
ALONE = 512  # steps from which on they are coded by themselves, as indices of those that differ
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
    worth = None if moments.rows_GO is not None else _worth(moments, taps_of(k_shape))
    plain = [Grid(16 if worth is None and decibels < FINEST_DB else 8) for decibels in RUNGS_DB]
    rungs = [on_rung(one, rung, w_GOK.size) for rung, one in enumerate(plain)]
    if worth is not None:
        pays = _saved_bits(worth, w_GOK.size) > 0
        rungs = [_granular(one, w_GOK, worth, pays, signal) for one in rungs]
    if solve is None:
        return whole, *_estimated(rungs, w_GOK.size, signal, solved)
    rivals = [on_rung(*one, w_GOK.size) for one in RIVALS if not one[0].obstacle(w_GOK.shape)]
    asked = [*(rungs[place] for place in ANCHORS), *(rivals if w_GOK.size <= MOST_OF_RIVALS else ())]
    found = [_option(constraint, solve, w_GOK, moments, k_shape) for constraint in asked]
    return whole, *_between(rungs, w_GOK.size, found[: len(ANCHORS)]), *found[len(ANCHORS) :]


def on_rung(constraint: Rated, rung: int, weights: int) -> Rated:
    """The constraint at the rate that leads to the noise of a rung, give or take a decibel."""
    first = round(STEPS * np.log10(2 * np.log(2) * 10 ** (RUNGS_DB[0] / 10) / weights))
    return msgspec.structs.replace(constraint, rate=min(float(f"{10 ** ((first + rung) / STEPS):.1e}"), 1.0))


def _option(
    constraint: Grid | Codebook, solve: Solve, w_GOK: np.ndarray, moments: Moments, k_shape: tuple[int, ...]
) -> Option:
    solved = solve(w_GOK, constraint, moments, k_shape)
    return Option(constraint, *solved[1:4], _archived_bytes(solved, taps_of(k_shape)), solved.reason)


def _archived_bytes(solved: Solved, taps: int) -> int:
    match solved.form:
        case OnGrid(scale=scale) as form:
            by_input = scale.ndim == 3 and scale.shape[2] > 1
            bits = written_bits(form) + (_bits_of_steps(scale[:, :, ::taps]) if by_input else FLOAT_BITS * scale.size)
        case Indexed(indices_GOV=indices, tables_TVD=tables):
            bits = entropy_bits(indices) + FLOAT_BITS * tables.size
        case other:
            bits = stored_bits(other)
    return max(ceil(bits / 8), 1)


def _worth(moments: Moments, taps: int) -> Worth | None:
    try:
        return worth_of_inputs(for_others(moments), taps)
    except DataError:  # the solver meets it too, and says so
        return None


def _granular(grid: Grid, w_GOK: np.ndarray, worth: Worth, pays: bool, signal: float) -> Grid:
    """With steps of inputs where these pay, else with one; of 16 bits where its levels do not reach all weights."""
    bit_loss, largest = grid.rate * signal, 2 ** (grid.bits - 1) - 1
    if pays:
        coarser = steps_of_inputs(worth, w_GOK, largest, bit_loss) / steps_of_inputs(worth, w_GOK, largest, 0)
        reaches = bool(np.square(coarser).mean() < NOISIER)
    else:
        reaches = bool(np.abs(w_GOK).max() <= ROOMY * largest * worth.step(bit_loss, False))
    granularity: Literal["input", "tensor"] = "input" if pays else "tensor"
    return msgspec.structs.replace(grid, granularity=granularity, bits=grid.bits if reaches else 16)


def _saved_bits(worth: Worth, weights: int) -> float:
    """By steps of inputs, beside those that they take; 0 where they save less."""
    groups, inputs, _ = worth.each_GIT.shape
    if groups > 1 and inputs > 1:
        return 0.0  # each of several outputs of a group would have them written
    return max(worth.saved_bits * weights - _bits_of_steps(worth.steps_GI1), 0.0)


def _bits_of_steps(steps: np.ndarray) -> float:
    """What an archive takes for them."""
    if steps.size < ALONE:
        return STEP_BITS * steps.size + NODE_BITS
    levels, places = np.unique(steps, return_inverse=True)
    return entropy_bits(places) + 32 * len(levels) + NODE_BITS


def _between(rungs: Sequence[Grid], weights: int, anchors: Sequence[Option]) -> list[Option]:
    """Noise on a line through two anchors, and bits as well, these as t with bits = log2(1 + 2^t).

    Many bits fall by one for 6 dB, few by a share for each: t is close to a straight line from end to end. Beyond the
    first anchor it is 6 dB a bit.
    """
    signal = anchors[0].zero_loss
    noise_db = 10 * np.log10([max(one.noise_ratio, 1e-12) for one in anchors])
    bits = np.array([8 * one.stored_bytes / weights for one in anchors])
    t = np.log2(np.expm1(bits * np.log(2)))
    found = []
    for rung, decibels in enumerate(RUNGS_DB):
        far = (rung - ANCHORS[0]) / (ANCHORS[1] - ANCHORS[0])
        if far < 0:
            loss_db, taken = noise_db[0] + decibels - RUNGS_DB[ANCHORS[0]], bits[0] - far * _BITS_APART
        else:
            loss_db = noise_db[0] + far * (noise_db[1] - noise_db[0])
            taken = np.logaddexp2(0.0, t[0] + far * (t[1] - t[0]))
        found.append(
            Option(
                rungs[rung],
                signal * float(10 ** (loss_db / 10)),
                anchors[0].nearest_loss,
                signal,
                ceil(taken * weights / 8),
                anchors[0].reason if rung in ANCHORS else BETWEEN,
            )
        )
    return found


def _estimated(rungs: Sequence[Grid | Codebook], weights: int, signal: float, solved: Sequence[Entry]) -> list[Option]:
    """The noise asked for, at the bytes a weight that other weights needed for it; at theory's, if there is none."""
    shares = [
        [option.stored_bytes / entry.options[0].stored_bytes for option in entry.options[1 : 1 + len(RUNGS_DB)]]
        for entry in solved
        if len(entry.options) > len(RUNGS_DB) and entry.options[1].reason != ESTIMATED
    ]
    share = np.median(shares, axis=0) if shares else np.maximum(-RUNGS_DB - 4, 1) / 6 / 32
    losses, sizes = signal * 10 ** (RUNGS_DB / 10), np.maximum(4 * weights * share, 1).astype(int)
    return [
        Option(constraint, loss, loss, signal, size, ESTIMATED)
        for constraint, loss, size in zip(rungs, losses.tolist(), sizes.tolist(), strict=True)
    ]
