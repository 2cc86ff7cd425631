"""What a penalty is: a module that says what the weights as they are cost, whatever the samples.

A penalty is a mean over weights, so that its strength means the same for small nets and large ones: with strength 1,
all weights together are worth about 1, as much as one nat of a cross-entropy.

What it learns itself, such as the middles of a mixture, are parameters, which train beside the student's and are thrown
away; what it has to remember from one epoch to the next are buffers, so that checkpoints hold both. The layers' weights
themselves belong to the student: a penalty keeps them in a tuple, where torch does not take them for its own. Its
settings are plain attributes, as checkpoints are told apart by them.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Penalty(nn.Module):
    """Call it without arguments."""

    @abstractmethod
    def forward(self) -> Tensor:
        """What the weights cost now: one number, float32, with a gradient for each of them."""

    def refresh(self) -> None:
        """Look at the weights anew: called before the first step, and after each epoch, before it is judged.

        It depends on nothing but the weights and the buffers, so that a run that was killed goes on as it was. Most
        penalties have nothing to do here.
        """
        return None
