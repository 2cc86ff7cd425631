"""`gossamer train --constraint TEXT`: a float model is moved into a form and trained within it, taught by itself."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import parse
from tests.training.small_nets import network

from gossamer.errors import DataError, OptionError
from gossamer.graph.edit import constant
from gossamer.graph.qdq import integers_behind
from gossamer.intake.onnx_file import read
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays
from gossamer.training.command import Summary, train_model
from gossamer.training.constraining import Activations, constrained, stages_of
from gossamer.training.options import Options
from gossamer.training.sparsity.chosen import Removal
from gossamer.training.watching import Watch

QUICK = Options(epochs=8, batch=32, device="cpu", rate=0.01)


@pytest.fixture
def points() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((1200, 8)).astype(np.float32)}


def integers(model: Model) -> list[np.ndarray]:
    found = (integers_behind(node) for node in model.ir.graph if node.op_type == "DequantizeLinear")
    values = [value for value in found if value is not None and value.dtype != ir.DataType.INT32]
    return [np.asarray(constant(value)).astype(np.int32) for value in values]


def assert_learned(summary: Summary) -> None:
    """The loss on samples that chose the epoch fell by a tenth, and what is told is about the model that came in."""
    first, best = summary.trained.epochs[0].validation_loss, summary.trained.epochs[-1].validation_loss
    assert first is not None and best is not None and best < 0.9 * first
    assert summary.accuracy.original == 1


@pytest.mark.parametrize(
    ("constraint", "activations", "most"),
    [("grid:2", "uint8", 2), ("grid:3", "int8", 4), ("grid:3:group=8", "float", 4)],
)
def test_a_float_model_is_trained_in_integers(
    constraint: str, activations: Activations, most: int, tmp_path: Path, points: dict[str, np.ndarray]
) -> None:
    summary = train_model(network(), points, tmp_path, options=QUICK, constraint=constraint, activations=activations)
    assert_learned(summary)
    assert summary.constraint == constraint and summary.teacher
    stored = integers(read(tmp_path / "model.onnx"))
    assert len(stored) == 2 and max(int(np.abs(array).max()) for array in stored) <= most


def test_a_model_of_integers_needs_no_constraint(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    samples = samples_from_arrays(points)
    model = constrained(network(), "grid:2", "uint8", samples)
    summary = train_model(model, points, tmp_path, teacher=network(), options=QUICK)
    first, best = summary.trained.epochs[0].validation_loss, summary.trained.epochs[-1].validation_loss
    assert first is not None and best is not None and best < 0.9 * first
    assert [array.shape for array in integers(read(tmp_path / "model.onnx"))] == [(8, 64), (64, 4)]


def test_what_cannot_be_trained_says_so(points: dict[str, np.ndarray]) -> None:
    message = "one scale a channel or tensor, such as grid:4; for others give --activations float"
    with pytest.raises(OptionError, match=message):
        constrained(network(), "grid:4:group=16", "uint8", samples_from_arrays(points))


def test_a_model_without_weights_for_a_grid_is_refused() -> None:
    model = parse("g (float[N,8] x) => (float[N,8] y) { y = Relu(x) }")
    with pytest.raises(OptionError, match="no weight of test can become grid:4"):
        constrained(model, "grid:4", "uint8", samples_from_arrays({"x": np.ones((9, 8), np.float32)}))


def zeros_of(model: Model) -> list[np.ndarray]:
    """Of each weight, which of its numbers are zero."""
    arrays = (value.const_value.numpy() for value in model.ir.graph.initializers.values() if value.const_value)
    return [array.reshape(-1) == 0 for array in arrays if array.ndim == 2 and array.dtype == np.float32]


def share(zeros: list[np.ndarray]) -> float:
    return float(np.concatenate(zeros).mean())


def test_a_ratio_of_zeros_is_reached_in_rounds(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    said: list[str] = []
    summary = train_model(
        network(), points, tmp_path, options=QUICK, constraint="sparse:0.8", rounds=2, watch=Watch(said.append)
    )
    assert [line for line in said if line.startswith("moving")] == [
        "moving weights into sparse:0.7",
        "moving weights into sparse:0.8",
    ]
    zeros = zeros_of(read(tmp_path / "model.onnx"))
    assert share(zeros) == pytest.approx(0.8, abs=0.001)
    assert zeros[0].mean() > 0.8 > zeros[1].mean(), "the last layer has the fewest to give"
    assert any(note.startswith("sparse:0.8 of all layers together: 7") for note in summary.notes), summary.notes
    assert summary.constraint == "sparse:0.8" and len(summary.trained.epochs) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "training.json"]


def test_zeros_survive_what_comes_behind_them(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    train_model(network(), points, tmp_path, options=QUICK, constraint="sparse:0.7+grid:4", rounds=2)
    stored = integers(read(tmp_path / "model.onnx"))
    assert len(stored) == 2 and share([array.reshape(-1) == 0 for array in stored]) >= 0.7
    assert max(int(np.abs(array).max()) for array in stored) <= 8


def test_shared_values_of_what_is_left(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    summary = train_model(network(), points, tmp_path, options=QUICK, constraint="sparse:0.7+codebook:8", rounds=1)
    assert summary.constraint == "sparse:0.7+codebook:8"
    tables = [v for name, v in read(tmp_path / "model.onnx").ir.graph.initializers.items() if "table" in name]
    assert len(tables) == 2 and all(np.any(np.asarray(constant(table)) == 0) for table in tables)


def test_a_killed_run_goes_on_with_the_stage_that_it_was_in(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    """Killed in the second of three stages: the first is not done again, and the result is the same to the byte."""

    class Killed(BaseException):
        pass

    def steps(done: int, total: int) -> None:
        if len([line for line in said if line.startswith("moving")]) == 2:
            raise Killed

    said: list[str] = []
    asked = {"options": QUICK, "constraint": "sparse:0.8", "rounds": 3}
    with pytest.raises(Killed):
        train_model(network(), points, tmp_path / "a", **asked, watch=Watch(said.append, steps))
    assert list((tmp_path / "a").glob(".stage-1-*"))
    again: list[str] = []
    train_model(network(), points, tmp_path / "a", **asked, watch=Watch(again.append))
    assert [line for line in again if line.startswith("moving")] == [
        "moving weights into sparse:0.7704",
        "moving weights into sparse:0.8",
    ]
    train_model(network(), points, tmp_path / "b", **asked)
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


@pytest.mark.parametrize("removal", ["gradual", "movement", "rigl"])
def test_a_killed_run_goes_on_with_the_zeros_of_each_layer(
    removal: Removal, tmp_path: Path, points: dict[str, np.ndarray]
) -> None:
    class Killed(BaseException):
        pass

    def steps(done: int, _: int) -> None:
        if done == 130:
            raise Killed

    asked = {"options": QUICK, "constraint": "sparse:0.8", "removal": removal}
    with pytest.raises(Killed):
        train_model(network(), points, tmp_path / "a", **asked, watch=Watch(steps=steps))
    said: list[str] = []
    train_model(network(), points, tmp_path / "a", **asked, watch=Watch(said.append))
    assert any(line.startswith("going on from .checkpoint.safetensors: epoch") for line in said)
    train_model(network(), points, tmp_path / "b", **asked)
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()
    assert share(zeros_of(read(tmp_path / "b" / "model.onnx"))) == pytest.approx(0.8, abs=0.001)


def test_rounds_that_are_none_are_refused(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    with pytest.raises(OptionError, match="rounds is 0; allowed is 1 or more"):
        train_model(network(), points, tmp_path, constraint="sparse:0.5", rounds=0)


def test_more_stages_than_epochs_are_refused(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    message = r"in 3 stages \(sparse:0.4375, sparse:0.5, .*\) needs as many epochs at least, epochs is 2"
    with pytest.raises(OptionError, match=message):
        train_model(
            network(), points, tmp_path, options=Options(epochs=2), constraint="sparse:0.5+codebook:4", rounds=2
        )


@pytest.mark.parametrize(
    ("constraint", "rounds", "expected"),
    [
        ("grid:4", 4, ("grid:4",)),
        ("sparse:0.8", 1, ("sparse:0.8",)),
        ("sparse:2:4", 3, ("sparse:2:4",)),
        ("sparse:2:4+grid:4", 3, ("sparse:2:4", "sparse:2:4+grid:4")),
        ("sparse:0.8+codebook:16", 2, ("sparse:0.7", "sparse:0.8", "sparse:0.8+codebook:16")),
        ("low_rank:2+grid:4", 4, ("low_rank:2", "low_rank:2+grid:4")),
    ],
)
def test_stages(constraint: str, rounds: int, expected: tuple[str, ...]) -> None:
    assert stages_of(constraint, rounds) == expected


def test_what_cannot_be_done_is_said_before_anything_takes_time(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    said: list[str] = []
    for wrong in (
        {"constraint": "sparse:0.5+grid:4:group=16"},
        {"constraint": "nonsense"},
        {"activations": "float"},
        {"constraint": "grid:4", "metric": "top5"},
    ):
        with pytest.raises(OptionError):
            train_model(
                network(), points, tmp_path, teacher=network(), options=QUICK, watch=Watch(said.append), **wrong
            )
    assert "asking the teacher" not in said


def test_samples_that_measure_are_not_learned_from(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    some = {"x": points["x"][:300]}
    with pytest.raises(DataError, match="all samples of --train-data are among those of --data"):
        train_model(network(), some, tmp_path, teacher=network(), options=QUICK, data=points)
    summary = train_model(network(), points, tmp_path, teacher=network(), options=QUICK, data=some)
    assert sum(summary.samples[:2]) == 900 and "300 of 1,200 training samples" in " ".join(summary.notes)


def test_few_zeros_stay_if_they_were_asked_for(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    train_model(network(), points, tmp_path, options=QUICK, constraint="sparse:0.3", rounds=1)
    assert share(zeros_of(read(tmp_path / "model.onnx"))) == pytest.approx(0.3, abs=0.002)


def test_each_layer_has_the_same_share_if_it_is_asked_for(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    train_model(network(), points, tmp_path, options=QUICK, constraint="sparse:0.8", rounds=2, spread="equal")
    each = [share([zeros]) for zeros in zeros_of(read(tmp_path / "model.onnx"))]
    assert each == pytest.approx([0.8, 0.8], abs=0.002)
    assert msgspec.json.decode((tmp_path / "training.json").read_bytes())["form"]["spread"] == "equal"


def test_what_a_constraint_cannot_take_is_said(tmp_path: Path, points: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    weights = {"first": rng.standard_normal((8, 64)).astype(np.float32), "second": rng.standard_normal((64, 4))}
    text = "g (float[N,8] x) => (float[N,4] scores) { h = MatMul(x, first) scores = MatMul(h, second) }"
    model = parse(text, first=weights["first"], second=weights["second"].astype(np.float32))
    summary = train_model(model, points, tmp_path, options=QUICK, constraint="sparse:3:16", rounds=1)
    assert any("left node_h as it was" in note for note in summary.notes), summary.notes


def test_an_index_beyond_its_table_is_told(tmp_path: Path) -> None:
    model = parse(
        """g (int64[N,3] ids) => (float[N,4] scores) {
            e = Gather(table, ids) m = ReduceMean<keepdims=0>(e, axes) scores = MatMul(m, w) }""",
        table=np.ones((9, 5), np.float32),
        axes=np.array([1]),
        w=np.ones((5, 4), np.float32),
    )
    ids = np.random.default_rng(0).integers(0, 9, (200, 3))
    ids[150:] = 99
    labels = np.zeros(200, np.int64)
    with pytest.raises(DataError, match="looks up what is not in a table"):
        train_model(model, {"ids": ids, "labels": labels}, tmp_path, options=QUICK)
