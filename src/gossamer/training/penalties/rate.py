"""The bits that weights would take in an archive, as a penalty: training that makes the packed file small.

Entropy-penalised training (Oktay et al. 2020, "Scalable model compression by entropy penalized reparameterization")
learns a model of the weights' distribution beside the weights. Here that is the code with which `gossamer pack` would
write the integers as they are: its tables, and the class of each weight by how large its row and column are
(`archive.lengths`), looked up anew after each epoch. Between two integers the length of a weight is interpolated, so
that its gradient is the bits that one integer more would cost; the steps of the grids take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gossamer.archive.lengths import lengths
from gossamer.errors import OptionError
from gossamer.training.layer_weights import LayerWeight
from gossamer.training.penalties.contract import Penalty

MOST_CLASSES = 64  # of a table; what lies beyond counts as the last
WIDTHS = (2, 4, 8)  # bits that integers are stored in, of types; in planes it is any


class _Coded(NamedTuple):
    """A weight, and the names of the buffers with its classes and with its table."""

    weight: LayerWeight
    classes: str
    table: str


class Rate(Penalty):
    """Bits a weight, mean over all integers: with strength 1 a bit costs as much as a nat of the loss.

    Args:
        weights: of the student; those in float, in 16 bits, and with a zero point are left out.

    Raises:
        OptionError: no weight is stored as integers.
    """

    def __init__(self, weights: Sequence[LayerWeight]) -> None:
        super().__init__()
        stored = [one for one in weights if one.grid is not None and one.grid.zero_point is None and _bits_of(one)]
        if not stored:
            raise OptionError("penalty rate is of integers, and no weight has any; add a grid: --constraint grid:4")
        self._size = sum(one.size for one in stored)
        self._of_bits: dict[int, list[_Coded]] = {}
        for number, one in enumerate(stored):
            bits = _bits_of(one)
            coded = _Coded(one, f"classes_{number}", f"table_{bits}")
            self._of_bits.setdefault(bits, []).append(coded)
            self.register_buffer(coded.classes, torch.zeros(one.parameter.shape, dtype=torch.uint8))
        for bits in self._of_bits:
            self.register_buffer(f"table_{bits}", torch.zeros(MOST_CLASSES, 1 << bits))

    def refresh(self) -> None:
        """Read the code lengths of the integers as they are."""
        for bits, every in self._of_bits.items():
            integers = [one.weight.integers().cpu().numpy().astype(np.int64) for one in every]
            table = self.get_buffer(f"table_{bits}")
            for one, found in zip(every, lengths(integers, bits), strict=True):
                self.get_buffer(one.classes).copy_(torch.from_numpy(np.minimum(found.classes, MOST_CLASSES - 1)))
                table[: len(found.bits_CV)] = torch.from_numpy(found.bits_CV[:MOST_CLASSES])

    def forward(self) -> Tensor:
        """In training with a gradient; in eval mode the bits of the integers themselves."""
        total = torch.zeros((), device=next(iter(self.buffers())).device)
        for bits, every in self._of_bits.items():
            for coded in every:
                total = total + self._bits_of(coded, 1 << (bits - 1))
        return total / self._size

    def _bits_of(self, coded: _Coded, half: int) -> Tensor:
        weight, table = coded.weight, self.get_buffer(coded.table)
        start = self.get_buffer(coded.classes).long() * table.shape[1] + half
        low, high = (float(end) for end in weight.ends())
        if not self.training:
            return torch.take(table, start + weight.integers().long()).sum()
        n = weight.in_steps().clamp(low, high)
        below = n.detach().floor().clamp(max=high - 1)
        at = start + below.long()
        here, more = torch.take(table, at), torch.take(table, at + 1)
        return (here + (n - below) * (more - here)).sum()


def _bits_of(weight: LayerWeight) -> int:
    """Of the type that holds the weight's integers; 0 where no table would."""
    low, high = (int(end) for end in weight.ends())
    return next((bits for bits in WIDTHS if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1)), 0)
