"""The outputs themselves, for models that do not classify: embeddings, regression, signals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.training.losses.contract import Seen, check_taught

TINIEST = 1e-12  # of a power, so that an output that is always zero can be divided by


class Outputs(nn.Module):
    """The noise power over the signal power, the mean over outputs: |student - teacher|^2 / |teacher|^2.

    Args:
        count: how many of the outputs, from the first; the others are features.
        only: which of them; None takes all that are taught.
    """

    def __init__(self, count: int = 1, only: int | None = None) -> None:
        super().__init__()
        self.count = count
        self.only = only

    def forward(self, seen: Seen) -> Tensor:
        check_taught(seen, "outputs")
        wanted = slice(self.count) if self.only is None else slice(self.only, self.only + 1)
        pairs = zip(seen.outputs[wanted], seen.taught[wanted], strict=True)
        return torch.stack([noise_ratio(student, teacher) for student, teacher in pairs if teacher.numel()]).mean()


def noise_ratio(student: Tensor, teacher: Tensor) -> Tensor:
    """The power of the difference over the power of the teacher's values; both (B, ...)."""
    wanted = teacher.to(student.dtype)
    return (student - wanted).square().mean() / wanted.square().mean().clamp(min=TINIEST)
