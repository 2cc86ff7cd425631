"""`gossamer train`, from files to files: a damaged network learns again from its original, without a label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import normal, parse  # noqa: E402

import gossamer  # noqa: E402
from gossamer.errors import DataError, ModelError, OptionError  # noqa: E402
from gossamer.intake.onnx_file import read  # noqa: E402
from gossamer.nouns.model import Model, save  # noqa: E402
from gossamer.runtimes.onnxruntime import open_session  # noqa: E402
from gossamer.training.command import Summary, train_model  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.teaching import Distillation  # noqa: E402
from gossamer.training.watching import Watch  # noqa: E402

DEMO = Path(gossamer.__file__).parent / "demo"
QUICK = Options(epochs=4, batch=16, rate=0.01, device="cpu")


def network(width: int, seed: int = 0, batch: Any = "N", classes: int = 3) -> Model:
    rng = np.random.default_rng(seed)
    graph = f"""g (float[{batch},4] x) => (float[{batch},{classes}] scores) {{
        a = MatMul(x, first)
        h = Relu(a)
        scores = MatMul(h, second)
    }}"""
    weights = {"first": rng.standard_normal((4, width)), "second": rng.standard_normal((width, classes))}
    return parse(graph, **{name: value.astype(np.float32) for name, value in weights.items()})


@pytest.fixture
def unlabelled() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((300, 4)).astype(np.float32)}


def test_a_damaged_network_recovers_from_its_original_without_labels(tmp_path: Path) -> None:
    """The demo network with noise of 60 % on its weights, 1,000 images without labels, two epochs."""
    original = read(DEMO / "original.onnx")
    damaged = original.clone()
    rng = np.random.default_rng(0)
    for value in damaged.ir.graph.initializers.values():
        array = value.const_value.numpy()
        if array.ndim > 1:
            noise = 0.6 * array.std() * rng.standard_normal(array.shape)
            value.const_value = ir.Tensor((array + noise).astype(np.float32), name=value.name)
    save(damaged, tmp_path / "damaged.onnx")
    with np.load(DEMO / "data.npz") as data:
        images, labels = data["image"], data["labels"]
    np.savez(tmp_path / "images.npz", image=images[:1000])
    np.savez(tmp_path / "test.npz", image=images[1000:1400], labels=labels[1000:1400])
    summary = train_model(
        tmp_path / "damaged.onnx",
        tmp_path / "images.npz",
        tmp_path / "out",
        teacher=DEMO / "original.onnx",
        options=Options(epochs=2, rate=1e-3, device="cpu"),
        data=tmp_path / "test.npz",
    )
    accuracy = summary.accuracy
    assert accuracy.metric == "top1"
    assert accuracy.original < 0.6
    assert accuracy.result > 0.88
    assert accuracy.n == 400
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", "training.json"]
    written = json.loads((tmp_path / "out" / "training.json").read_text())
    assert written["accuracy"]["result"] == accuracy.result


def test_the_file_computes_what_was_trained_and_keeps_names(tmp_path: Path, unlabelled: Any) -> None:
    student = network(16, seed=2)
    options = Options(epochs=12, batch=16, rate=0.03, device="cpu")
    summary = train_model(student, unlabelled, tmp_path, teacher=network(8), options=options)
    session = open_session(Path(summary.artifact))
    assert list(session.outputs) == ["scores"]
    assert list(session.inputs) == ["x"]
    assert summary.samples == (240, 30, 30)
    assert summary.accuracy.metric == "agreement"
    assert summary.accuracy.result > summary.accuracy.original + 0.2
    assert summary.losses == ("soft_labels",)
    changed = read(summary.artifact).ir.graph.initializers["first"].const_value
    assert not np.array_equal(changed.numpy(), student.ir.graph.initializers["first"].const_value.numpy())


def test_labels_alone_teach_too(tmp_path: Path, unlabelled: Any) -> None:
    labels = open_session(network(8)).run(unlabelled)[0].argmax(1)
    summary = train_model(network(16, seed=2), {**unlabelled, "labels": labels}, tmp_path, options=QUICK)
    assert summary.losses == ("hard_labels",)
    assert summary.accuracy.metric == "top1"
    assert summary.accuracy.result > summary.accuracy.original + 0.2


def test_stored_outputs_teach_like_the_model_that_gave_them(tmp_path: Path, unlabelled: Any) -> None:
    np.save(tmp_path / "outputs.npy", open_session(network(8)).run(unlabelled)[0])
    by_file = train_model(network(16, 2), unlabelled, tmp_path / "a", tmp_path / "outputs.npy", options=QUICK)
    by_model = train_model(network(16, 2), unlabelled, tmp_path / "b", network(8), options=QUICK)
    assert by_file.accuracy.result == pytest.approx(by_model.accuracy.result, abs=0.04)
    assert by_file.teacher.endswith("outputs.npy")


def test_a_model_of_fixed_batch_trains_in_steps_of_the_same_size(tmp_path: Path, unlabelled: Any) -> None:
    free = train_model(network(16, 2), unlabelled, tmp_path / "a", network(8), options=QUICK)
    fixed = train_model(network(16, 2, batch=1), unlabelled, tmp_path / "b", network(8), options=QUICK)
    assert (fixed.options.batch, fixed.options.accumulate) == (1, 16)
    assert fixed.trained.epochs[-1].loss == pytest.approx(free.trained.epochs[-1].loss, rel=1e-3)


def test_features_teach_beside_outputs_and_leave_no_trace_in_the_file(tmp_path: Path) -> None:
    graph = """g (float[N,T,4] x) => (float[N,T,3] y) {
        a = MatMul(x, first)
        h = Relu(a)
        y = MatMul(h, second)
    }"""
    student, teacher = (parse(graph, first=normal(4, w), second=normal(w, 3)) for w in (6, 8))
    data = {"x": np.random.default_rng(1).standard_normal((60, 5, 4)).astype(np.float32)}
    wanted = Distillation(("outputs", "features"))
    summary = train_model(student, data, tmp_path, teacher, wanted, QUICK)
    assert summary.losses == ("outputs", "features")
    assert summary.trained.epochs[-1].validation_loss < summary.trained.epochs[0].validation_loss
    assert list(open_session(Path(summary.artifact)).outputs) == ["y"]


def test_a_run_that_was_stopped_goes_on_in_the_same_folder(tmp_path: Path, unlabelled: Any) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 20:
            raise Stopped

    said: list[str] = []
    with pytest.raises(Stopped):
        train_model(network(16, 2), unlabelled, tmp_path, network(8), options=QUICK, watch=Watch(steps=stop))
    train_model(network(16, 2), unlabelled, tmp_path, network(8), options=QUICK, watch=Watch(said.append))
    assert "going on from .checkpoint.safetensors: epoch 2, step 1" in said
    with pytest.raises(Stopped):
        train_model(network(16, 2), unlabelled, tmp_path, network(8), options=QUICK, watch=Watch(steps=stop))
    with pytest.raises(ModelError, match="is a checkpoint of a run with another model"):
        train_model(network(16, 3), unlabelled, tmp_path, network(8), options=QUICK)


# --- what is refused


def test_nothing_to_learn_from_is_said(tmp_path: Path, unlabelled: Any) -> None:
    with pytest.raises(OptionError, match="the mapping has no labels and there is no teacher, so there is nothing to"):
        train_model(network(8), unlabelled, tmp_path, options=QUICK)


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, unlabelled: Any) -> None:
    with pytest.raises(DataError, match=r"output 0 of the teacher has shape \(N, 5\), that of the student \(N, 3\)"):
        train_model(network(8), unlabelled, tmp_path, network(8, classes=5), options=QUICK)


def test_features_of_stored_outputs_are_refused(tmp_path: Path, unlabelled: Any) -> None:
    np.save(tmp_path / "outputs.npy", np.zeros((300, 3), np.float32))
    wanted = Distillation(("features",))
    with pytest.raises(OptionError, match="loss features needs a teacher that is an ONNX model"):
        train_model(network(8), unlabelled, tmp_path / "out", tmp_path / "outputs.npy", wanted, QUICK)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(OptionError, match=r"loss 'soft_label' is unknown, did you mean soft_labels. allowed are"):
        Distillation(("soft_label",))


def test_too_few_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the mapping: 5 different samples; training needs 10 at least"):
        train_model(network(8), {"x": np.eye(5, 4, dtype=np.float32)}, tmp_path, network(8), options=QUICK)


def test_a_summary_is_read_back(tmp_path: Path, unlabelled: Any) -> None:
    import msgspec

    summary = train_model(network(8, 2), unlabelled, tmp_path, network(8), options=QUICK)
    assert msgspec.json.decode((tmp_path / "training.json").read_bytes(), type=Summary) == summary
