"""Decoupled: its two parts make up the divergence of soft labels; the target is the label, or the teacher's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.training.losses.cases import ROWS, numbers, seen  # noqa: E402

from gossamer.errors import OptionError  # noqa: E402
from gossamer.training.losses.correlation import Correlation  # noqa: E402
from gossamer.training.losses.decoupled import Decoupled, parts  # noqa: E402
from gossamer.training.losses.soft_labels import divergence  # noqa: E402


@settings(max_examples=30)
@given(numbers(ROWS), numbers(ROWS), st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_the_parts_make_up_soft_labels(student: Any, teacher: Any, targets: list[int]) -> None:
    """KL = KL of the target + (1 - p of the target) KL of the rest (equation 7 of the paper), sample by sample."""
    own, other, target = torch.tensor(student), torch.tensor(teacher), torch.tensor(targets)
    for sample in range(len(own)):
        one = slice(sample, sample + 1)
        of_target, of_rest = parts(own[one], other[one], target[one])
        sure = other[one].softmax(1)[0, targets[sample]]
        whole = divergence(own[one], other[one], 1.0)
        assert (of_target + (1 - sure) * of_rest).item() == pytest.approx(whole.item(), abs=1e-9)


@settings(max_examples=20)
@given(numbers(ROWS), numbers(ROWS))
def test_without_labels_the_teachers_choice_is_the_target(student: Any, teacher: Any) -> None:
    loss = Decoupled(4.0)
    found = loss(seen(student, teacher)).item()
    assert found == pytest.approx(loss(seen(student, teacher, teacher.argmax(1))).item())
    assert found == pytest.approx(loss(seen(student, teacher, np.zeros(5))).item())  # numbers name no classes


@settings(max_examples=20)
@given(numbers(ROWS), numbers(ROWS), st.floats(-5, 5))
def test_a_shift_of_all_scores_does_not_count(student: Any, teacher: Any, shift: float) -> None:
    loss = Decoupled(2.0)
    assert loss(seen(student + shift, teacher)).item() == pytest.approx(loss(seen(student, teacher)).item(), abs=1e-7)


def test_of_two_classes_there_is_no_rest() -> None:
    student, teacher = np.float64([[1, 2], [0, 3]]), np.float64([[2, 0], [1, 1]])
    assert Decoupled(1.0, rest=1e9)(seen(student, teacher)).item() == pytest.approx(
        divergence(torch.tensor(student), torch.tensor(teacher), 1.0).item()
    )


def test_scores_far_apart_do_not_overflow() -> None:
    student = torch.tensor([[200.0, 0, -200]], requires_grad=True)
    of_target, of_rest = parts(student, torch.tensor([[-200.0, 200, 0]]), torch.tensor([1]))
    torch.autograd.backward(of_target + of_rest)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert of_target.item() == pytest.approx(200)


@pytest.mark.parametrize("loss", [Decoupled, Correlation])
def test_a_temperature_out_of_range_is_refused(loss: Any) -> None:
    with pytest.raises(OptionError, match=r"temperature is 0\.0; allowed is a number above 0"):
        loss(0.0)
