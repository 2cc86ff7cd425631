"""The way in which weights are removed, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gossamer.constraints.contract import as_text
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError
from gossamer.training.layer_weights import LayerWeight
from gossamer.training.sparsity.contract import Shaper
from gossamer.training.sparsity.gradual import Gradual
from gossamer.training.sparsity.movement import Movement
from gossamer.training.sparsity.rigl import RigL

Removal = Literal["second_order", "gradual", "movement", "rigl"]


def build(removal: Removal, layers: Sequence[LayerWeight], aim: Sparse, aims: Sequence[Sparse] = ()) -> Shaper:
    """A shaper of the layers.

    Args:
        aims: of each layer, where they differ.

    Raises:
        OptionError: second_order, which removes weights between runs of training, not in one.
    """
    match removal:
        case "gradual":
            return Gradual(layers, aim, aims)
        case "movement":
            return Movement(layers, aim, aims)
        case "rigl":
            return RigL(layers, aim, aims)
        case _:
            raise OptionError(f"{removal} removes weights in rounds; for one run take gradual, movement or rigl")


def suited(layers: Sequence[LayerWeight], aim: Sparse) -> tuple[tuple[LayerWeight, ...], tuple[str, ...]]:
    """The layers that can become so, and for each of the others a line that says why not."""
    obstacles = [(layer, aim.obstacle(layer.shape_GOK, layer.k_shape)) for layer in layers]
    notes = tuple(f"{as_text(aim)} left {layer.layer} as it was: {why}" for layer, why in obstacles if why)
    return tuple(layer for layer, why in obstacles if not why), notes
