"""Features: what the teacher computes inside, as hints for the student (FitNets, Romero et al. 2015)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gossamer.errors import DataError
from gossamer.training.losses.contract import Seen
from gossamer.training.losses.outputs import noise_ratio


class Hint(NamedTuple):
    """A tensor of the student that learns from one of the teacher's. Positions agree, channels need not.

    Attributes:
        student, teacher: names of tensors in the two graphs.
        student_channels, teacher_channels: length of the channel axis.
        axis: the channel axis: 1 for (B, C, H, W), the last for (B, T, C).
        adapted: channels differ in number or meaning, so that a linear map comes between.
    """

    student: str
    teacher: str
    student_channels: int
    teacher_channels: int
    axis: int
    adapted: bool


class Adapter(nn.Module):
    """A linear map of channels, the same at every position: a 1x1 convolution."""

    def __init__(self, hint: Hint) -> None:
        super().__init__()
        self.axis = hint.axis
        self.linear = nn.Linear(hint.student_channels, hint.teacher_channels)

    def forward(self, feature: Tensor) -> Tensor:
        adapted: Tensor = self.linear(feature.movedim(self.axis, -1))
        return adapted.movedim(-1, self.axis)


class Features(nn.Module):
    """The mean over hints of the noise power of the adapted feature over the power of the teacher's.

    Args:
        hints: the pairs of tensors; they are the last outputs of student and teacher, in this order.
    """

    def __init__(self, hints: tuple[Hint, ...]) -> None:
        super().__init__()
        self.hints = hints
        self.adapters = nn.ModuleList(Adapter(hint) if hint.adapted else nn.Identity() for hint in hints)

    def forward(self, seen: Seen) -> Tensor:
        count = len(self.hints)
        if len(seen.outputs) < count or len(seen.taught) < count:
            raise DataError(
                f"features needs {count} tensors of student and teacher as their last outputs, "
                f"got {len(seen.outputs)} and {len(seen.taught)}; take both models from `with_hints`"
            )
        triples = zip(self.adapters, seen.outputs[-count:], seen.taught[-count:], strict=True)
        return torch.stack([noise_ratio(adapt(student), teacher) for adapt, student, teacher in triples]).mean()
