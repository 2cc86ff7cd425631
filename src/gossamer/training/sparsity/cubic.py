"""Zeros that become more and more, along a cubic (Zhu and Gupta 2017): fast at first, while many weights are left.

A weight that was removed keeps the value that it had, and comes back if its score is among the largest again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.constraints.sparse import Sparse
from gossamer.training.layer_weights import LayerWeight
from gossamer.training.sparsity.contract import Moment, Shaper, chosen, partial

REHEARSED = 0.875  # of the zeros: half of the updates are done then


class Cubic(Shaper):
    """Masks of those with the largest scores."""

    end = 0.5  # what is left needs as long to recover; a quarter of training was too little where it was measured
    updates = 24

    def __init__(self, layers: Sequence[LayerWeight], aim: Sparse, aims: Sequence[Sparse] = ()) -> None:
        super().__init__(layers, aim, aims)
        for index, layer in enumerate(self._layers):
            self.register_buffer(f"whole_{index}", layer.parameter.detach().clone())

    def rehearse(self) -> None:
        """As halfway; at the end, the rate that is found is too high for a net that comes there by and by."""
        self._by_magnitude(REHEARSED)

    @torch.no_grad()
    def after_step(self, at: Moment | None) -> None:
        self._hold()
        number = 0 if at is None else self._update_at(at.done + 1, at.total)
        if number:
            self._choose(1 - (1 - number / self.updates) ** 3)

    @abstractmethod
    def score(self, index: int, whole: Tensor) -> Tensor:
        """What the weights of a layer count, in the parameter's shape.

        Args:
            whole: its values, with those that weights had when they were removed.
        """

    def whole(self, index: int) -> Tensor:
        """The values of a layer's weights, with those that they had when they were removed."""
        mask, kept = self.get_buffer(f"mask_{index}"), self.get_buffer(f"whole_{index}")
        return torch.where(mask, self._layers[index].parameter, kept)

    def _choose(self, share: float) -> None:
        for index, (layer, mask) in enumerate(self._masked()):
            aim, whole = partial(self.aims[index], share), self.whole(index)
            self.get_buffer(f"whole_{index}").copy_(whole)
            if aim is not None:
                mask.copy_(chosen(layer, self.score(index, whole), aim))
            layer.parameter.copy_(whole.masked_fill(~mask, 0))
