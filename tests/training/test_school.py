"""`compress --train-data`: what integers lose is trained back, by the original, on samples that measure nothing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.quick import first_round_only, time_little

import gossamer
from gossamer import search
from gossamer.errors import DataError, OptionError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.budget import Budget
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import ORIGINAL, Plan, Step
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.nouns.schooling import Schooling
from gossamer.passes.contract import run, run_plan
from gossamer.planning.candidates import CLEAN
from gossamer.training.school import School, open_school

TERNARY = (*CLEAN.steps, Step("quantize_static", {"weight_bits": 2, "rounding": "sums"}), Step("correct_bias"))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    with files("gossamer.demo").joinpath("data.npz").open("rb") as file:
        return np.asarray(np.load(file)["image"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: np.ndarray) -> Path:
    """The packaged network, images to measure on, and others to learn from."""
    place = tmp_path_factory.mktemp("school")
    (place / "original.onnx").write_bytes(files("gossamer.demo").joinpath("original.onnx").read_bytes())
    np.savez(place / "data.npz", image=pictures[:700])
    np.savez(place / "train.npz", image=pictures[600:])
    return place


def samples(pictures: np.ndarray, start: int, stop: int) -> Samples:
    return samples_from_arrays({"image": pictures[start:stop]})


@pytest.fixture(scope="module")
def original(folder: Path) -> Model:
    return normalise(read(folder / "original.onnx"))


@pytest.fixture(scope="module")
def ternary(original: Model, pictures: np.ndarray) -> Model:
    return run_plan(Plan("ternary", TERNARY), original, Evidence(samples(pictures, 0, 100))).model


@pytest.fixture(scope="module")
def school(original: Model, pictures: np.ndarray) -> School:
    return open_school(original, samples(pictures, 0, 300))


def test_integers_that_break_the_floor_are_trained_until_they_keep_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_little(monkeypatch)
    first_round_only(monkeypatch)
    monkeypatch.setattr(search, "propose", lambda *_: (Plan(ORIGINAL), Plan("ternary", TERNARY)))
    monkeypatch.setattr(School, "fit", lambda *_: Schooling(epochs=5))  # what fits into a time depends on the machine
    said: list[str] = []
    record = gossamer.compress(
        folder / "original.onnx",
        folder / "data.npz",
        Budget(0.06),
        tmp_path,
        say=said.append,
        train_data=folder / "train.npz",
    )
    by_name = {one.plan.name: one for one in record.candidates}
    assert record.chosen.endswith(", trained")
    untrained, trained = by_name[record.chosen.removesuffix(", trained")], by_name[record.chosen]
    assert not untrained.met and trained.met and record.met
    assert untrained.facts is not None and trained.facts is not None
    assert trained.facts.accuracy.snr_db > untrained.facts.accuracy.snr_db + 1
    assert trained.facts.bytes.result <= untrained.facts.bytes.result + 200
    assert any("training samples also measure the result: left out" in line for line in said)
    assert any(line.startswith("training took the drop from") for line in said)
    assert any("taught by the original" in note for note in record.notes)
    assert record.diagnosis is not None
    assert any("Training took the loss" in one.text for one in record.diagnosis.findings)
    assert not (tmp_path / ".gossamer").exists()
    text = (tmp_path / "plan.yaml").read_text()
    assert "train_weights" in text and "train.npz" in text
    replayed = gossamer.apply(tmp_path / "plan.yaml", folder / "original.onnx")
    assert to_bytes(replayed) == (tmp_path / "model.onnx").read_bytes()


def test_a_candidate_is_trained_once_even_if_the_run_is_killed(
    original: Model, ternary: Model, pictures: np.ndarray, tmp_path: Path
) -> None:
    schooling = Schooling(epochs=1, samples=64)
    first = open_school(original, samples(pictures, 0, 200), folder=tmp_path)
    model, note = first.train(ternary, schooling)
    assert model is not ternary and first.train(ternary, schooling)[0] is model
    again = open_school(original, samples(pictures, 0, 200), folder=tmp_path)
    recalled, same = again.train(ternary, schooling)
    assert same == note and to_bytes(recalled) == to_bytes(model)
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_same_school_gives_the_same_bytes(original: Model, ternary: Model, pictures: np.ndarray) -> None:
    made = [
        to_bytes(open_school(original, samples(pictures, 0, 100)).train(ternary, Schooling(epochs=1))[0])
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_only_what_the_scope_reads_is_trained(school: School, ternary: Model) -> None:
    head = next(node.name or "" for node in ternary.ir.graph if node.op_type == "Gemm")
    trained, _ = school.train(ternary, Schooling(epochs=2, rate=0.02), frozenset({head}))
    before, after = ternary.ir.graph.initializers, trained.ir.graph.initializers
    changed = {name for name in before if before[name].const_value.tobytes() != after[name].const_value.tobytes()}
    assert changed and all(name.startswith(("head", "reducemean")) for name in changed), changed


def test_how_long_it_takes_is_measured(school: School, ternary: Model) -> None:
    assert school.fit(ternary, 0.2) is None
    assert school.fit(ternary, 10_000.0) == Schooling(epochs=10)


def test_samples_that_measure_the_result_teach_nothing(original: Model, pictures: np.ndarray) -> None:
    same = samples(pictures, 0, 50)
    with pytest.raises(DataError, match="all samples of --train-data are among those of --data"):
        open_school(original, same, measured=(samples(pictures, 0, 60),))


def test_without_a_school_the_step_says_what_it_needs(ternary: Model, pictures: np.ndarray) -> None:
    with pytest.raises(OptionError, match="give --train-data"):
        run(Step("train_weights"), ternary, Evidence(samples(pictures, 0, 20)))


def test_a_float_model_has_nothing_to_train(original: Model, pictures: np.ndarray) -> None:
    result = run(Step("train_weights"), original, Evidence(samples(pictures, 0, 20)))
    assert result.model is original and "no step before gave weights another form" in result.notes[0]


@pytest.mark.parametrize("constraint", ["codebook:4", "sparse:0.9", "grid:2"])
def test_the_solver_train_is_second_order_and_then_training(
    constraint: str, school: School, original: Model, pictures: np.ndarray
) -> None:
    evidence = Evidence(samples(pictures, 0, 50), school=school)
    schooling = {"epochs": 1, "samples": 128, "rate": 1e-3}
    config = {"constraint": constraint, "form": "cast", "embeddings": False}
    clean = run_plan(CLEAN, original, evidence).model
    solved = run(Step("constrain_weights", config), clean, evidence)
    both = run_plan(
        Plan("two", (Step("constrain_weights", config), Step("train_weights", schooling))), clean, evidence
    ).model
    trained = run(Step("constrain_weights", {**config, "solver": "train", "schooling": schooling}), clean, evidence)
    assert to_bytes(trained.model) == to_bytes(both) != to_bytes(solved.model)
    assert any("taught by the original" in note for note in trained.notes)


def test_schooling_that_nobody_asked_for_or_that_is_wrong_is_refused(original: Model) -> None:
    for config, message in (
        ({"schooling": {"epochs": 1}}, "schooling is of solver train, not of second_order"),
        (
            {"solver": "train", "schooling": {"epoch": 1}},
            "those of schooling are epochs, samples, batch, rate",
        ),
    ):
        with pytest.raises(OptionError, match=message):
            run(Step("constrain_weights", config), original, None)


def test_the_solver_train_says_what_it_needs(original: Model, pictures: np.ndarray) -> None:
    step = Step("constrain_weights", {"solver": "train"})
    for evidence in (None, Evidence(samples(pictures, 0, 20))):
        with pytest.raises(OptionError, match="solver train needs samples to learn from"):
            run(step, original, evidence)


@pytest.mark.parametrize("config", [{"epochs": 0}, {"samples": -1}, {"batch": 0}])
def test_numbers_out_of_range_are_refused(config: dict[str, int], ternary: Model, pictures: np.ndarray) -> None:
    with pytest.raises(OptionError, match="schooling: "):
        run(Step("train_weights", config), ternary, Evidence(samples(pictures, 0, 20)))
