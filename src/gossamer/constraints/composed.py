"""Composed: several constraints at once."""

from __future__ import annotations

import msgspec
import numpy as np

from gossamer.arith.forms import Factored, Form, floats_in, floats_of
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError


class Composed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="composed"):
    """A weight that meets two constraints: sparse on a grid, sparse with shared values, or low rank on a grid.

    Attributes:
        first: what is removed.
        then: what is left lies there; zeros stay zeros.
    """

    first: Sparse | LowRank
    then: Grid | Codebook

    def __post_init__(self) -> None:
        """Raises OptionError: low rank with a codebook, a rate, or a split whose factors are more than two."""
        if isinstance(self.first, LowRank) and isinstance(self.then, Codebook):
            raise OptionError("low_rank goes with a grid, not with a codebook; for instance low_rank:32+grid:8")
        if isinstance(self.first, LowRank) and self.then.rate:
            raise OptionError("low_rank with a grid takes no rate; only grids and codebooks, sparse or not, do")
        if isinstance(self.first, LowRank) and isinstance(self.then, Grid) and self.then.granularity == "input":
            raise OptionError("low_rank with a grid takes no scale an input, as factors have other inputs; drop it")
        if isinstance(self.first, LowRank) and self.first.split != "svd":
            raise OptionError(f"low_rank with a grid takes the split svd, not {self.first.split}; drop one of the two")

    def project(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> Form:
        """First what is removed, then the nearest point for what is left.

        Sparse on a grid gives the integers, sparse with shared values an Indexed with one entry that is zero, low rank
        on a grid a Factored whose factors lie on grids. The last is no projection in the strict sense: the product of
        two rounded factors has other factors, which round differently.

        Raises:
            OptionError: the constraint cannot apply to this shape, see `obstacle`.
        """
        obstacle = self.obstacle(w_GOK.shape, k_shape)
        if obstacle:
            raise OptionError(f"composed: {obstacle}")
        left = self.first.project(w_GOK, k_shape)
        if isinstance(left, Factored):
            return _on_grids(left, w_GOK, self.then) if isinstance(self.then, Grid) else left
        w_left = floats_of(left)
        if isinstance(self.then, Grid):
            return self.then.project(w_left, k_shape)
        kept_GOVD = (w_left != 0).reshape(*w_left.shape[:2], -1, self.then.dimension)
        return self.then.project(w_left, k_shape, kept_GOVD.any(axis=3))

    def contains(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> bool:
        """Whether both hold. Of low rank on a grid only the rank can be seen in a product."""
        if self.obstacle(w_GOK.shape, k_shape) or not self.first.contains(w_GOK, k_shape):
            return False
        return isinstance(self.first, LowRank) or self.then.contains(w_GOK, k_shape)

    def obstacle(self, shape_GOK: tuple[int, ...], k_shape: tuple[int, ...] = ()) -> str:
        """Why the constraint cannot apply to a shape, or ""."""
        alone = self.first.obstacle(shape_GOK, k_shape) or self.then.obstacle(shape_GOK, k_shape)
        if alone or isinstance(self.then, Grid) or isinstance(self.first, LowRank):
            return alone
        width, columns = self.then.dimension, self.first.block[1]
        if width > 1 and columns % width:
            return (
                f"vectors of {width} weights are removed whole; sparse needs a block of {width} columns, not {columns}"
            )
        return ""


def _on_grids(factored: Factored, w_GOK: np.ndarray, grid: Grid) -> Factored:
    """Both factors on grids, and the scales of the left one fitted to the weight, so that zero is never nearer to it.

    The left factor's rows are as long as the rank; a group that does not divide them gives way to a scale a row.
    """
    of_left = grid
    if not isinstance(grid.granularity, str) and floats_in(factored.left_GOR).shape[2] % grid.granularity:
        of_left = msgspec.structs.replace(grid, granularity="channel")
    left, right = of_left.project(floats_in(factored.left_GOR)), grid.project(floats_in(factored.right_GRK))
    product = Factored(left, right).real().astype(np.float64)
    shared = (0, 1, 2) if grid.granularity == "tensor" else (2,)
    along = (product * w_GOK).sum(axis=shared, keepdims=True)
    squared = (product * product).sum(axis=shared, keepdims=True)
    factor = np.divide(along, squared, out=np.zeros_like(along), where=along > 0)
    factor = factor.reshape(*factor.shape, *(1,) * (left.scale.ndim - factor.ndim))
    integers = np.where(factor > 0, left.integers, left.zero_point)  # nothing is nearer than what points away
    scale = np.where(factor > 0, left.scale * factor, left.scale).astype(np.float32)
    return Factored(left._replace(integers=integers, scale=scale), right)
