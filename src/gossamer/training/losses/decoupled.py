"""Decoupled soft labels: how sure of the target, apart from how the rest is shared (DKD, Zhao et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.training.losses.contract import Seen, check_taught
from gossamer.training.losses.hard_labels import as_scores
from gossamer.training.losses.soft_labels import check_temperature, divergence

TARGET, REST = 1.0, 8.0  # alpha and beta of the paper, for small pictures; for ImageNet it takes 1 and 0.5


class Decoupled(nn.Module):
    """T^2 * (target * KL of (target, everything else) + rest * KL of the distribution over the other classes).

    In soft labels the second part is weighed by 1 - the teacher's probability of the target, so that a sure teacher
    teaches little of what the other classes are like; here the two have factors of their own.

    The target is the label; without labels of classes, the teacher's arg-max is taken for it.

    Args:
        temperature: T; scores are divided by it before the softmax.
        output: which output has the scores (B, C), of two classes at least.
        probabilities: the graph ends in a softmax: outputs are probabilities, whose logarithms are the scores.
        target, rest: the factors that the paper recommends beside a cross-entropy.

    Raises:
        OptionError: a temperature that is not above 0.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        output: int = 0,
        probabilities: bool = False,
        target: float = TARGET,
        rest: float = REST,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.output = output
        self.probabilities = probabilities
        self.target = target
        self.rest = rest

    def forward(self, seen: Seen) -> Tensor:
        check_taught(seen, "decoupled")
        student_BC = as_scores(seen.outputs[self.output], self.probabilities) / self.temperature
        teacher_BC = as_scores(seen.taught[self.output].to(student_BC.dtype), self.probabilities) / self.temperature
        of_target, of_rest = parts(student_BC, teacher_BC, _targets(seen.labels, teacher_BC))
        return self.temperature**2 * (self.target * of_target + self.rest * of_rest)


def parts(student_BC: Tensor, teacher_BC: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """The two divergences, means over samples: of being the target or not, and among the other classes."""
    others_BC = torch.arange(student_BC.shape[1], device=student_BC.device) != target_B[:, None]
    own, taught = (_split(scores, others_BC, target_B) for scores in (student_BC, teacher_BC))
    return divergence(own[0], taught[0], 1.0), divergence(own[1], taught[1], 1.0)


def _split(scores_BC: Tensor, others_BC: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the target and of everything else together (B, 2), and of the other classes (B, C - 1)."""
    rest = scores_BC[others_BC].reshape(len(scores_BC), -1)
    of_target = scores_BC.gather(1, target_B[:, None])
    return torch.cat([of_target, rest.logsumexp(1, keepdim=True)], 1), rest


def _targets(labels: Tensor | None, teacher_BC: Tensor) -> Tensor:
    if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
        return labels.long()
    return teacher_BC.argmax(1)
