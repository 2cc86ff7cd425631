"""Mutual learning: each student is moved by what the others say, taken as given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from tests.training.losses.cases import ROWS, numbers  # noqa: E402
from tests.training.small_jobs import job, samples  # noqa: E402

from gossamer.errors import OptionError  # noqa: E402
from gossamer.training.loop import train  # noqa: E402
from gossamer.training.losses.contract import Seen  # noqa: E402
from gossamer.training.losses.hard_labels import HardLabels  # noqa: E402
from gossamer.training.losses.mutual import Mutual  # noqa: E402
from gossamer.training.losses.soft_labels import divergence  # noqa: E402
from gossamer.training.pupil import WeightedLoss  # noqa: E402
from gossamer.training.together import Together  # noqa: E402


@settings(max_examples=20)
@given(numbers(ROWS), numbers(ROWS))
def test_each_student_has_the_gradient_of_a_student_with_the_other_as_its_teacher(first: Any, second: Any) -> None:
    own = [torch.tensor(values, requires_grad=True) for values in (first, second)]
    found = torch.autograd.grad(Mutual(temperature=2.0)(Seen(tuple(own), (), None)), own)
    for index, student in enumerate(own):
        teacher = own[1 - index].detach()
        assert torch.allclose(found[index], torch.autograd.grad(divergence(student, teacher, 2.0), student)[0])


@settings(max_examples=20)
@given(numbers(ROWS), numbers(ROWS), numbers(ROWS))
def test_it_is_the_mean_over_the_others(first: Any, second: Any, third: Any) -> None:
    said = tuple(torch.tensor(values) for values in (first, second, third))
    pairs = sum(Mutual((a, b))(Seen(said, (), None)).item() for a, b in ((0, 1), (0, 2), (1, 2)))
    assert Mutual((0, 1, 2))(Seen(said, (), None)).item() == pytest.approx(pairs / 2, abs=1e-9)
    assert pairs >= 0
    assert Mutual()(Seen((said[0], said[0]), (), None)).item() == pytest.approx(0, abs=1e-9)


def student(width: int, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 3))


def test_two_students_come_to_agree_and_to_be_right() -> None:
    def run(mutual: float) -> tuple[float, float]:
        both = Together([student(12, 1), student(20, 2)])
        losses = (WeightedLoss(HardLabels(0)), WeightedLoss(HardLabels(1)), WeightedLoss(Mutual(), mutual))
        train(job(both, losses=losses, options={"epochs": 12, "rate": 0.03}))
        data = samples()
        with torch.no_grad():
            first, second = both(torch.from_numpy(np.asarray(data.columns["x"])))
        right = (second.argmax(1).numpy() == data.labels).mean()
        return float(right), divergence(first, second, 1.0).item()

    alone, together = run(1e-9), run(1.0)
    assert together[1] < 0.5 * alone[1]
    assert together[0] > 0.9


def test_one_student_alone_is_refused() -> None:
    with pytest.raises(OptionError, match=r"mutual learning takes two students at least; scores are at \[0, 0\]"):
        Mutual((0, 0))
