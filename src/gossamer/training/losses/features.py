"""Features: what the teacher computes inside, as hints for the student (FitNets, Romero et al. 2015).

Other losses that look inside (`attention`, `similarities`, ...) ride on the same pairs of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """What is said of pairs of inner tensors: that the student's is the teacher's, or how else they are to be alike.

    The mean over hints of the noise power of the adapted feature over the power of the teacher's, times `follow`, and
    the losses in `others`, each times its factor. All of them see the same pairs, with the channels on axis 1.

    Args:
        hints: the pairs of tensors; they are the last outputs of student and teacher, in this order.
        follow: the factor of the tensors themselves; 0 for other losses alone, and then no adapters are made.
        others: losses that are called with pairs as outputs, such as `Attention`, and their factors.
    """

    def __init__(
        self, hints: tuple[Hint, ...], follow: float = 1.0, others: Sequence[tuple[nn.Module, float]] = ()
    ) -> None:
        super().__init__()
        self.hints = hints
        self.follow = follow
        self.factors = tuple(factor for _, factor in others)
        self.names = tuple(type(loss).__name__ for loss, _ in others)
        self.others = nn.ModuleList(loss for loss, _ in others)
        self.adapters = nn.ModuleList(
            Adapter(hint) if hint.adapted else nn.Identity() for hint in (hints if follow else ())
        )

    def forward(self, seen: Seen) -> Tensor:
        count = len(self.hints)
        if len(seen.outputs) < count or len(seen.taught) < count:
            raise DataError(
                f"features needs {count} tensors of student and teacher as their last outputs, "
                f"got {len(seen.outputs)} and {len(seen.taught)}; take both models from `with_hints`"
            )
        own, taught = seen.outputs[-count:], seen.taught[-count:]
        parts = [loss(self._pairs(own, taught, seen.labels)) * factor for loss, factor in self._others()]
        if self.follow:
            triples = zip(self.adapters, own, taught, strict=True)
            ratios = [noise_ratio(adapt(student), teacher) for adapt, student, teacher in triples]
            parts.append(torch.stack(ratios).mean() * self.follow)
        return torch.stack(parts).sum()

    def _others(self) -> Iterator[tuple[nn.Module, float]]:
        return zip(self.others, self.factors, strict=True)

    def _pairs(self, own: tuple[Tensor, ...], taught: tuple[Tensor, ...], labels: Tensor | None) -> Seen:
        """The pairs as outputs (B, C, ...)."""
        axes = [hint.axis for hint in self.hints]
        return Seen(
            tuple(feature.movedim(axis, 1) for feature, axis in zip(own, axes, strict=True)),
            tuple(feature.movedim(axis, 1) for feature, axis in zip(taught, axes, strict=True)),
            labels,
        )
