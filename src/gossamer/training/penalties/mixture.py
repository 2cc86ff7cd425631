"""Soft weight sharing (Nowlan and Hinton 1992; Ullrich et al. 2017): weights gather around a few values.

What they gather around is learned beside them. `codebook:k` behind it finds little left to round.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn

from gossamer.training.layer_weights import LayerWeight
from gossamer.training.penalties.contract import Penalty
from gossamer.training.penalties.scales import scales_of

NARROWEST = 0.02  # of a component, in a layer's scale: without it a likelihood has no upper end
OUTERMOST = 0.005  # of the weights lie beyond the first and the last middle, each
AT_ZERO = 0.5  # the share of the component at zero, in the beginning
FASTER = 10.0  # than weights: what a mixture learns is of the size of a layer's scale


class Mixture(Penalty):
    """The mean of -log p(w / s) over the weights that are not zero.

    p is a mixture of Gaussians for each layer, with middles, widths and shares of its own, one of the middles fixed at
    zero; s is the root mean square of the layer's weights when training began. One call takes memory for `components`
    numbers a weight.

    Attributes:
        components: of each layer's mixture, with that at zero.
    """

    def __init__(self, layers: Sequence[LayerWeight], components: int = 16) -> None:
        super().__init__()
        self.components = components
        self._layers = tuple(layers)
        self.register_buffer("scales", scales_of(layers))
        self.scales: Tensor
        self.mixtures = nn.ModuleList(
            _Gaussians(layer, float(scale), components) for layer, scale in zip(layers, self.scales, strict=True)
        )

    def forward(self) -> Tensor:
        with torch.autocast(self.scales.device.type, enabled=False):
            alive = [layer.real().float().reshape(-1) for layer in self._layers]
            alive = [real[real != 0] / scale for real, scale in zip(alive, self.scales, strict=True)]
            sums = [mixture(x) for mixture, x in zip(self.mixtures, alive, strict=True)]
            return torch.stack(sums).sum() / max(1, sum(len(x) for x in alive))


class _Gaussians(nn.Module):
    """The mixture of one layer: -log likelihood, summed."""

    def __init__(self, layer: LayerWeight, scale: float, components: int) -> None:
        super().__init__()
        x = (layer.real().detach().float().reshape(-1) / scale).cpu()
        x = x[x != 0] if bool((x != 0).any()) else torch.zeros(1)
        ends = torch.quantile(x[:: max(1, len(x) // 100_000)], torch.tensor([OUTERMOST, 1 - OUTERMOST]))
        steps = torch.arange(components - 1) / max(1, components - 2)
        middles = ends[0] + (ends[1] - ends[0]) * steps
        width = max(float(ends[1] - ends[0]) / (2 * components), NARROWEST)
        rest = (1 - AT_ZERO) / (components - 1)
        device = layer.parameter.device
        self.middles = _fast(middles.to(device))
        self.log_widths = _fast(torch.full((components,), log(width), device=device))
        self.logits = _fast(torch.tensor([log(AT_ZERO), *[log(rest)] * (components - 1)], device=device))

    def forward(self, x_N: Tensor) -> Tensor:
        middles_C = torch.cat([torch.zeros_like(self.middles[:1]), self.middles])
        widths_C = NARROWEST + self.log_widths.exp()
        shares_C = torch.log_softmax(self.logits, 0) - widths_C.log() - 0.5 * log(2 * torch.pi)
        away_NC = (x_N[:, None] - middles_C) / widths_C
        return -torch.logsumexp(shares_C - 0.5 * away_NC.square(), 1).sum()


def _fast(values: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(values.float())
    parameter.rate_ratio = FASTER  # type: ignore[attr-defined]
    return parameter
