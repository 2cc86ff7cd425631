"""LowRank: a product of thin factors."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np

from gossamer.arith.forms import Chained, Factored
from gossamer.arith.tensor_decomposition import cp, directions, rank_for, tucker, tucker_ranks
from gossamer.errors import OptionError

CLOSE = 1e-5  # of the norm: what float32 factors may miss
CP_CLOSE = 1e-2  # alternating least squares comes close to a canonical form, not onto it


class LowRank(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="low_rank"):
    """Every group's (O, K) matrix has at most this rank. Give one of the two.

    Attributes:
        rank: of the product; "tucker" uses it along outputs and inputs both, where there are as many.
        energy_ratio: keep the fewest singular directions that hold this share of the (weighted) squared norm.
        split: how a convolution is taken apart: two factors ("svd": k x k to R channels, then 1 x 1), a core between
            two 1 x 1 ("tucker"), or one rank-1 term a channel ("cp"): 1 x 1, a k x k kernel for each channel, 1 x 1.
            A matrix knows only "svd".
    """

    rank: Annotated[int, msgspec.Meta(ge=1)] | None = None
    energy_ratio: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    split: Literal["svd", "tucker", "cp"] = "svd"

    def __post_init__(self) -> None:
        """Raises OptionError: not one of rank and energy ratio, or a ratio where only a rank can be asked for."""
        if (self.rank is None) == (self.energy_ratio is None):
            got = f"{self.rank} and {self.energy_ratio}"
            raise OptionError(f"low_rank takes a rank or an energy_ratio, one of them; got {got}")
        if self.split == "cp" and self.rank is None:
            raise OptionError(
                "low_rank with the split cp takes a rank, not an energy_ratio; for instance low_rank:32:cp"
            )

    def project(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> Factored | Chained:
        """The nearest weight of this rank: truncated singular vectors, or alternating ones for "tucker" and "cp".

        Raises:
            OptionError: the constraint cannot apply to this shape, see `obstacle`.
        """
        obstacle = self.obstacle(w_GOK.shape, k_shape)
        if obstacle:
            raise OptionError(f"low_rank: {obstacle}")
        w = np.asarray(w_GOK, np.float64)
        if self.split == "svd":
            vectors_GOR, energy_GR = directions(w)
            return factored(vectors_GOR[:, :, : self.rank_of(energy_GR)], w)
        w_OIS = w.reshape(w.shape[1], k_shape[0], -1)
        if self.split == "tucker":
            return chained(*tucker(w_OIS, tucker_ranks(w_OIS, self.rank, self.energy_ratio)))
        parts = cp(w_OIS, self.rank or 1)
        return chained(parts.outer_OR, parts.kernel_RS[:, None], parts.inner_RI)

    def contains(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> bool:
        """Whether the weight has this rank; a share of the energy sets no limit that its result could be held to."""
        if self.obstacle(w_GOK.shape, k_shape):
            return False
        if self.rank is None:
            return True
        w = np.asarray(w_GOK, np.float64)  # in float32 the squares of small numbers are zero
        miss = np.linalg.norm(w - self.project(w_GOK, k_shape).real())
        return bool(miss <= (CP_CLOSE if self.split == "cp" else CLOSE) * np.linalg.norm(w))

    def obstacle(self, shape_GOK: tuple[int, ...], k_shape: tuple[int, ...] = ()) -> str:
        """One line why weights of this shape cannot be taken apart so; "" if they can."""
        groups, outputs, width = shape_GOK
        if 0 in shape_GOK:
            return f"shape {tuple(shape_GOK)} holds no weights"
        if min(outputs, width) == 1:
            return f"a weight of {outputs} x {width} a group has rank 1 as it is"
        if self.rank is not None and self.rank >= min(outputs, width):
            return f"rank {self.rank} is not below that of any weight of {outputs} x {width}; give less"
        if self.split == "svd":
            return ""
        if len(k_shape) < 2 or int(np.prod(k_shape[1:])) == 1:
            return f"{self.split} takes apart kernels of more than one position; use the split svd here"
        return f"{self.split} takes apart kernels of one group, not of {groups}" if groups > 1 else ""

    def rank_of(self, energy_GR: np.ndarray) -> int:
        """The rank asked for, of directions with these energies."""
        return self.rank if self.rank is not None else rank_for(energy_GR, self.energy_ratio or 1.0)


def factored(vectors_GOR: np.ndarray, w_GOK: np.ndarray, rows_GO1: np.ndarray | float = 1.0) -> Factored:
    """A weight within orthonormal directions of its outputs, whose rows count differently."""
    right_GRK = vectors_GOR.transpose(0, 2, 1) @ (w_GOK * np.sqrt(rows_GO1))
    left_GOR = np.ascontiguousarray(vectors_GOR / np.sqrt(rows_GO1))
    return Factored(left_GOR.astype(np.float32), right_GRK.astype(np.float32))


def chained(outer_OR: np.ndarray, core_RQS: np.ndarray, inner_QI: np.ndarray) -> Chained:
    """Three factors as they are stored."""
    outer, core, inner = (np.ascontiguousarray(part, np.float32) for part in (outer_OR, core_RQS, inner_QI))
    return Chained(outer, core, inner)
