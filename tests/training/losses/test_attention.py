"""Attention: blind to what channels mean, to their number and to the scale; it sees positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.training.losses.cases import FEATURE, numbers, seen  # noqa: E402

from gossamer.training.losses.attention import Attention, attention  # noqa: E402
from gossamer.training.losses.contract import Seen  # noqa: E402
from gossamer.training.losses.features import Features, Hint  # noqa: E402


@settings(max_examples=20)
@given(numbers(FEATURE), numbers(FEATURE), st.permutations(range(3)))
def test_the_order_of_channels_does_not_count(student: Any, teacher: Any, order: list[int]) -> None:
    loss = Attention()
    assert loss(seen(student[:, order], teacher)).item() == pytest.approx(loss(seen(student, teacher)).item())


@settings(max_examples=20)
@given(numbers(FEATURE), st.floats(0.1, 10))
def test_scale_sign_and_number_of_channels_do_not_count(student: Any, scale: float) -> None:
    student = student + np.sign(student) * 0.1  # long enough to have a direction
    teacher = np.concatenate([-scale * student, scale * student], axis=1)
    assert Attention()(seen(student, teacher)).item() == pytest.approx(0, abs=1e-9)


def test_it_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 7, 4, 5))
    maps = [(values**2).sum(1).reshape(2, -1) for values in (student, teacher)]
    ours, theirs = (flat / np.sqrt((flat**2).sum(1, keepdims=True)) for flat in maps)
    assert Attention()(seen(student, teacher)).item() == pytest.approx(1000 * ((ours - theirs) ** 2).mean())


def test_where_a_layer_is_active_counts() -> None:
    left, right = torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2)
    left[..., 0], right[..., 1] = 1, 1
    assert attention(left).tolist() == [[1, 0], [1, 0]]
    assert Attention(1.0)(Seen((left,), (right,), None)).item() == pytest.approx(1)


def test_channels_on_the_last_axis_are_brought_to_the_first() -> None:
    """Features of (B, T, C), as of tokens or of a recurrent layer, mean the same as (B, C, T)."""
    student, teacher = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    last = Features((Hint("a", "b", 3, 4, 2, True),), 0.0, [(Attention(), 2.0)])
    first = Features((Hint("a", "b", 3, 4, 1, True),), 0.0, [(Attention(), 2.0)])
    found = last(Seen((student,), (teacher,), None))
    assert found.item() == pytest.approx(first(Seen((student.mT,), (teacher.mT,), None)).item())
    assert found.item() == pytest.approx(2 * Attention()(Seen((student.mT,), (teacher.mT,), None)).item())
    assert not list(last.parameters())
