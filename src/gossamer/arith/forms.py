"""What a weight is stored as once it meets a constraint. Every form can say the floats that it stands for.

Weights are (G, O, K) here: groups, output channels of a group, and everything that is summed over, as
`graph.weight_matrix` lays them out. Integers on a grid are the fourth form, `arith.weight_grid.Grid`, whose arrays are
(G, O, K), or (G, O, K / n, n) in groups of n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gossamer.arith.weight_grid import Grid


class Dense(NamedTuple):
    """Floats, with zeros where weights were removed, or equal along G where layers share them.

    Attributes:
        w_GOK: float32.
    """

    w_GOK: np.ndarray

    def real(self) -> np.ndarray:
        """The weights, float32 (G, O, K)."""
        return self.w_GOK


class Indexed(NamedTuple):
    """Indices into tables of shared values or vectors.

    Attributes:
        indices_GOV: uint8 or uint16 (G, O, K / d): each stands for d consecutive weights along K.
        tables_TVD: float32 (T, k, d): one table (T = 1), or one for every output channel (T = G * O).
    """

    indices_GOV: np.ndarray
    tables_TVD: np.ndarray

    def real(self) -> np.ndarray:
        """The weights, float32 (G, O, K)."""
        groups, outputs, vectors = self.indices_GOV.shape
        flat = self.indices_GOV.reshape(-1, vectors)
        which = np.arange(len(flat))[:, None] if len(self.tables_TVD) > 1 else 0
        return np.asarray(self.tables_TVD[which, flat].reshape(groups, outputs, -1))


class Factored(NamedTuple):
    """Two factors whose product is the weight.

    Attributes:
        left_GOR, right_GRK: float32 floats, or integers on a grid.
    """

    left_GOR: np.ndarray | Grid
    right_GRK: np.ndarray | Grid

    def real(self) -> np.ndarray:
        """The weights, float32 (G, O, K)."""
        return np.asarray(floats_in(self.left_GOR) @ floats_in(self.right_GRK))


class Chained(NamedTuple):
    """Three convolutions in a row, for one group: 1 x 1 to Q channels, a kernel from these to R, 1 x 1 to the outputs.

    Attributes:
        outer_OR, inner_QI: float32.
        core_RQS: float32, S positions of the kernel; (R, 1, S) with Q = R above 1 if every channel has its own kernel.
    """

    outer_OR: np.ndarray
    core_RQS: np.ndarray
    inner_QI: np.ndarray

    def real(self) -> np.ndarray:
        """The weights, float32 (1, O, I * S)."""
        if self.core_RQS.shape[1] == len(self.inner_QI):
            right_RIS = np.einsum("rqs,qi->ris", self.core_RQS, self.inner_QI, optimize=True)
        else:
            right_RIS = self.core_RQS * self.inner_QI[:, :, None]
        return np.asarray((self.outer_OR @ right_RIS.reshape(len(right_RIS), -1))[None])


def floats_in(factor: np.ndarray | Grid) -> np.ndarray:
    """A factor's floats, float32, whatever axes a grid's groups add."""
    if isinstance(factor, np.ndarray):
        return factor
    real = factor.real()
    return real.reshape(*real.shape[:2], -1)


Form = Dense | Indexed | Factored | Chained | Grid


def floats_of(form: Form) -> np.ndarray:
    """The weights that a form stands for, float32 (G, O, K), whatever axes a grid's groups add."""
    return floats_in(form) if isinstance(form, Grid) else form.real()


def stored_bits(form: Form) -> int:
    """What a packed file needs for a form: the price of a candidate.

    Integers at their bits, scales at 32, zero points where one is not zero; indices at the least whole bits that tell
    the entries apart, and their tables. Floats at 32 bits, or, where fewer, those that are not zero and one bit a
    weight that says which: only the archive stores them so, an ONNX file holds all zeros.
    """
    if isinstance(form, Grid):
        zero_points = form.zero_point.size * form.bits if form.zero_point.any() else 0
        return int(form.integers.size * form.bits + 32 * form.scale.size + zero_points)
    if isinstance(form, Indexed):
        entries = form.tables_TVD.shape[1]
        return int(form.indices_GOV.size * (entries - 1).bit_length() + 32 * form.tables_TVD.size)
    if isinstance(form, Factored):
        factors = (form.left_GOR, form.right_GRK)
        return sum(stored_bits(Dense(part) if isinstance(part, np.ndarray) else part) for part in factors)
    if isinstance(form, Chained):
        return 32 * int(sum(part.size for part in form))
    return int(min(32 * form.w_GOK.size, 32 * np.count_nonzero(form.w_GOK) + form.w_GOK.size))
