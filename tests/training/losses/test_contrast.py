"""Contrast: least where each sample is closest to its own; others of the same class are no negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from gossamer.training.losses.contract import Seen  # noqa: E402
from gossamer.training.losses.contrast import Contrast, surprise  # noqa: E402


def rows(seed: int, count: int = 5, width: int = 3) -> Any:
    return torch.tensor(np.random.default_rng(seed).standard_normal((count, width)))


@settings(max_examples=30)
@given(st.integers(0, 999), st.permutations(range(5)), st.floats(0.05, 2))
def test_no_other_partners_are_better_than_the_own(seed: int, order: list[int], temperature: float) -> None:
    teacher = rows(seed)
    least = surprise(teacher, teacher, temperature).item()
    assert 0 <= least <= surprise(teacher[order], teacher, temperature).item() + 1e-12


@settings(max_examples=20)
@given(st.integers(0, 99), st.floats(0.01, 100))
def test_scale_does_not_count(seed: int, scale: float) -> None:
    student, teacher = rows(seed), rows(seed + 1000)
    found = surprise(scale * student, teacher / scale, 0.07).item()
    assert found == pytest.approx(surprise(student, teacher, 0.07).item())


def test_it_is_the_surprise_in_both_directions() -> None:
    student, teacher = rows(0), rows(1)
    own, other = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (student, teacher))
    scores = own @ other.T / 0.5
    forth, back = (np.diag(np.log(np.exp(s).sum(1, keepdims=True)) - s).mean() for s in (scores, scores.T))
    assert surprise(student, teacher, 0.5).item() == pytest.approx((forth + back) / 2)
    assert forth != pytest.approx(back)


def test_equals_are_as_surprising_as_a_guess() -> None:
    same = torch.ones(7, 3)
    assert surprise(same, same, 0.07).item() == pytest.approx(np.log(7), rel=1e-5)


def test_samples_of_the_same_class_are_no_negatives() -> None:
    same = torch.ones(6, 3)
    classes = torch.tensor([0, 0, 0, 1, 1, 2])
    expected = np.mean(np.log([4, 4, 4, 5, 5, 6]))
    assert surprise(same, same, 0.07, classes).item() == pytest.approx(expected, rel=1e-5)
    loss = Contrast(3, 3, strength=1.0)
    assert loss(Seen((same,), (same,), classes)).item() == pytest.approx(expected, rel=1e-5)
    assert loss(Seen((same,), (same,), classes.float())).item() == pytest.approx(np.log(6), rel=1e-5)


def test_its_gradient_is_that_of_its_value() -> None:
    student, teacher = rows(0).requires_grad_(), rows(1)
    assert torch.autograd.gradcheck(lambda own: surprise(own, teacher, 0.5, torch.tensor([0, 0, 1, 1, 2])), student)


@pytest.mark.parametrize("student", [torch.zeros(4, 3), torch.ones(4, 3), torch.randn(1, 3), torch.randn(4, 3) * 1e4])
def test_its_gradients_are_finite_and_reach_both_maps(student: Any) -> None:
    loss = Contrast(3, 5)
    own = student.clone().requires_grad_()
    torch.autograd.backward(loss(Seen((own,), (torch.randn(len(own), 5),), None)))
    found = [own.grad, *(parameter.grad for parameter in loss.parameters())]
    assert len(found) == 5
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in found)


def test_one_sample_has_nothing_to_be_told_from() -> None:
    assert Contrast(3, 3)(Seen((torch.randn(1, 3),), (torch.randn(1, 3),), None)).item() == 0
