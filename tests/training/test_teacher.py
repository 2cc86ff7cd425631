"""Teachers: every kind gives the same, remembered or not, in whatever order it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.passes.graphs import normal, parse  # noqa: E402

from gossamer.errors import DataError  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.nouns.samples import Samples, samples_from_arrays  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402
from gossamer.training.teacher import from_arrays, from_model, from_module, remembered  # noqa: E402

GRAPH = """g (float[N,6] x) => (float[N,4] y, float[N,3] z) {
    h = MatMul(x, first)
    r = Relu(h)
    y = MatMul(r, second)
    z = MatMul(r, third)
}"""


def model(outputs: str = "y, z") -> Model:
    names = [f"float[N,{4 if name == 'y' else 3}] {name}" for name in outputs.split(", ")]
    graph = GRAPH.replace("float[N,4] y, float[N,3] z", ", ".join(names))
    return parse(graph, first=normal(6, 5), second=normal(5, 4), third=normal(5, 3))


def points(count: int = 40) -> Samples:
    return samples_from_arrays({"x": np.random.default_rng(0).standard_normal((count, 6)).astype(np.float32)})


def ask(taught: Any, samples: Samples, rows: Any) -> tuple[np.ndarray, ...]:
    rows = np.asarray(rows)
    answer: tuple[np.ndarray, ...] = taught(rows, {"x": np.asarray(samples.columns["x"])[rows]})
    return answer


def test_a_graph_a_module_and_outputs_on_disk_teach_the_same(tmp_path: Path) -> None:
    samples, rows = points(), np.array([3, 0, 39, 3])
    by_graph = from_model(model(), ["y", "z"])
    whole = ask(by_graph, samples, np.arange(40))
    np.savez(tmp_path / "outputs.npz", y=whole[0], z=whole[1])
    others = [
        from_module(lower(model())),
        from_arrays(tmp_path / "outputs.npz", samples),
        from_arrays(list(whole), samples),
    ]
    expected = ask(by_graph, samples, rows)
    for other in others:
        for got, want in zip(ask(other, samples, rows), expected, strict=True):
            assert np.allclose(got, want, atol=1e-5)


def test_outputs_come_in_the_students_order_and_hints_behind_them() -> None:
    samples = points()
    y, z = ask(from_model(model(), ["y", "z"]), samples, [0, 1])
    swapped = ask(from_model(model("z, y"), ["y", "z"], hints=["r"]), samples, [0, 1])
    assert np.array_equal(swapped[0], y)
    assert np.array_equal(swapped[1], z)
    assert swapped[2].shape == (2, 5)
    assert (swapped[2] >= 0).all()


@settings(max_examples=20)
@given(st.permutations(range(40)), st.integers(1, 40), st.data())
def test_a_remembered_teacher_gives_what_it_gave(order: list[int], count: int, data: st.DataObject) -> None:
    samples = points().take(np.array(order[:count]))
    live = from_model(model(), ["y", "z"])
    recalled = remembered(live, samples)
    rows = np.array(data.draw(st.lists(st.sampled_from(order[:count]), min_size=1, max_size=10)))
    for got, want in zip(ask(recalled, samples, rows), ask(live, samples, rows), strict=True):
        assert np.allclose(got, want, atol=1e-6)


def test_a_teacher_is_asked_once_for_each_sample() -> None:
    asked: list[int] = []

    def taught(rows: np.ndarray, _: Any) -> tuple[np.ndarray, ...]:
        asked.extend(rows.tolist())
        return (np.zeros((len(rows), 2), np.float32),)

    samples = points()
    recalled = remembered(taught, samples)
    for _ in range(3):
        ask(recalled, samples, np.arange(40))
    assert sorted(asked) == sorted([0, *range(40)])  # the first one shows how much room is needed


def test_outputs_that_would_take_too_much_room_are_made_anew() -> None:
    live = from_model(model(), ["y", "z"])
    assert remembered(live, points(), most_bytes=100) is live


def test_a_teacher_with_another_number_of_outputs_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"gives 1 outputs \(y\), the student 2 \(y, z\); teacher and student must give"
    ):
        from_model(model("y"), ["y", "z"])


def test_a_teacher_of_other_inputs_is_refused() -> None:
    two = parse("g (float[N,6] a, float[N,6] b) => (float[N,6] y) { y = Add(a, b) }")
    with pytest.raises(DataError, match="takes a, b, the student x; teacher and student must take the same inputs"):
        ask(from_model(two, ["y"]), points(), [0])


@pytest.mark.parametrize("count", [39, 41])
def test_outputs_for_another_number_of_samples_are_refused(tmp_path: Path, count: int) -> None:
    np.save(tmp_path / "outputs.npy", np.zeros((count, 4), np.float32))
    with pytest.raises(DataError, match=rf"outputs.npy: output 0 is there for {count} samples, the data has 40; both"):
        from_arrays(tmp_path / "outputs.npy", points())


def test_outputs_without_a_batch_axis_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"output 0 of the teacher has shape \(7,\) for 32 samples; its first axis must"
    ):
        remembered(lambda rows, _: (np.zeros(7, np.float32),), points())


def test_a_teacher_of_inputs_of_another_shape_is_refused_in_one_line() -> None:
    wide = parse("g (float[N,9] x) => (float[N,9] y) { y = Relu(x) }")
    expected = (
        r"the teacher test takes x of shape \(N, 9\), the student's x is \(N, 6\); give a teacher of the same lengths"
    )
    with pytest.raises(DataError, match=expected):
        ask(from_model(wide, ["y"]), points(), [0])


def test_a_teacher_that_says_nothing_of_a_sample_is_refused() -> None:
    outputs = np.zeros((40, 4), np.float32)
    outputs[33, 2] = np.nan
    with pytest.raises(DataError, match="output 0 of the teacher has NaN or Inf for sample 33"):
        remembered(from_arrays(outputs, points()), points())
