"""The group lasso (Yuan and Lin 2006): whole outputs of layers are drawn to zero, or none of their weights is.

On the channels of networks: Wen et al. 2016, "Learning structured sparsity in deep neural networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from gossamer.training.layer_weights import LayerWeight
from gossamer.training.penalties.contract import Penalty
from gossamer.training.penalties.scales import counts_of, scales_of


class GroupLasso(Penalty):
    """The sum over all outputs of sqrt(K) |row| / s, divided by the number of weights.

    A row is the K weights of one output, |row| its Euclidean norm, and s the root mean square of the layer's weights
    when training began, so that every layer's share is about 1 then.
    """

    def __init__(self, layers: Sequence[LayerWeight]) -> None:
        super().__init__()
        self._layers = tuple(layers)
        widths = torch.tensor([sqrt(layer.shape_GOK[2]) for layer in layers])
        self.register_buffer(
            "shares", widths.to(layers[0].parameter.device) / (scales_of(layers) * counts_of(layers).sum())
        )
        self.shares: Tensor

    def forward(self) -> Tensor:
        with torch.autocast(self.shares.device.type, enabled=False):
            norms = [torch.linalg.vector_norm(layer.real_GOK().float(), dim=2).sum() for layer in self._layers]
            return (torch.stack(norms) * self.shares).sum()
