"""Filters: what the weights of a kernel say of each other.

Neighbours in the kernel of a convolution are alike. Each place is foretold from others by least squares, one filter for
all tensors of a model whose kernels are as large, and what is left is coded: the difference, where numbers are many;
where most are zero, the number, its sign turned to what is foretold, in a class that rises with the size of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gossamer.archive.reader import MOST_TAPS
from gossamer.archive.symbols import DOMINANT, Symbols
from gossamer.archive.tables import price

UNIT = 16  # weights are written in sixteenths
LARGEST = 127  # of them
GUESSED = ((3, 3), (5, 5))  # kernels where a tensor's shape does not say
SAMPLE = 1 << 14  # kernels of a tensor that filters are fitted to
RIDGE = 1e-4  # of the variance
WEIGHT_BITS = 5.0  # that a weight takes
WORTH = 0.002  # of a plane's bits, that a filter must save
FOLDED = 0.5  # of the bits that tables of their own would save, which rising classes do
ODD = (0.15, 0.6, 1.5)  # of the usual size: what tells strong foretellings from weak ones


class Fitted(NamedTuple):
    """A filter: each tap's stage, how much it takes of each other (taps, taps), and whether symbols are folded."""

    stages: np.ndarray
    weights_TT: np.ndarray
    folds: bool


class Filtered(NamedTuple):
    """Planes as they are coded, and the filter of each, counted from 1; 0 is none."""

    planes: list[Symbols]
    filters: list[Fitted]
    filter_of: list[int]


def kernels_of(shape: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Heights and widths that the kernels of a tensor may have."""
    if len(shape) > 2:
        height, across = (1, *shape[2:])[-2:]
        return [(height, across)] if 1 < height * across <= MOST_TAPS and len(shape) < 5 else []
    return [(height, across) for height, across in GUESSED if width % (height * across) == 0]


def filtered(planes: Sequence[Symbols], kernels: Sequence[Sequence[tuple[int, int]]]) -> Filtered:
    """Filters for planes of one alphabet, each with the kernels that it may have."""
    found = Filtered(list(planes), [], [0] * len(planes))
    groups: dict[tuple[tuple[int, int], bool], list[int]] = {}
    for place, (plane, sizes) in enumerate(zip(planes, kernels, strict=True)):
        folds = plane.counts[len(plane.level) // 2] > DOMINANT * len(plane.values)
        for kernel in sizes:
            groups.setdefault((kernel, folds), []).append(place)
    for (kernel, folds), places in groups.items():
        stages = _stages(kernel, folds)
        known = {place: _moments(planes[place], len(stages)) for place in places}
        own = {place: _weights(known[place], stages) for place in places}
        members = [place for place in places if _helps(known[place], own[place], planes[place])]
        if not members:
            continue
        alone = own[members[0]] if len(members) == 1 else None
        weights_TT = _weights(np.sum([known[place] for place in members], axis=0), stages) if alone is None else alone
        fitted = Fitted(stages, weights_TT, folds)
        every = {place: _coded(planes[place], fitted) for place in members}
        better = {place: (coded, gain) for place, (coded, gain) in every.items() if gain > 0}
        if sum(gain for _, gain in better.values()) < WEIGHT_BITS * np.count_nonzero(stages[:, None] > stages):
            continue
        found.filters.append(fitted)
        for place, (coded, _) in better.items():
            found.planes[place], found.filter_of[place] = coded, len(found.filters)
    return found


def _stages(kernel: tuple[int, int], folds: bool) -> np.ndarray:
    """Diagonal by diagonal; where symbols are folded only two, as each stage costs the coder short runs."""
    diagonals = np.add.outer(np.arange(kernel[0]), np.arange(kernel[1])).reshape(-1)
    return diagonals % 2 if folds else diagonals


def _numbers(plane: Symbols, taps: int) -> np.ndarray:
    """(taps, kernels) float32."""
    numbers: np.ndarray = plane.values.reshape(-1, taps).T.astype(np.float32) - len(plane.level) // 2
    return numbers


def _moments(plane: Symbols, taps: int) -> np.ndarray:
    """Products of taps, of numbers of variance 1, (taps, taps)."""
    kernels_NT = plane.values.reshape(-1, taps)
    every = max(len(kernels_NT) // SAMPLE, 1)
    numbers_TN = _numbers(replace(plane, values=kernels_NT[::every]), taps)
    moments_TT: np.ndarray = (numbers_TN @ numbers_TN.T).astype(np.float64)
    moments_TT *= len(plane.values) / max(float(np.trace(moments_TT)), 1e-9)
    return moments_TT


def _weights(moments_TT: np.ndarray, stages: np.ndarray) -> np.ndarray:
    """Least squares of each tap on those of earlier stages, in whole sixteenths; one Cholesky factor serves all."""
    order = np.argsort(stages, kind="stable")
    ridge = RIDGE * np.trace(moments_TT) + 1e-9
    lower_TT = np.linalg.cholesky(moments_TT[order][:, order] + ridge * np.eye(len(stages)))
    inverse_TT = np.linalg.inv(lower_TT)
    found_TT = np.zeros(moments_TT.shape)
    ends = np.searchsorted(stages[order], np.unique(stages), side="right").tolist()
    for start, stop in pairwise(ends):
        found_TT[start:stop, :start] = lower_TT[start:stop, :start] @ inverse_TT[:start, :start]
    rounded = np.empty(moments_TT.shape)
    rounded[np.ix_(order, order)] = np.clip(np.round(found_TT * UNIT), -LARGEST, LARGEST)
    return rounded


def _helps(moments_TT: np.ndarray, weights_TT: np.ndarray, plane: Symbols) -> bool:
    """Whether a filter of its own would, were numbers normal and its own weights for little."""
    left_TT = np.eye(len(weights_TT)) - weights_TT / UNIT
    left_T = np.einsum("ab,ab->a", left_TT @ moments_TT, left_TT)
    share = np.maximum(left_T, 1e-9) / np.maximum(np.diag(moments_TT), 1e-9)
    gain = -0.5 * float(np.log2(share).mean()) * len(plane.values)
    return gain > int(np.count_nonzero(weights_TT))


def _coded(plane: Symbols, filter: Fitted) -> tuple[Symbols, float]:
    """A plane as it is coded with a filter, and how many bits that saves."""
    numbers_TN = _numbers(plane, len(filter.stages))
    sums_N = (filter.weights_TT.astype(np.float32) @ numbers_TN).T.astype(np.int32).reshape(-1)
    alphabet = len(plane.level)
    if filter.folds:
        signed = np.where(sums_N < 0, -plane.values.astype(np.int32), plane.values)
        sizes = np.abs(sums_N)
        coded = replace(plane, values=(signed & (alphabet - 1)).astype(np.uint8), foretold=sizes)
        usual = float(np.sqrt(np.mean(np.square(sizes, dtype=np.float64)))) + 1e-9
        strength = np.digitize(sizes, [usual * odd for odd in ODD])
        counts = np.bincount(strength * alphabet + coded.values, minlength=(len(ODD) + 1) * alphabet)
        bits = float(price(counts.reshape(-1, alphabet)).sum())
    else:
        left = plane.values - ((sums_N + UNIT // 2) >> 4)
        coded = replace(plane, values=(left & (alphabet - 1)).astype(np.uint8))
        bits = float(price(coded.counts[None])[0])
    plain = float(price(plane.counts[None])[0])
    saved = (plain - bits) * (FOLDED if filter.folds else 1.0)
    return coded, saved if saved > WORTH * plain else 0.0
