"""A student that cannot be paired with its teacher: one line that says why; and sequences that can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import parse  # noqa: E402

from gossamer.errors import GossamerError  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.training.command import train_model  # noqa: E402
from gossamer.training.hints import propose  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.teaching import Distillation  # noqa: E402

QUICK = Options(epochs=1, batch=16, rate=0.01, device="cpu")
SEQUENCES = {"x": np.random.default_rng(0).standard_normal((40, 6, 4)).astype(np.float32)}
INSIDE = ("outputs", "features")


def words(steps: int | str = "T", classes: int = 3) -> Model:
    graph = f"""g (float[N,{steps},4] x) => (float[N,{steps},{classes}] y) {{
        a = MatMul(x, w)
        h = Relu(a)
        y = MatMul(h, v)
    }}"""
    return parse(graph, w=(4, 6), v=(6, classes))


def halved() -> Model:
    graph = """g (float[N,T,4] x) => (float[N,U,3] y) {
        s = Slice(x, start, end, axis, step)
        a = MatMul(s, w)
        h = Relu(a)
        y = MatMul(h, v)
    }"""
    numbers = {"start": 0, "end": 99, "axis": 1, "step": 2}
    return parse(graph, w=(4, 6), v=(6, 3), **{name: np.int64([value]) for name, value in numbers.items()})


def recurrent(width: int) -> Model:
    """Two LSTMs, time first inside, as torch exports them, and scores of each step."""
    graph = f"""g (float[N,T,4] x) => (float[N,T,3] y) {{
        turned = Transpose<perm=[1,0,2]>(x)
        a, a_last, a_cell = LSTM<hidden_size={width}>(turned, w1, r1)
        b = Squeeze(a, one)
        c, c_last, c_cell = LSTM<hidden_size={width}>(b, w2, r2)
        d = Squeeze(c, one)
        steps = Transpose<perm=[1,0,2]>(d)
        y = MatMul(steps, v)
    }}"""
    shapes = {"w1": (1, 4 * width, 4), "w2": (1, 4 * width, width), "v": (width, 3)}
    shapes |= dict.fromkeys(("r1", "r2"), (1, 4 * width, width))
    return parse(graph, **shapes, one=np.int64([1]))


@pytest.mark.parametrize(
    ("teacher", "losses", "message"),
    [
        (
            words(9),
            (),
            r"takes x of shape \(N, 9, 4\), the student's x is \(N, 6, 4\); give a teacher of the same lengths",
        ),
        (words(9), INSIDE, r"the teacher test takes x of shape \(N, 9, 4\), the student's x is \(N, 6, 4\)"),
        (
            halved(),
            (),
            r"has shape \(N, 3, 3\), that of the student \(N, 6, 3\); give a teacher with as many classes or ch",
        ),
        (halved(), INSIDE, "features: test has tensors of 6 positions, test of 3; no pair agrees, so leave out losses"),
        (halved(), ("attention",), "loss attention looks inside: .* no pair agrees"),
        (words(classes=5), (), r"shape \(N, 6, 5\), that of the student \(N, 6, 3\); give a teacher with as many"),
        (np.zeros((40, 3), np.float32), (), r"has shape \(N, 3\), .* give a teacher whose outputs have the same axes"),
        ([np.zeros((40, 6, 3), np.float32)] * 2, (), "the teacher gives 2 outputs, the student 1; they must agree"),
        (
            parse("g (float[N,T,4] a, float[N,T,4] b) => (float[N,T,4] y) { y = Add(a, b) }"),
            INSIDE,
            "test takes a, b, the student x; teacher and student must take the same inputs",
        ),
    ],
)
def test_a_student_that_cannot_be_paired_is_told_why(
    teacher: Any, losses: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(GossamerError, match=message) as refused:
        train_model(words(), SEQUENCES, tmp_path, teacher, Distillation(losses), QUICK)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_hidden_states_behind_squeeze_and_transpose_are_pairs(tmp_path: Path) -> None:
    (hint,) = propose(recurrent(5), recurrent(8), SEQUENCES)
    assert (hint.student, hint.axis, hint.student_channels, hint.teacher_channels) == ("steps", 2, 5, 8)
    summary = train_model(recurrent(5), SEQUENCES, tmp_path, recurrent(8), Distillation(INSIDE), QUICK)
    assert summary.losses == INSIDE
