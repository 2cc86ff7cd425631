"""The moving average of weights, which generalises better than the last ones (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def snapshot(module: nn.Module) -> State:
    """A copy of all parameters and buffers, by name."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def load(module: nn.Module, state: State) -> None:
    """Put a snapshot's values into the module's own tensors."""
    for name, value in module.state_dict().items():
        value.copy_(state[name])


@torch.no_grad()
def follow(average: State, module: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the module after a step (0, 1, ...); it forgets the first weights soon.

    Early on less is kept, (1 + step) / (10 + step); running statistics are averaged as well, counters are taken over.
    """
    kept = min(decay, (1 + step) / (10 + step))
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - kept)
        else:
            average[name].copy_(value)


@contextmanager
def holding(module: nn.Module, state: State | None) -> Iterator[None]:
    """The module with other values for a while; None leaves it as it is."""
    if state is None:
        yield
        return
    own = snapshot(module)
    load(module, state)
    try:
        yield
    finally:
        load(module, own)
