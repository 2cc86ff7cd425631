"""The penalties of a training run together: their sum, and whether they went too far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gossamer.training.layer_weights import LayerWeight
from gossamer.training.penalties.contract import Penalty

GONE = 0.05  # of the largest weight that a layer began with: below that its weights count as zero
GONE_AT_MOST = 0.2  # the same while steps are large, which keep weights that are drawn to zero on their way around it
STEPS = 10  # as large as this many steps


class WeightedPenalty(NamedTuple):
    """A penalty, its factor, and how it was asked for, such as "lasso:0.1"."""

    penalty: Penalty
    strength: float
    text: str


class Penalties(nn.Module):
    """Called without arguments, the weighted sum; see `contract`."""

    def __init__(self, penalties: Sequence[WeightedPenalty], layers: Sequence[LayerWeight]) -> None:
        super().__init__()
        self.each = nn.ModuleList(one.penalty for one in penalties)
        self._strengths = tuple(one.strength for one in penalties)
        self._layers = tuple(layers)
        self.text = ", ".join(one.text for one in penalties)
        self.register_buffer("largest", self._largest())
        self.largest: Tensor
        began = [layer.grid is None or bool(layer.integers().any()) for layer in layers]
        self.register_buffer("began", torch.tensor(began, device=self.largest.device))
        self.began: Tensor

    def forward(self) -> Tensor:
        return torch.stack([strength * one() for strength, one in zip(self._strengths, self.each, strict=True)]).sum()

    def refresh(self) -> None:
        """See `Penalty.refresh`."""
        for one in self.each:
            one.refresh()  # type: ignore[operator]  # a ModuleList forgets what it holds

    def described(self) -> str:
        """What it is, to tell one run's checkpoint from another's."""
        return self.text

    def driven_to_zero(self, rate: float) -> str:
        """The first layer whose weights have all gone, by name, or "".

        Args:
            rate: the learning rate; Adam moves a weight by as much at a step.
        """
        rates = torch.tensor([rate * getattr(layer.parameter, "rate_ratio", 1.0) for layer in self._layers])
        reach = (STEPS * rates.to(self.largest.device) / self.largest).clamp(GONE, GONE_AT_MOST)
        gone = self._largest() < reach * self.largest
        for index, layer in enumerate(self._layers):
            gone[index] |= layer.grid is not None and not bool(layer.integers().any())
        gone &= self.began
        return self._layers[int(gone.int().argmax())].layer if bool(gone.any()) else ""

    @torch.no_grad()
    def _largest(self) -> Tensor:
        return torch.stack([layer.parameter.abs().amax().float() for layer in self._layers])
