"""Correlation: any rising line of the probabilities of the teacher is as good as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.training.losses.cases import ROWS, numbers, seen  # noqa: E402

from gossamer.training.losses.correlation import Correlation, uncorrelated  # noqa: E402


@settings(max_examples=30)
@given(numbers(ROWS), numbers(ROWS), st.floats(0.1, 10), st.floats(-5, 5), st.sampled_from([0, 1]))
def test_rising_lines_do_not_count(student: Any, teacher: Any, slope: float, shift: float, axis: int) -> None:
    own, other = torch.tensor(student + np.eye(*ROWS)), torch.tensor(teacher)
    before, after = uncorrelated(own, other, axis), uncorrelated(slope * own + shift, other, axis)
    assert np.allclose(before, after, atol=1e-7)
    assert ((before >= 0) & (before <= 2 + 1e-9)).all()


@settings(max_examples=30)
@given(numbers(ROWS), st.floats(0.1, 10), st.floats(-5, 5))
def test_falling_lines_are_the_worst(values: Any, slope: float, shift: float) -> None:
    own = torch.tensor(values + np.arange(20.0).reshape(ROWS) ** 2)
    assert np.allclose(uncorrelated(own, shift - slope * own, 1), 2, atol=1e-7)


@settings(max_examples=20)
@given(numbers(ROWS), numbers(ROWS), st.floats(-5, 5))
def test_a_shift_of_all_scores_does_not_count(student: Any, teacher: Any, shift: float) -> None:
    loss = Correlation(2.0)
    assert loss(seen(student + shift, teacher)).item() == pytest.approx(loss(seen(student, teacher)).item(), abs=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_the_papers_formula(temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal(ROWS), rng.standard_normal(ROWS)
    ours, theirs = (np.exp(x / temperature) / np.exp(x / temperature).sum(1, keepdims=True) for x in (student, teacher))
    between = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)])
    within = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(ours.T, theirs.T, strict=True)])
    expected = temperature**2 * (2 * between + 2 * within)
    assert Correlation(temperature)(seen(student, teacher)).item() == pytest.approx(expected)
    shares = Correlation(temperature, probabilities=True)
    assert shares(seen(*(np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (student, teacher)))).item() == (
        pytest.approx(expected)
    )
