"""Similarities: blind to turns and scales of activations, to their shape, and to the order of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.training.losses.cases import FEATURE, numbers, seen  # noqa: E402

from gossamer.training.losses.contract import Seen  # noqa: E402
from gossamer.training.losses.similarities import Similarities  # noqa: E402


@settings(max_examples=20)
@given(st.integers(0, 99), st.floats(0.01, 100), st.integers(6, 20))
def test_turn_scale_and_shape_do_not_count(seed: int, scale: float, width: int) -> None:
    rng = np.random.default_rng(seed)
    student = rng.standard_normal((5, 3, 2))
    turn_DE = np.linalg.qr(rng.standard_normal((width, 6)))[0].T
    teacher = scale * student.reshape(5, 6) @ turn_DE
    assert Similarities()(seen(student, teacher)).item() == pytest.approx(0, abs=1e-9)


@settings(max_examples=20)
@given(numbers(FEATURE), numbers(FEATURE), st.permutations(range(4)))
def test_the_order_of_samples_does_not_count(student: Any, teacher: Any, order: list[int]) -> None:
    found = Similarities()(seen(student[order], teacher[order])).item()
    assert found == pytest.approx(Similarities()(seen(student, teacher)).item(), rel=1e-6, abs=1e-9)


def test_it_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((4, 6)), rng.standard_normal((4, 9))
    ours, theirs = ((g := x @ x.T) / np.linalg.norm(g, axis=1, keepdims=True) for x in (student, teacher))
    expected = 3000 * np.linalg.norm(ours - theirs) ** 2 / 4**2
    assert Similarities()(seen(student, teacher)).item() == pytest.approx(expected)


def test_what_is_no_float_is_not_compared() -> None:
    own, other = torch.randn(3, 2), torch.randn(3, 2)
    both = Similarities()(Seen((own, own.argmax(1)), (other, other.argmax(1)), None))
    assert both.item() == Similarities()(Seen((own,), (other,), None)).item()
