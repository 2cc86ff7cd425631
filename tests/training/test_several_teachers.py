"""Several teachers: how they are given, and that they speak as the mean of their distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402
from tests.passes.graphs import parse  # noqa: E402

from gossamer.errors import DataError, OptionError  # noqa: E402
from gossamer.nouns.model import Model, save  # noqa: E402
from gossamer.runtimes.onnxruntime import open_session  # noqa: E402
from gossamer.training.command import train_model  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.teacher import Voice, from_several, voices_of  # noqa: E402
from gossamer.training.teaching import Distillation  # noqa: E402

QUICK = Options(epochs=6, batch=16, rate=0.03, device="cpu")
tables = st.lists(arrays(np.float32, (4, 3), elements=st.floats(-9, 9, width=32)), min_size=1, max_size=4)


def network(width: int, seed: int, classes: int = 3) -> Model:
    rng = np.random.default_rng(seed)
    graph = f"""g (float[N,4] x) => (float[N,{classes}] scores) {{
        a = MatMul(x, first)
        h = Relu(a)
        scores = MatMul(h, second)
    }}"""
    weights = {"first": rng.standard_normal((4, width)), "second": rng.standard_normal((width, classes))}
    return parse(graph, **{name: value.astype(np.float32) for name, value in weights.items()})


def said(*outputs: np.ndarray) -> Any:
    return lambda rows, _: tuple(output[rows] for output in outputs)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


@settings(max_examples=30)
@given(tables, st.lists(st.floats(0.1, 5), min_size=4, max_size=4))
def test_distributions_are_averaged_and_given_back_as_scores(stack: list[np.ndarray], weights: list[float]) -> None:
    shares = np.array(weights[: len(stack)])
    numbers = [x * 2 for x in stack]
    teachers = [said(x, y) for x, y in zip(stack, numbers, strict=True)]
    scores, means = from_several(teachers, list(shares), 0, False)(np.array([2, 0]), {})
    shares = shares / shares.sum()
    expected = sum(share * softmax(x) for share, x in zip(shares, stack, strict=True))[[2, 0]]
    assert np.allclose(softmax(scores), expected, atol=1e-5)
    assert np.allclose(means, sum(share * y for share, y in zip(shares, numbers, strict=True))[[2, 0]], atol=1e-4)
    assert scores.dtype == np.float32


@settings(max_examples=20)
@given(tables)
def test_probabilities_are_averaged_as_they_are(stack: list[np.ndarray]) -> None:
    shares = [softmax(x) for x in stack]
    (mean,) = from_several([said(x) for x in shares], [1.0] * len(stack), 0, True)(np.arange(4), {})
    assert np.allclose(mean, np.mean(shares, axis=0))


def test_what_is_no_float_is_the_first_ones() -> None:
    first, second = np.array([[1], [2]]), np.array([[5], [5]])
    (given_,) = from_several([said(first), said(second)], [1, 9], None, False)(np.arange(2), {})
    assert np.array_equal(given_, first)


def test_teachers_of_other_shapes_are_refused() -> None:
    teachers = [said(np.zeros((4, 3))), said(np.zeros((4, 5)))]
    with pytest.raises(DataError, match=r"teacher 2 gives outputs of shapes \[\(5,\)\] a sample, the first \[\(3,\)\]"):
        from_several(teachers, [1, 1], 0, False)(np.arange(2), {})


def test_teachers_are_listed_in_a_text_or_a_list(tmp_path: Path) -> None:
    odd = tmp_path / "a,b.onnx"
    odd.touch()
    array = np.zeros((4, 3))
    assert voices_of("a.onnx, b.onnx:2.5") == (Voice("a.onnx"), Voice("b.onnx", 2.5))
    assert voices_of("c:\\a.onnx,b.npy") == (Voice("c:\\a.onnx"), Voice("b.npy"))
    assert voices_of(str(odd)) == (Voice(str(odd)),)
    assert voices_of(["a.onnx", Voice("b.onnx", 2)]) == (Voice("a.onnx"), Voice("b.onnx", 2))
    assert voices_of("a.onnx") == (Voice("a.onnx"),)
    assert voices_of(None) == (Voice(None),)
    assert len(voices_of(network(4, 0))) == 1
    assert len(voices_of([array, array])) == 1  # two outputs of one teacher
    assert len(voices_of([[array], [array]])) == 2


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("a.onnx,b.onnx:0", r"a teacher has the weight 0\.0; allowed is a number above 0"),
        ([], "teacher is an empty list; give one at least"),
        (",", "teacher is an empty list; give one at least"),
    ],
)
def test_wrong_lists_are_refused(teacher: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        voices_of(teacher)


def test_a_student_learns_from_two_at_once(tmp_path: Path) -> None:
    """Half of the voices are a graph, half what the other graph gave; the student comes to agree with their mean."""
    data = {"x": np.random.default_rng(1).standard_normal((300, 4)).astype(np.float32)}
    teachers = [network(8, 1), network(8, 2)]
    save(teachers[0], tmp_path / "first.onnx")
    np.save(tmp_path / "second.npy", open_session(teachers[1]).run(data)[0])
    both = f"{tmp_path / 'first.onnx'},{tmp_path / 'second.npy'}:2"
    summary = train_model(network(24, 3), data, tmp_path / "out", both, Distillation(("soft_labels",)), QUICK)
    assert summary.accuracy.result > summary.accuracy.original + 0.2
    assert summary.teacher == f"first.onnx, {tmp_path / 'second.npy'}"
    outputs = [softmax(open_session(teacher).run(data)[0]) for teacher in teachers]
    wanted = (outputs[0] + 2 * outputs[1]) / 3
    got = softmax(open_session(Path(summary.artifact)).run(data)[0])
    assert (got.argmax(1) == wanted.argmax(1)).mean() > (got.argmax(1) == outputs[0].argmax(1)).mean()


def test_losses_that_look_inside_one_teacher_are_refused_of_several(tmp_path: Path) -> None:
    data = {"x": np.random.default_rng(1).standard_normal((60, 4)).astype(np.float32)}
    with pytest.raises(OptionError, match="loss attention looks inside one teacher, and there are 2; leave it out"):
        train_model(network(4, 3), data, tmp_path, [network(8, 1), network(8, 2)], Distillation(("attention",)), QUICK)
