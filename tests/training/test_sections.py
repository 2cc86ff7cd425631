"""Training section by section, front to back, taught by the tensors of the float network."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'gossamer[train]'")

from gossamer.errors import OptionError  # noqa: E402
from gossamer.intake.normalise import normalise  # noqa: E402
from gossamer.intake.onnx_file import read  # noqa: E402
from gossamer.measuring.evidence import Evidence  # noqa: E402
from gossamer.nouns.model import Model, save, to_bytes  # noqa: E402
from gossamer.nouns.plan import Plan, Step  # noqa: E402
from gossamer.nouns.samples import samples_from_arrays  # noqa: E402
from gossamer.passes.contract import run_plan  # noqa: E402
from gossamer.planning.candidates import CLEAN  # noqa: E402
from gossamer.runtimes.onnxruntime import open_session  # noqa: E402
from gossamer.training.command import train_model  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.sections import blocks, sections, until  # noqa: E402
from gossamer.training.watching import Watch  # noqa: E402

QUICK = Options(epochs=1, batch=16, rate=3e-3, average=0.9, device="cpu")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with files("gossamer.demo").joinpath("data.npz").open("rb") as file:
        return np.asarray(np.load(file)["image"][:260])


@pytest.fixture(scope="module")
def folder(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged network, in float and with weights of two bits, and images without labels."""
    place = tmp_path_factory.mktemp("sections")
    (place / "float.onnx").write_bytes(files("gossamer.demo").joinpath("original.onnx").read_bytes())
    steps = (
        *CLEAN.steps,
        Step("quantize_static", {"weight_bits": 2, "rounding": "second_order"}),
        Step("correct_bias"),
    )
    evidence = Evidence(samples_from_arrays({"image": images[:64]}))
    save(run_plan(Plan("two", steps), normalise(read(place / "float.onnx")), evidence).model, place / "two.onnx")
    np.savez(place / "train.npz", image=images)
    return place


def noise(path: Path, folder: Path, images: np.ndarray) -> float:
    """Over the signal, of the outputs."""
    wanted, got = (
        open_session(read(file), 1).run({"image": images[:100]})[0] for file in (folder / "float.onnx", path)
    )
    return float(np.square(got - wanted).mean() / np.square(wanted).mean())


def test_sections_cover_the_graph_once_and_end_where_the_networks_agree(folder: Path, images: np.ndarray) -> None:
    model = normalise(read(folder / "two.onnx"))
    teacher = run_plan(CLEAN, normalise(read(folder / "float.onnx"))).model
    found = sections(model, blocks(model, teacher, {"image": images[:1]}, 4))
    assert len(found) == 4 and not found[-1].outputs
    every = [name for section in found for name in section.nodes]
    assert sorted(every) == sorted(str(node.name) for node in model.ir.graph)
    ends = found[1].outputs
    part, whole = (open_session(one, 1) for one in (until(teacher, ends), teacher))
    assert list(part.outputs) == list(ends) and part.run({"image": images[:2]})[0].shape[0] == 2
    assert len(whole.outputs) == 1  # the teacher itself is as it was


def test_it_takes_noise_away_and_is_the_same_every_time(folder: Path, images: np.ndarray, tmp_path: Path) -> None:
    made = []
    for place in ("a", "b"):
        said: list[str] = []
        train_model(
            folder / "two.onnx", folder / "train.npz", tmp_path / place, folder / "float.onnx",
            options=QUICK, watch=Watch(said.append), sections=3,
        )  # fmt: skip
        made.append((tmp_path / place / "model.onnx").read_bytes())
        assert sum(line.startswith("section ") for line in said) == 3
        assert {path.name for path in (tmp_path / place).iterdir()} == {"model.onnx", "training.json"}
    assert made[0] == made[1]
    assert noise(tmp_path / "a" / "model.onnx", folder, images) < 0.8 * noise(folder / "two.onnx", folder, images)


def test_a_run_that_stops_goes_on_behind_the_finished_sections(folder: Path, tmp_path: Path) -> None:
    def train(watch: Watch) -> bytes:
        options = {"options": QUICK, "constraint": "grid:2", "sections": 3}
        train_model(folder / "float.onnx", folder / "train.npz", tmp_path / "out", watch=watch, **options)  # type: ignore[arg-type]
        return (tmp_path / "out" / "model.onnx").read_bytes()

    class Stopped(Exception):
        pass

    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if line.startswith("section 3"):
            raise Stopped

    with pytest.raises(Stopped):
        train(Watch(stop))
    told: list[str] = []
    resumed = train(Watch(told.append))
    assert [line.split(",")[0] for line in told if line.startswith("section")] == ["section 3 of 3"]
    assert resumed == train(Watch())


def test_what_cannot_be_is_said_in_a_line(folder: Path, tmp_path: Path) -> None:
    def train(**options: object) -> None:
        train_model(folder / "two.onnx", folder / "train.npz", tmp_path / "out", options=QUICK, **options)  # type: ignore[arg-type]

    logits = np.zeros((260, 10), np.float32)
    with pytest.raises(OptionError, match="sections are taught by the float network that integers were made from"):
        train(teacher=logits, sections=3)
    with pytest.raises(OptionError, match="sections are trained without penalties"):
        train(teacher=folder / "float.onnx", sections=3, penalties=("lasso:0.1",))


def test_the_model_given_is_not_changed(folder: Path, images: np.ndarray) -> None:
    model: Model = normalise(read(folder / "two.onnx"))
    before = to_bytes(model)
    teacher = run_plan(CLEAN, normalise(read(folder / "float.onnx"))).model
    for section in sections(model, blocks(model, teacher, {"image": images[:1]}, 3))[:-1]:
        until(model, section.outputs)
    assert to_bytes(model) == before
