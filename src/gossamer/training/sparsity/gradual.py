"""Gradual pruning (Zhu and Gupta 2017, "To prune, or not to prune"): the smallest weights go, more and more of them."""

from __future__ import annotations

from torch import Tensor

from gossamer.training.sparsity.contract import Moment, magnitudes
from gossamer.training.sparsity.cubic import Cubic


class Gradual(Cubic):
    """Masks by magnitude, along a cubic."""

    def after_backward(self, at: Moment | None) -> None:
        self._block_gradients()

    def score(self, index: int, whole: Tensor) -> Tensor:
        return magnitudes(self._layers[index], whole)
