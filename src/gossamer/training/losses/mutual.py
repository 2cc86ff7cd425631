"""Mutual learning: students that learn side by side, each from what the others say now (Zhang et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gossamer.errors import OptionError
from gossamer.training.losses.contract import Seen
from gossamer.training.losses.hard_labels import as_scores
from gossamer.training.losses.soft_labels import check_temperature, divergence


class Mutual(nn.Module):
    """The sum over students of the mean over the others of T^2 KL(other at T || student at T).

    What the others say is taken as given, as a teacher's word is, so each student is moved by its own part alone. All
    move in the same step, where the paper lets them take turns.

    Called with the outputs of all students, one student's after the other's, as `Together` gives them. Labels teach
    beside it: `HardLabels(place)` for each place in `scores`.

    Args:
        scores: places of the scores (B, C, ...) among the outputs, one a student.
        temperature: T; the paper's is 1.
        probabilities: the graphs end in a softmax: outputs are probabilities, whose logarithms are the scores.

    Raises:
        OptionError: fewer than two students, or a temperature that is not above 0.
    """

    def __init__(self, scores: Sequence[int] = (0, 1), temperature: float = 1.0, probabilities: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        if len(set(scores)) < 2:
            raise OptionError(f"mutual learning takes two students at least; scores are at {list(scores)}")
        self.scores = tuple(scores)
        self.temperature = temperature
        self.probabilities = probabilities

    def forward(self, seen: Seen) -> Tensor:
        said = [as_scores(seen.outputs[place], self.probabilities) for place in self.scores]
        apart = [
            divergence(own, other.detach(), self.temperature)
            for index, own in enumerate(said)
            for other in said[:index] + said[index + 1 :]
        ]
        return torch.stack(apart).sum() / (len(said) - 1)
