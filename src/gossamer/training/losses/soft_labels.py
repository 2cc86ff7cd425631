"""Soft labels: the teacher's distribution over classes (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossamer.errors import OptionError
from gossamer.training.losses.contract import Seen, check_taught
from gossamer.training.losses.hard_labels import HardLabels, as_scores


class SoftLabels(nn.Module):
    """alpha * T^2 * KL(teacher at T || student at T) + (1 - alpha) * cross-entropy with the labels.

    T^2 keeps the gradient's size the same at every temperature.

    Args:
        temperature: T; scores are divided by it before the softmax, so that small ones count too.
        alpha: the teacher's share; 1 uses no labels.
        output: which output has the scores (B, C, ...).
        probabilities: the graph ends in a softmax: outputs are probabilities, whose logarithms are the scores.

    Raises:
        OptionError: a temperature that is not above 0, or an alpha outside 0 to 1.
    """

    def __init__(
        self, temperature: float = 1.0, alpha: float = 1.0, output: int = 0, probabilities: bool = False
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if not 0 <= alpha <= 1:
            raise OptionError(f"alpha is {alpha}; allowed is 0 (labels alone) to 1 (the teacher alone)")
        self.temperature = temperature
        self.alpha = alpha
        self.output = output
        self.probabilities = probabilities
        self.hard = HardLabels(output, probabilities=probabilities)

    def forward(self, seen: Seen) -> Tensor:
        check_taught(seen, "soft_labels")
        student = as_scores(seen.outputs[self.output], self.probabilities)
        teacher = as_scores(seen.taught[self.output].to(student.dtype), self.probabilities)
        soft = divergence(student, teacher, self.temperature)
        return soft if self.alpha == 1 else self.alpha * soft + (1 - self.alpha) * self.hard(seen)


def check_temperature(temperature: float) -> None:
    """See that scores can be divided by it.

    Raises:
        OptionError: it is not above 0.
    """
    if not 0 < temperature < float("inf"):
        raise OptionError(f"temperature is {temperature}; allowed is a number above 0")


def divergence(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) over axis 1, the mean over all other axes."""
    log_student = functional.log_softmax(student_BC / temperature, 1)
    log_teacher = functional.log_softmax(teacher_BC / temperature, 1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(1).mean() * temperature**2


def are_probabilities(output_BC: Tensor) -> bool:
    """Whether each row is a distribution: the graph ends in a softmax."""
    sums = output_BC.sum(1)
    return bool((output_BC >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
