"""Sparse: a part of the weights is zero."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from gossamer.arith.forms import Dense
from gossamer.arith.removal import block_sums, keep_of_blocks, keep_of_every, removed_count
from gossamer.errors import OptionError


class Sparse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="sparse"):
    """So many weights are zero: a share of the tensor, or so many of every few consecutive ones.

    Attributes:
        ratio: share of zeros in the whole tensor (0 to below 1), as near as whole blocks come; None with `pattern`.
        pattern: (n, m): at most n of every m consecutive weights along K differ from zero, 2:4 for instance.
        block: rows (output channels) and columns (along K) that are zero together, with `ratio`.
    """

    ratio: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    pattern: tuple[int, int] | None = None
    block: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        """Raises OptionError: not one of ratio and pattern, or a pattern or block that makes no sense."""
        if (self.ratio is None) == (self.pattern is None):
            raise OptionError(f"sparse takes a ratio or a pattern, one of them; got {self.ratio} and {self.pattern}")
        if self.pattern is not None and not 1 <= self.pattern[0] < self.pattern[1]:
            n, m = self.pattern
            raise OptionError(f"sparse pattern {n}:{m} keeps {n} of {m} weights; the first must be 1 to {m - 1}")
        if self.pattern is not None and self.block != (1, 1):
            raise OptionError("sparse takes blocks with a ratio, not with a pattern; drop one of the two")
        if min(self.block) < 1:
            raise OptionError(f"sparse block {self.block[0]}x{self.block[1]}; rows and columns must be 1 or more")

    def project(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> Dense:
        """The nearest sparse weight: those of the largest magnitude, or the blocks of the largest sum of squares.

        Raises:
            OptionError: the constraint cannot apply to this shape, see `obstacle`.
        """
        w = np.asarray(w_GOK, np.float32)
        return Dense(np.where(self.mask(np.square(w, dtype=np.float64)), w, np.float32(0)))

    def mask(self, score_GOK: np.ndarray) -> np.ndarray:
        """Which weights stay, if those with the largest scores do: bool (G, O, K). See `arith.removal`.

        Raises:
            OptionError: the constraint cannot apply to this shape, see `obstacle`.
        """
        obstacle = self.obstacle(score_GOK.shape)
        if obstacle:
            raise OptionError(f"sparse: {obstacle}")
        if self.pattern is not None:
            return keep_of_every(score_GOK, *self.pattern)
        return keep_of_blocks(score_GOK, self.ratio or 0.0, *self.block)

    def contains(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> bool:
        """Whether at least as many weights are zero, where they have to be."""
        if self.obstacle(w_GOK.shape):
            return False
        if self.pattern is not None:
            n, m = self.pattern
            return bool((np.count_nonzero(w_GOK.reshape(-1, m), axis=1) <= n).all())
        alive = block_sums(w_GOK != 0, *self.block)
        return int((alive == 0).sum()) >= removed_count(self.ratio or 0.0, alive.size)

    def obstacle(self, shape_GOK: tuple[int, ...], k_shape: tuple[int, ...] = ()) -> str:
        """Why the constraint cannot apply to a shape, or ""."""
        if self.pattern is not None and shape_GOK[2] % self.pattern[1]:
            n, m = self.pattern
            return f"its rows of {shape_GOK[2]} weights are not a multiple of {m}, which the pattern {n}:{m} needs"
        return ""
