"""How large the weights of each layer are in the beginning, which penalties measure them by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.training.layer_weights import LayerWeight

SMALLEST = 1e-12  # of a scale: a layer of nothing but zeros has none


@torch.no_grad()
def scales_of(layers: Sequence[LayerWeight]) -> Tensor:
    """The root mean square of each layer's weights that are not zero, (L,)."""
    return torch.stack([_scale(layer.real()) for layer in layers]).clamp(min=SMALLEST)


@torch.no_grad()
def counts_of(layers: Sequence[LayerWeight]) -> Tensor:
    """How many weights of each layer are not zero, at least 1, (L,), float32."""
    return torch.stack([(layer.parameter != 0).sum().float() for layer in layers]).clamp(min=1)


def _scale(real: Tensor) -> Tensor:
    return (real.float().square().sum() / (real != 0).sum().clamp(min=1)).sqrt()
