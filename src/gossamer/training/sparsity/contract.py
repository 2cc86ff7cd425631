"""What a shaper is: it chooses, again and again while weights are trained, which of them are zero.

The weights of the student are at every moment those that are in use, zeros and all, so that whatever judges, averages
or stores them sees the sparse net. Masks, and what else a method keeps, are buffers: checkpoints hold them. The loop
calls a shaper twice at each step, after the gradients, which are dense then, and after the step of the optimizer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.constraints.contract import as_text
from gossamer.constraints.sparse import Sparse
from gossamer.errors import CandidateError, OptionError
from gossamer.training.layer_weights import LayerWeight


class Moment(NamedTuple):
    """How many steps are done, and how many there are in all."""

    done: int
    total: int


class Shaper(nn.Module):
    """Masks of some layers, all of them full in the beginning.

    Attributes:
        aim: what was asked for.
        aims: what each layer is to be in the end: the same, or its own part of the zeros.
        begin, end: shares of training between which masks change.
        updates: how often they do.
    """

    begin = 0.0
    end = 0.75
    updates = 32

    def __init__(self, layers: Sequence[LayerWeight], aim: Sparse, aims: Sequence[Sparse] = ()) -> None:
        super().__init__()
        self.aim = aim
        self._layers = tuple(layers)
        self.aims = tuple(aims) or (aim,) * len(self._layers)
        for index, layer in enumerate(self._layers):
            self.register_buffer(f"mask_{index}", torch.ones_like(layer.parameter, dtype=torch.bool))

    @abstractmethod
    def after_backward(self, at: Moment | None) -> None:
        """Use the gradients, which are dense, and take away those of zeros.

        Args:
            at: None while a learning rate is looked for: masks stay as they are.
        """

    @abstractmethod
    def after_step(self, at: Moment | None) -> None:
        """Put zeros back where the optimizer moved them, and choose anew if it is time to."""

    def rehearse(self) -> None:
        """Be sparse, by magnitude, while a learning rate is looked for.

        The net as it is begins at the bottom of its loss, where any rate seems too high. What is changed, masks too, is
        put back by whoever asks.
        """
        self._by_magnitude(1.0)

    @torch.no_grad()
    def _by_magnitude(self, share: float) -> None:
        for aim, (layer, mask) in zip(self.aims, self._masked(), strict=True):
            part = partial(aim, share)
            if part is not None:
                mask.copy_(chosen(layer, magnitudes(layer, layer.parameter), part))
        self._hold()

    def settled(self, at: Moment) -> bool:
        """Whether the student is as sparse as it is to be, once so many steps are done."""
        return at.done >= self._step_of(self.updates, at.total)

    def check(self, total: int, epochs: int = 1) -> None:
        """See that so many steps, of so many epochs, suffice for all updates.

        Raises:
            OptionError: they do not.
        """
        changing = int((self.end - self.begin) * total)
        if changing < self.updates:
            least = ceil(self.updates / (self.end - self.begin))
            raise OptionError(
                f"{as_text(self.aim)} by {self.name} changes its zeros {self.updates} times, and so needs at least "
                f"{least} steps of training; these are {total}: give {ceil(epochs * least / max(total, 1))} epochs at "
                "least, or a smaller batch"
            )

    def described(self) -> str:
        """What it is, to tell one run's checkpoint from another's."""
        spread = "" if set(self.aims) <= {self.aim} else f" by layer: {', '.join(map(as_text, self.aims))}"
        return f"{self.name} {as_text(self.aim)}{spread}"

    @property
    def by_initializer(self) -> dict[str, Sparse]:
        """What each weight is to be, by the initializer's name."""
        return {layer.initializer: aim for layer, aim in zip(self._layers, self.aims, strict=True)}

    @property
    def by_layer(self) -> dict[str, Sparse]:
        """The same by layer."""
        return {layer.layer: aim for layer, aim in zip(self._layers, self.aims, strict=True)}

    @property
    def name(self) -> str:
        """As it is asked for."""
        return type(self).__name__.lower()

    def held(self, state: Mapping[str, Tensor]) -> None:
        """Put zeros into another copy of the student's values, such as their average."""
        for layer, mask in self._masked():
            state[layer.path].masked_fill_(~mask, 0)

    def _masked(self) -> list[tuple[LayerWeight, Tensor]]:
        return [(layer, self.get_buffer(f"mask_{index}")) for index, layer in enumerate(self._layers)]

    @torch.no_grad()
    def _hold(self) -> None:
        for layer, mask in self._masked():
            layer.parameter.masked_fill_(~mask, 0)  # a product would leave zeros with a sign

    def _block_gradients(self) -> None:
        for layer, mask in self._masked():
            if layer.parameter.grad is not None:
                layer.parameter.grad.mul_(mask)

    def _update_at(self, done: int, total: int) -> int:
        """The number of the update, 1 to `updates`, that comes when so many steps are done; 0 for none."""
        for number in range(1, self.updates + 1):
            if self._step_of(number, total) == done:
                return number
        return 0

    def _step_of(self, number: int, total: int) -> int:
        return int((self.begin + (self.end - self.begin) * number / self.updates) * total)


def chosen(layer: LayerWeight, score: Tensor, aim: Sparse) -> Tensor:
    """The mask that an aim makes of scores in the parameter's shape, on its device."""
    score_GOK = layer.matrix(score.detach()).cpu().double().numpy()
    return layer.tensor(torch.from_numpy(aim.mask(score_GOK))).to(score.device)


def magnitudes(layer: LayerWeight, parameter: Tensor) -> Tensor:
    """Squares of what numbers in the place of the parameter stand for."""
    return (parameter.detach() * layer.unit()).square()


def partial(aim: Sparse, share: float) -> Sparse | None:
    """The same pattern with fewer zeros: so great a share of those in the end; None for none at all.

    Of N:M more than N stay.
    """
    if aim.pattern is not None:
        n, m = aim.pattern
        kept = m - round(share * (m - n))
        return None if kept == m else Sparse(pattern=(kept, m))
    return Sparse(ratio=share * (aim.ratio or 0.0), block=aim.block)


def check_reached(layers: Sequence[LayerWeight], aim: Sparse) -> None:
    """See that each layer is as sparse as it was to be.

    Raises:
        CandidateError: names the first that is not.
    """
    for layer in layers:
        if not aim.contains(stored_GOK(layer)):
            raise CandidateError(f"{layer.layer}: its weight {layer.initializer} is not {as_text(aim)} after training")


def stored_GOK(layer: LayerWeight) -> np.ndarray:
    """What a file holds of a layer's weight, integers or floats."""
    stored = layer.parameter if layer.grid is None else layer.integers()
    return layer.matrix(stored.detach()).cpu().numpy()
