"""Movement pruning (Sanh et al. 2020): weights that training moves towards zero go, not those that are small.

A weight's score is the sum over all steps of -w dL/dw, with the weights in use: it rises while steps make the weight
larger. That is the gradient of the scores themselves, passed straight through the choice of the largest. Scores of
weights that were removed move on. Each step's gradients are taken relative to how large they are in the layer, as the
paper's Adam does for each score: else the few steps after many weights went outweigh all others. Made for fine-tuning,
where a large weight says what the network learned before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.constraints.sparse import Sparse
from gossamer.training.layer_weights import LayerWeight
from gossamer.training.sparsity.contract import Moment
from gossamer.training.sparsity.cubic import Cubic

SMALLEST = 1e-30  # of gradients


class Movement(Cubic):
    """Masks by accumulated movement, along a cubic."""

    begin = 0.1  # until then scores tell little

    def __init__(self, layers: Sequence[LayerWeight], aim: Sparse, aims: Sequence[Sparse] = ()) -> None:
        super().__init__(layers, aim, aims)
        for index, layer in enumerate(self._layers):
            self.register_buffer(f"score_{index}", torch.zeros_like(layer.parameter))

    @torch.no_grad()
    def after_backward(self, at: Moment | None) -> None:
        for index, layer in enumerate(self._layers):
            gradient = layer.parameter.grad
            if at is not None and gradient is not None:
                size = gradient.square().mean().sqrt().clamp(min=SMALLEST)
                self.get_buffer(f"score_{index}").sub_(self.whole(index) * gradient / size)
        self._block_gradients()

    def score(self, index: int, whole: Tensor) -> Tensor:
        return self.get_buffer(f"score_{index}")
