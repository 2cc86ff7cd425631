"""What all losses have in common: nothing where student and teacher agree, true gradients, finite at odd inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.passes.graphs import parse  # noqa: E402
from tests.training.losses.cases import CASES, gradient, numbers, seen  # noqa: E402

from gossamer.errors import DataError  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.training.command import train_model  # noqa: E402
from gossamer.training.losses.chosen import LOSSES  # noqa: E402
from gossamer.training.losses.contract import Seen  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.teaching import Distillation  # noqa: E402

NETWORK = """
    g (float[N,1,6,6] x) => (float[N,3] y) {
        a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, a_w)
        ar = Relu(a)
        b = Conv<kernel_shape=[3,3], strides=[2,2]>(ar, b_w)
        br = Relu(b)
        m = GlobalAveragePool(br)
        f = Flatten(m)
        y = Gemm<transB=1>(f, head_w)
    }"""


def network(width: int, seed: int) -> Model:
    rng = np.random.default_rng(seed)
    shapes = {"a_w": (width, 1, 3, 3), "b_w": (2 * width, width, 3, 3), "head_w": (3, 2 * width)}
    weights = {name: rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) / 2) for name, shape in shapes.items()}
    return parse(NETWORK, **{name: weight.astype(np.float32) for name, weight in weights.items()})


@pytest.mark.parametrize("name", LOSSES)
def test_training_lessens_it(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {"x": rng.standard_normal((120, 1, 6, 6)).astype(np.float32)}
    if name == "hard_labels":
        data["labels"] = (data["x"].mean((1, 2, 3)) > 0).astype(np.int64)
    options = Options(epochs=6, batch=16, rate=0.02, device="cpu")
    teacher = None if name == "hard_labels" else network(6, 1)
    summary = train_model(network(3, 3), data, tmp_path, teacher, Distillation((name,)), options)
    losses = [epoch.loss for epoch in summary.trained.epochs[1:]]
    assert losses[-1] < 0.9 * losses[0]


@settings(max_examples=20)
@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_it_is_never_negative_and_nothing_where_the_student_is_the_teacher(name: str, data: st.DataObject) -> None:
    loss, shape = CASES[name]
    student, teacher = data.draw(numbers(shape)), data.draw(numbers(shape))
    assert loss(seen(student, teacher)).item() >= -1e-9
    assert loss(seen(student, student)).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_its_gradient_is_that_of_its_value(name: str, seed: int) -> None:
    loss, shape = CASES[name]
    rng = np.random.default_rng(seed)
    student, teacher = torch.tensor(rng.standard_normal(shape)), torch.tensor(rng.standard_normal(shape))
    assert torch.autograd.gradcheck(lambda own: loss(Seen((own,), (teacher,), None)), student.requires_grad_())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("odd", ["zeros", "same samples", "two the same", "one sample zero", "tiny", "huge", "alone"])
def test_its_gradient_is_finite_where_nothing_differs(name: str, odd: str) -> None:
    loss, shape = CASES[name]
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal(shape), rng.standard_normal(shape)
    match odd:
        case "zeros":
            student[:] = 0
        case "same samples":
            student[:] = student[0]
        case "two the same":
            student[1] = student[0]
        case "one sample zero":
            student[0] = 0
        case "tiny":
            student *= 1e-15
        case "huge":
            student *= 1e4
        case _:
            student, teacher = student[:1], teacher[:1]
    for own, other in ((student, teacher), (teacher, student), (student, student)):
        found = gradient(loss, own, other)
        assert torch.isfinite(found).all()
        assert found.abs().max() < 1e9


@pytest.mark.parametrize("name", CASES)
def test_it_says_that_it_needs_a_teacher(name: str) -> None:
    loss, shape = CASES[name]
    with pytest.raises(DataError, match=f"{name} needs a teacher; give one, or learn from labels: hard_labels"):
        loss(Seen((torch.zeros(shape),), (), None))
