"""Steps of a grid that differ by input: fine where an error is heard, coarse where it is not.

With compensation, a rounding error of column j costs its square times L_jj^2, L the Cholesky factor of H, whichever
order the columns have. Loss + rate * bits is then least where all columns make equal noise (WaterSIC, Lifar et al.,
2026; reverse water-filling), so that a step is proportional to 1 / L_jj. One step for all columns takes more bits for
the same loss, by

    log2(mean(L_jj^2) / geometric mean(L_jj^2)) / 2    a weight:

0.2 of them in EfficientNet-Lite0, 0.7 in some of its layers, whose inputs differ most in energy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gossamer.arith.damped import activation_order, column_worth, factor
from gossamer.arith.entropy import best_step
from gossamer.arith.moments import Moments

AN_OCTAVE = 3  # steps that there are between one and twice as large: few, so that an archive writes them in few bits
FARTHEST = 4  # octaves from the middle


class Worth(NamedTuple):
    """What an error of a column costs once those behind it have made up for it.

    Attributes:
        each_GIT: of every column, by inputs and their taps; float64.
        steps_GI1: what that makes of the steps of inputs, their geometric mean about 1; float32.
    """

    each_GIT: np.ndarray
    steps_GI1: np.ndarray

    @property
    def saved_bits(self) -> float:
        """A weight, at many bits and equal loss, against one step for all; what the steps take is not counted."""
        evened_GIT = self.each_GIT * np.square(self.steps_GI1.astype(np.float64))
        return float(np.log2(self.each_GIT.mean() / evened_GIT.mean()) / 2)

    def step(self, bit_loss: float, by_input: bool) -> float:
        """The step that is best where a bit is worth so much loss, all inputs sharing it, or times `steps_GI1`."""
        evened_GIT = self.each_GIT * np.square(self.steps_GI1.astype(np.float64)) if by_input else self.each_GIT
        return float(best_step(bit_loss, evened_GIT.mean()))


def worth_of_inputs(moments: Moments, taps: int) -> Worth | None:
    """Of a layer with so many weights beside each other for each input; None where nothing is heard, or H is unknown.

    Raises:
        DataError: see `arith.damped.factor`.
    """
    if moments.h_GKK is None or not np.any(moments.h_GKK):
        return None
    each_GK = column_worth(factor(moments.h_GKK, activation_order(moments.h_GKK)))
    each_GIT = each_GK.reshape(len(each_GK), -1, taps)
    octaves_GI1 = -0.5 * np.log2(each_GIT).mean(axis=2, keepdims=True)
    octaves_GI1 = np.clip(octaves_GI1 - octaves_GI1.mean(), -FARTHEST, FARTHEST)
    return Worth(each_GIT, _on_ladder(octaves_GI1))


def steps_of_inputs(worth: Worth, w_GOK: np.ndarray, largest: int, bit_loss: float) -> np.ndarray:
    """The relative steps, coarser where the largest weight of an input would not be reached; float32 (G, 1, K).

    Args:
        largest: integer of the grid.
        bit_loss: that a bit is worth, which says how fine all steps are; 0 for steps that are as coarse as they must.
    """
    groups, inputs, taps = worth.each_GIT.shape
    steps_GI1 = worth.steps_GI1
    if bit_loss:
        reach_GI1 = np.abs(w_GOK).reshape(groups, -1, inputs, taps).max(axis=(1, 3))[..., None] / largest
        least_GI1 = np.maximum(reach_GI1 / worth.step(bit_loss, True), np.finfo(np.float32).tiny)
        least_GI1 = _on_ladder(np.ceil(np.log2(least_GI1) * AN_OCTAVE) / AN_OCTAVE)
        steps_GI1 = np.maximum(steps_GI1, least_GI1)
    return np.ascontiguousarray(np.repeat(steps_GI1, taps, axis=2).reshape(groups, 1, -1))


def _on_ladder(octaves: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp2(np.round(octaves * AN_OCTAVE) / AN_OCTAVE), np.float32)
