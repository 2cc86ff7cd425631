"""Correlation: predictions rank as the teacher's do, over classes and over samples (DIST, Huang et al. 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from gossamer.training.losses.contract import Seen, check_taught
from gossamer.training.losses.embeddings import unit
from gossamer.training.losses.hard_labels import as_scores
from gossamer.training.losses.soft_labels import check_temperature

BETWEEN, WITHIN = 2.0, 2.0  # beta and gamma of the paper


class Correlation(nn.Module):
    """T^2 * (between * (1 - r over each sample's classes) + within * (1 - r over each class's samples)).

    r is Pearson's correlation of the probabilities of student and teacher. Unlike the divergence of soft labels it
    asks for the same order and proportions, not for the same numbers, which a student much smaller than its teacher
    cannot give: any a * p + b with a > 0 of the teacher's probabilities is as good as they are.

    Args:
        temperature: T; scores are divided by it before the softmax.
        output: which output has the scores (B, C).
        probabilities: the graph ends in a softmax: outputs are probabilities, whose logarithms are the scores.
        between, within: the factors that the paper recommends beside a cross-entropy.

    Raises:
        OptionError: a temperature that is not above 0.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        output: int = 0,
        probabilities: bool = False,
        between: float = BETWEEN,
        within: float = WITHIN,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.output = output
        self.probabilities = probabilities
        self.between = between
        self.within = within

    def forward(self, seen: Seen) -> Tensor:
        check_taught(seen, "correlation")
        own = seen.outputs[self.output]
        student_BC, teacher_BC = (
            (as_scores(scores, self.probabilities) / self.temperature).softmax(1)
            for scores in (own, seen.taught[self.output].to(own.dtype))
        )
        between = uncorrelated(student_BC, teacher_BC, 1).mean()
        within = uncorrelated(student_BC, teacher_BC, 0).mean()
        return self.temperature**2 * (self.between * between + self.within * within)


def uncorrelated(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """1 - Pearson's correlation along an axis, from 0 to 2.

    It is half the squared difference of the directions, which loses no digits near 0, and is 0 where both are constant.
    """
    one, other = (unit(values - values.mean(axis, keepdim=True), axis) for values in (a, b))
    return (one - other).square().sum(axis) / 2
