"""Several students as one module, so that one loop trains them side by side.

    students = Together([lower(small), lower(other)])
    losses = [WeightedLoss(HardLabels(0)), WeightedLoss(HardLabels(1)), WeightedLoss(Mutual((0, 1)))]
    train(Job(Pupil(students, losses), Lessons(samples), Lessons(others)))
    results = [write_back(student, model) for student, model in zip(students.students, (small, other))]

The first one chooses the epoch where labels count right answers; else the sum of the losses does.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Together(nn.Module):
    """Students that see the same inputs; their outputs come one student's after the other's.

    Attributes:
        students: in order; they may differ in everything but their inputs.
    """

    def __init__(self, students: Sequence[nn.Module]) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all students for inputs (B, ...)."""
        given = [student(*inputs) for student in self.students]
        return tuple(output for one in given for output in (one if isinstance(one, tuple) else (one,)))
