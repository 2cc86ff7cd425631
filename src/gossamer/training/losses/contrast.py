"""Contrast: a sample's embedding names the teacher's of the same sample among others (CRD, Tian et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossamer.training.losses.contract import Seen, check_taught
from gossamer.training.losses.embeddings import Embedding, unit

WIDTH = 128  # the paper's
TEMPERATURE = 0.07
STRENGTH = 0.8


class Contrast(nn.Module):
    """strength * the surprise at the right partner among the batch's samples, the mean of both directions.

    Both embeddings go through a linear map of their own to `width` numbers of length 1; the cosines of all pairs over
    the temperature are scores, and each sample of the student must find its own one of the teacher, and the other way
    round (InfoNCE). With labels of classes, other samples of the same class are no negatives, as in the paper.

    The paper draws 16,384 negatives from a memory bank with a row for every sample of the data, a moving average of
    embeddings that the network has long left behind. Here they come from the batch: they are of the same weights, take
    no memory that grows with the data, need no numbering of samples, and nothing has to be kept in a checkpoint. In
    turn the batch must be large, 64 or more. A single sample has no negatives and gives 0.

    Args:
        student, teacher: width of their embeddings.
        embedding: where these come from.
        width: of the space in which they are compared.
        temperature: small ones look at the closest negatives alone.
        strength: the factor that the paper recommends beside a cross-entropy.
    """

    def __init__(
        self,
        student: int,
        teacher: int,
        embedding: Embedding = Embedding(),  # noqa: B008  # frozen, so it can be shared
        width: int = WIDTH,
        temperature: float = TEMPERATURE,
        strength: float = STRENGTH,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.temperature = temperature
        self.strength = strength
        self.of_student = nn.Linear(student, width)
        self.of_teacher = nn.Linear(teacher, width)

    def forward(self, seen: Seen) -> Tensor:
        check_taught(seen, "contrast")
        own = self.embedding.of(seen.outputs)
        with torch.autocast(own.device.type, enabled=False):
            student_BW = self.of_student(own)
            teacher_BW = self.of_teacher(self.embedding.of(seen.taught).to(own.dtype))
            return self.strength * surprise(student_BW, teacher_BW, self.temperature, _classes(seen.labels))


def surprise(student_BW: Tensor, teacher_BW: Tensor, temperature: float, classes_B: Tensor | None = None) -> Tensor:
    """The cross-entropy of naming the partner, in both directions; from 0 up.

    Args:
        classes_B: of samples; others of the same class are left out.
    """
    scores_BB = unit(student_BW, 1) @ unit(teacher_BW, 1).T / temperature
    right_B = torch.arange(len(scores_BB), device=scores_BB.device)
    if classes_B is not None:
        alike_BB = (classes_B[:, None] == classes_B) & (right_B[:, None] != right_B)
        scores_BB = scores_BB.masked_fill(alike_BB, -torch.inf)
    return (functional.cross_entropy(scores_BB, right_B) + functional.cross_entropy(scores_BB.T, right_B)) / 2


def _classes(labels: Tensor | None) -> Tensor | None:
    """Labels that name one class a sample."""
    return labels if labels is not None and labels.ndim == 1 and not labels.is_floating_point() else None
