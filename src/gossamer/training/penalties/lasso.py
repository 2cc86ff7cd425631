"""The lasso (Tibshirani 1996): the mean magnitude of weights, which draws the small ones to zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.training.layer_weights import LayerWeight
from gossamer.training.penalties.contract import Penalty
from gossamer.training.penalties.scales import counts_of, scales_of


class Lasso(Penalty):
    """The mean of |w| / s over all weights, s the root mean square of a layer's weights when training began.

    Without s, layers whose weights are large because those behind them are small would be pulled hardest.
    """

    def __init__(self, layers: Sequence[LayerWeight]) -> None:
        super().__init__()
        self._layers = tuple(layers)
        self.register_buffer("shares", 1 / (scales_of(layers) * counts_of(layers).sum()))
        self.shares: Tensor

    def forward(self) -> Tensor:
        with torch.autocast(self.shares.device.type, enabled=False):
            sums = torch.stack([layer.real().float().abs().sum() for layer in self._layers])
            return (sums * self.shares).sum()
