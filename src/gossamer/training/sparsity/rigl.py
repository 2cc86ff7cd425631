"""RigL (Evci et al. 2020, "Rigging the lottery"): as many zeros from the first step on, in places that change.

Now and then the smallest weights go, and as many zeros with the largest gradients begin to grow; fewer each time, along
half a cosine. Nothing but the masks' updates needs the gradients of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi

import torch
from torch import Tensor

from gossamer.constraints.sparse import Sparse
from gossamer.training.layer_weights import LayerWeight
from gossamer.training.sparsity.contract import Moment, Shaper, chosen, magnitudes

MOVED = 0.3  # of the weights that are not zero: how many move at first


class RigL(Shaper):
    """Masks of fixed size, the first by magnitude; see the module."""

    def __init__(self, layers: Sequence[LayerWeight], aim: Sparse, aims: Sequence[Sparse] = ()) -> None:
        super().__init__(layers, aim, aims)
        self._by_magnitude(1.0)

    def settled(self, at: Moment) -> bool:
        return True

    @torch.no_grad()
    def after_backward(self, at: Moment | None) -> None:
        number = 0 if at is None else self._update_at(at.done, at.total)
        if number:
            share = MOVED / 2 * (1 + cos(pi * number / self.updates))
            for aim, (layer, mask) in zip(self.aims, self._masked(), strict=True):
                if layer.parameter.grad is not None:
                    mask.copy_(_moved(layer, mask, layer.parameter.grad, share, aim))
            self._hold()
        self._block_gradients()

    def after_step(self, at: Moment | None) -> None:
        self._hold()


def _moved(layer: LayerWeight, mask: Tensor, gradient: Tensor, share: float, aim: Sparse) -> Tensor:
    """The mask without the smallest of its weights, and with those of the largest gradients instead."""
    alive = float(mask.float().mean())
    fewer = Sparse(ratio=min(1 - alive * (1 - share), 1 - 1e-9), block=aim.block)
    kept = chosen(layer, magnitudes(layer, layer.parameter), fewer) & mask
    size = gradient.detach().abs().cpu().double()  # not every accelerator has so many digits
    return chosen(layer, torch.where(kept.cpu(), size.sum() + 1, size), aim)
