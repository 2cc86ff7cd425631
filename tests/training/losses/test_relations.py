"""Relations: blind to scale, turn, shift and width of an embedding; angles in pieces are the angles at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.training.losses.cases import ROWS, numbers, seen  # noqa: E402

from gossamer.training.losses.contract import Seen  # noqa: E402
from gossamer.training.losses.embeddings import Embedding  # noqa: E402
from gossamer.training.losses.relations import Relations, angles_apart, distances  # noqa: E402


@settings(max_examples=20)
@given(st.integers(0, 99), st.floats(0.01, 100), st.floats(-5, 5), st.integers(4, 8))
def test_scale_turn_shift_and_width_do_not_count(seed: int, scale: float, shift: float, width: int) -> None:
    rng = np.random.default_rng(seed)
    student = rng.standard_normal(ROWS)
    turn_DE = np.linalg.qr(rng.standard_normal((width, ROWS[1])))[0].T
    assert Relations()(seen(student, scale * student @ turn_DE + shift)).item() == pytest.approx(0, abs=1e-9)


@settings(max_examples=20)
@given(numbers(ROWS), numbers(ROWS))
def test_it_is_the_papers_formula(student: Any, teacher: Any) -> None:
    def huber(x: Any, y: Any) -> Any:
        apart = np.abs(x - y)
        return np.where(apart < 1, apart**2 / 2, apart - 0.5).mean()

    def far(x: Any) -> Any:
        found = np.linalg.norm(x[:, None] - x, axis=2)
        return found / max(found.sum() / (len(x) * (len(x) - 1)), 1e-30)

    def cosines(x: Any) -> Any:
        arms = x[None] - x[:, None]
        arms = arms / np.maximum(np.linalg.norm(arms, axis=2, keepdims=True), 1e-30)
        return np.einsum("jid,jkd->jik", arms, arms)

    student, teacher = student + 3 * np.eye(*ROWS), teacher - 3 * np.eye(*ROWS)
    expected = 25 * huber(far(student), far(teacher)) + 50 * huber(cosines(student), cosines(teacher))
    assert Relations()(seen(student, teacher)).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 2000))
def test_angles_in_pieces_are_the_angles_at_once(count: int, most_values: int) -> None:
    rng = np.random.default_rng(count)
    own = torch.tensor(rng.standard_normal((count, 3)), requires_grad=True)
    teacher = torch.tensor(rng.standard_normal((count, 2)))
    found = []
    for most in (10**9, most_values):
        loss = angles_apart(own, teacher, most)
        found.append((loss.item(), torch.autograd.grad(loss, own)[0].numpy()))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-12)
    assert np.allclose(found[1][1], found[0][1], atol=1e-12)


def test_angles_of_a_large_batch_take_little_memory() -> None:
    """Of 200^3 cosines no more than a piece is kept for the backward pass."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    own = torch.randn(200, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = angles_apart(own, torch.randn(200, 8), most_values=200 * 216 * 4)
        assert kept < 200**3 / 10
    torch.autograd.backward(loss)


def test_distances_are_over_their_mean() -> None:
    found = distances(torch.tensor([[0.0], [3.0], [9.0]]))
    assert found.tolist() == [[0, 0.5, 1.5], [0.5, 0, 1], [1.5, 1, 0]]


def test_features_are_compared_by_the_mean_over_positions() -> None:
    student, teacher = torch.randn(4, 3, 5, 5), torch.randn(4, 6, 5, 5)
    pooled = Relations()(Seen((student.mean((2, 3)),), (teacher.mean((2, 3)),), None))
    found = Relations(Embedding(-1, pooled=True))(Seen((student,), (teacher,), None))
    assert found.item() == pytest.approx(pooled.item(), rel=1e-4)
