"""Grid: integers of a few bits, times a scale."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
import numpy as np

from gossamer.arith import weight_grid
from gossamer.arith.weight_grid import Bits
from gossamer.errors import OptionError


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="grid"):
    """Weights are (integer - zero point) * scale.

    Attributes:
        bits: of an integer.
        symmetric: the zero point is 0; else each scale has one of its own.
        granularity: one scale an output channel, or a tensor, or an input (of a convolution an input channel), or for
            so many consecutive weights along K.
        rate: noise over signal of the layer's output that one bit of an archive is worth: above 0, the second-order
            solver chooses integers that are short to write, too. It does not change what lies on the grid.
    """

    bits: Bits
    symmetric: bool = True
    granularity: Literal["channel", "tensor", "input"] | Annotated[int, msgspec.Meta(ge=2)] = "channel"
    rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0

    def project(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> weight_grid.Grid:
        """The nearest integers under scales that reach each share's largest magnitude (or both ends, if asymmetric).

        Returns:
            arrays (G, O, K), or (G, O, K / n, n) in groups of n.

        Raises:
            OptionError: the constraint cannot apply to this shape, see `obstacle`.
            DataError: a weight is NaN or infinite.
        """
        obstacle = self.obstacle(w_GOK.shape)
        if obstacle:
            raise OptionError(f"grid: {obstacle}")
        w = np.asarray(w_GOK, np.float32)
        if self.granularity == "input":
            return self._by_input(w, taps_of(k_shape))
        shared: tuple[int, ...] = (0, 1, 2) if self.granularity == "tensor" else (2,)
        if not isinstance(self.granularity, str):
            w, shared = weight_grid.in_groups(w, 2, self.granularity), (3,)
        grid = weight_grid.weight_grid(w, shared, self.bits, self.symmetric)
        return grid if self.symmetric else weight_grid.reach_both_ends(w, grid, shared)

    def contains(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> bool:
        """Whether scales exist under which all weights are integers; any scales, not only those of `project`."""
        if self.obstacle(w_GOK.shape):
            return False
        if self.granularity == "input":
            w_GIOT = w_GOK.reshape(*w_GOK.shape[:2], -1, taps_of(k_shape)).swapaxes(1, 2)
            rows = math.prod(w_GIOT.shape[:2])
            return weight_grid.lies_on_grid(w_GIOT.reshape(rows, -1), self.bits, self.symmetric)
        length = {"tensor": w_GOK.size, "channel": w_GOK.shape[2]}.get(str(self.granularity), self.granularity)
        return weight_grid.lies_on_grid(w_GOK.reshape(-1, int(length)), self.bits, self.symmetric)

    def obstacle(self, shape_GOK: tuple[int, ...], k_shape: tuple[int, ...] = ()) -> str:
        """Why the constraint cannot apply to a shape, or ""."""
        if isinstance(self.granularity, str) or shape_GOK[2] % self.granularity == 0:
            return ""
        return f"its rows of {shape_GOK[2]} weights are not a multiple of the group {self.granularity}"

    def _by_input(self, w_GOK: np.ndarray, taps: int) -> weight_grid.Grid:
        w_GOIT = w_GOK.reshape(*w_GOK.shape[:2], -1, taps)
        grid = weight_grid.weight_grid(w_GOIT, (1, 3), self.bits, self.symmetric)
        grid = grid if self.symmetric else weight_grid.reach_both_ends(w_GOIT, grid, (1, 3))
        scale, zero_point = (np.repeat(part[..., 0], taps, axis=2) for part in (grid.scale, grid.zero_point))
        return weight_grid.Grid(grid.integers.reshape(w_GOK.shape), scale, zero_point, self.bits)


def taps_of(k_shape: tuple[int, ...]) -> int:
    """Weights of one input that lie beside each other: those of a convolution's kernel."""
    return math.prod(k_shape[1:])
