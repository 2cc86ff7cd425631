"""Several tasks on one trunk: each output by its own labels, its own teacher, or both, and measured by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import parse  # noqa: E402

from gossamer.errors import DataError, OptionError  # noqa: E402
from gossamer.nouns.model import Model, save  # noqa: E402
from gossamer.runtimes.onnxruntime import open_session  # noqa: E402
from gossamer.training.command import Summary, train_model  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.tasks import heads_of, place_of, tasks_of  # noqa: E402
from gossamer.training.teaching import Distillation  # noqa: E402

QUICK = Options(epochs=10, batch=16, rate=0.03, device="cpu")
NAMES = ("kind", "size")


def two_heads(width: int = 16, seed: int = 0, classes: tuple[int, int] = (3, 4)) -> Model:
    graph = f"""g (float[N,4] x) => (float[N,{classes[0]}] kind, float[N,{classes[1]}] size) {{
        a = MatMul(x, trunk)
        h = Relu(a)
        kind = MatMul(h, first)
        b = MatMul(h, second)
        size = Add(b, shift)
    }}"""
    shapes = {"trunk": (4, width), "first": (width, classes[0]), "second": (width, classes[1]), "shift": (classes[1],)}
    return network(graph, seed, **shapes)


def one_head(seed: int, classes: int) -> Model:
    graph = f"g (float[N,4] x) => (float[N,{classes}] scores) {{ a = MatMul(x, w) h = Relu(a) scores = MatMul(h, v) }}"
    return network(graph, seed, w=(4, 8), v=(8, classes))


def network(graph: str, seed: int, **shapes: tuple[int, ...]) -> Model:
    rng = np.random.default_rng(seed)
    return parse(graph, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((300, 4)).astype(np.float32)}


def said(model: Model, data: dict[str, np.ndarray]) -> list[np.ndarray]:
    return open_session(model).run({"x": data["x"]})


def labels_of(data: dict[str, np.ndarray], model: Model | None = None) -> np.ndarray:
    return np.stack([scores.argmax(1) for scores in said(model or two_heads(8, 5), data)], 1)


def gains(summary: Summary) -> dict[str, float]:
    return {name: task.result - task.original for name, task in summary.tasks.items()}


def test_labels_with_a_column_for_each_head_teach_both(tmp_path: Path, data: Any) -> None:
    labels = labels_of(data)
    summary = train_model(two_heads(), {**data, "labels": labels}, tmp_path, options=QUICK)
    assert min(gains(summary).values()) > 0.2
    assert summary.losses == ("hard_labels",)
    assert summary.accuracy.metric == "top1"
    each = [task.result for task in summary.tasks.values()]
    assert summary.accuracy.result == pytest.approx(np.mean(each))
    assert "kind" in summary.line() and "size" in summary.line()
    right = [epoch.right for epoch in summary.trained.epochs]
    assert right[-1] > right[0] + 0.2  # of both


def test_a_teacher_with_the_same_heads_teaches_both(tmp_path: Path, data: Any) -> None:
    summary = train_model(two_heads(), data, tmp_path, two_heads(8, 5), options=QUICK)
    assert summary.losses == ("soft_labels", "outputs")  # a head may be of numbers
    assert min(gains(summary).values()) > 0.2
    assert {task.metric for task in summary.tasks.values()} == {"agreement"}


def test_each_head_has_a_teacher_of_its_own(tmp_path: Path, data: Any) -> None:
    save(one_head(5, 3), tmp_path / "kind.onnx")
    np.save(tmp_path / "size.npy", said(one_head(6, 4), data)[0])
    both = f"kind={tmp_path / 'kind.onnx'},size={tmp_path / 'size.npy'}"
    summary = train_model(two_heads(), data, tmp_path / "a", both, options=QUICK)
    assert min(gains(summary).values()) > 0.2
    as_mapping = {"kind": one_head(5, 3), "size": said(one_head(6, 4), data)[0]}
    again = train_model(two_heads(), data, tmp_path / "b", as_mapping, options=QUICK)
    assert gains(again) == gains(summary)


def test_a_new_head_learns_from_labels_while_a_teacher_keeps_the_old_one(tmp_path: Path, data: Any) -> None:
    """Learning without forgetting (Li and Hoiem 2016): labels are of the head that no teacher is named for."""
    student, new = two_heads(), labels_of(data)[:, 1]
    kept = {"kind": said(student, data)[0]}
    both = train_model(student, {**data, "labels": new}, tmp_path / "a", kept, options=QUICK)
    assert both.losses == ("soft_labels", "hard_labels@size")
    assert both.tasks["size"].result > both.tasks["size"].original + 0.2
    assert both.tasks["kind"].result > 0.85
    wanted = Distillation(("hard_labels@size",))
    alone = train_model(student, {**data, "labels": new}, tmp_path / "b", kept, wanted, QUICK)
    assert alone.tasks["kind"].result < both.tasks["kind"].result


def test_losses_and_weights_can_differ_by_output(tmp_path: Path, data: Any) -> None:
    wanted = Distillation(("outputs@kind:0.5", "correlation@size"))
    summary = train_model(two_heads(), data, tmp_path, two_heads(8, 5), wanted, QUICK)
    assert summary.losses == ("outputs@kind:0.5", "correlation@size")
    assert min(gains(summary).values()) > 0.1


def test_losses_that_see_no_labels_leave_them_to_the_choice_of_the_epoch(tmp_path: Path, data: Any) -> None:
    labelled = {**data, "labels": labels_of(data)}
    summary = train_model(two_heads(), labelled, tmp_path, two_heads(8, 5), Distillation(("outputs",)), QUICK)
    assert {task.metric for task in summary.tasks.values()} == {"top1"}
    assert min(gains(summary).values()) > 0.1


def test_an_embedding_on_the_way_to_scores_is_no_task() -> None:
    graph = """g (float[N,4] x) => (float[N,8] embedding, float[N,3] scores, float[N,3] shares) {
        embedding = MatMul(x, w)
        scores = MatMul(embedding, v)
        shares = Softmax(scores)
    }"""
    outputs = [np.zeros((1, size), np.float32) for size in (8, 3, 3)]
    assert heads_of(network(graph, 0, w=(4, 8), v=(8, 3)), outputs) == (0,)
    assert heads_of(two_heads(), outputs[1:]) == (0, 1)


def test_labels_of_several_columns_need_as_many_heads() -> None:
    columns = [task.column for task in tasks_of(NAMES, (0, 1), np.zeros((5, 2), int))]
    assert columns == [0, 1]
    whole = tasks_of(NAMES, (0, 1), np.zeros(5, int))
    assert [(task.labelled, task.column) for task in whole] == [(True, None), (False, None)]


# --- what is refused


@pytest.mark.parametrize(
    ("teacher", "losses", "message"),
    [
        ({"knd": one_head(5, 3)}, (), "the student has no output 'knd', did you mean kind. its outputs are kind, size"),
        ("kind=a.onnx,b.onnx", (), r"some teachers are for one output \(output=PATH\) and some for all; name one for"),
        (two_heads(8, 5), ("soft_labels@sizes",), "the student has no output 'sizes', did you mean size"),
        (two_heads(8, 5), ("relations@size",), "loss relations@size: only hard_labels, soft_labels, .* at one output"),
        ({"kind": two_heads(8, 5)}, ("features",), "loss features needs a teacher .* for all outputs"),
    ],
)
def test_wrong_outputs_are_named(
    tmp_path: Path, data: Any, teacher: Any, losses: tuple[str, ...], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        train_model(two_heads(), data, tmp_path, teacher, Distillation(losses), QUICK)


def test_a_teacher_of_another_number_of_classes_is_refused(tmp_path: Path, data: Any) -> None:
    with pytest.raises(DataError, match=r"output 1 of the teacher has shape \(N, 3\), that of the student \(N, 4\)"):
        train_model(two_heads(), data, tmp_path, {"kind": one_head(5, 3), "size": one_head(6, 3)}, options=QUICK)


def test_a_label_that_is_no_class_of_its_head_is_refused(tmp_path: Path, data: Any) -> None:
    labels = labels_of(data)
    labels[7, 0] = 3
    with pytest.raises(
        DataError, match=r"the label of sample 7 is 3; the model gives 3 scores, so labels go from 0 to 2"
    ):
        train_model(two_heads(), {**data, "labels": labels}, tmp_path, options=QUICK)


def test_the_place_of_an_output() -> None:
    assert place_of("size", NAMES) == 1


def test_a_head_of_numbers_is_followed_as_such(tmp_path: Path, data: Any) -> None:
    """Soft labels know no shift of all scores of a sample; numbers must be met as they are."""
    kinds, sizes = said(two_heads(8, 5), data)
    taught = [kinds, sizes + 2]

    def apart(folder: str, *losses: str) -> float:
        summary = train_model(two_heads(), data, tmp_path / folder, taught, Distillation(losses), QUICK)
        return float(abs((open_session(Path(summary.artifact)).run(data)[1] - taught[1]).mean()))

    assert apart("a") < 0.5 * apart("b", "soft_labels")


def test_a_model_of_one_number_a_sample_learns_from_labels(tmp_path: Path, data: Any) -> None:
    graph = "g (float[N,4] x) => (float[N] y) { a = MatMul(x, w) y = Squeeze(a, one) }"
    model = parse(graph, w=(4, 1), one=np.int64([1]))
    labels = data["x"].sum(1)
    summary = train_model(model, {**data, "labels": labels}, tmp_path, options=QUICK, metric="snr")
    assert summary.trained.epochs[-1].validation_loss < 0.5 * summary.trained.epochs[0].validation_loss
