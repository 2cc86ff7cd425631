"""A model of integers that its own float model teaches begins where its weights were before they were rounded."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

import onnx_ir as ir  # noqa: E402
from tests.passes.graphs import normal  # noqa: E402

from gossamer.graph.edit import constant  # noqa: E402
from gossamer.intake.normalise import normalise  # noqa: E402
from gossamer.intake.onnx_file import read  # noqa: E402
from gossamer.measuring.evidence import Evidence  # noqa: E402
from gossamer.nouns.model import Model, save  # noqa: E402
from gossamer.nouns.plan import Plan, Step  # noqa: E402
from gossamer.nouns.samples import samples_from_arrays  # noqa: E402
from gossamer.passes.contract import run_plan  # noqa: E402
from gossamer.planning.candidates import CLEAN  # noqa: E402
from gossamer.training.hints import propose  # noqa: E402
from gossamer.training.origin import with_origin  # noqa: E402
from gossamer.training.twin import twin  # noqa: E402


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("origin") / "original.onnx"
    path.write_bytes(files("gossamer.demo").joinpath("original.onnx").read_bytes())
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with files("gossamer.demo").joinpath("data.npz").open("rb") as file:
        return np.asarray(np.load(file)["image"][:32])


@pytest.fixture(scope="module")
def integers(original: Path, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """As a file that was written and read again: where it came from is forgotten."""
    steps = (*CLEAN.steps, Step("quantize_static", {"weight_bits": 4}))
    evidence = Evidence(samples_from_arrays({"image": images}))
    path = tmp_path_factory.mktemp("origin") / "integers.onnx"
    save(run_plan(Plan("four", steps), normalise(read(original)), evidence).model, path)
    return normalise(read(path))


def latents(model: Model) -> dict[str, np.ndarray]:
    """What twins begin with, in steps."""
    graph = twin(model).ir.graph
    nodes = [node for node in graph if node.op_type == "FakeQuantize" and "gossamer.stored" in node.metadata_props]
    return {str(node.inputs[0].name): np.asarray(constant(node.inputs[0])) for node in nodes if node.inputs[0]}


def test_weights_begin_where_they_were(integers: Model, original: Path) -> None:
    plain, known = latents(integers), latents(with_origin(integers, str(original)))
    assert plain.keys() == known.keys() and len(plain) > 5
    for name, middle in plain.items():
        assert np.allclose(middle, np.round(middle), atol=1e-3)
        away = np.abs(known[name] - middle)
        assert away.max() <= 0.451 and 0.1 < away.mean() < 0.4


def test_another_network_is_no_origin(integers: Model, original: Path, tmp_path: Path) -> None:
    other = read(original).clone()
    for name, value in other.ir.graph.initializers.items():
        array = constant(value)
        if array is not None and array.dtype == np.float32 and array.ndim > 1:
            value.const_value = ir.tensor(-array, name=name)
    save(other, tmp_path / "other.onnx")
    plain = latents(integers)
    for teacher in (tmp_path / "other.onnx", tmp_path / "logits.npz", tmp_path / "none.onnx", None, [normal(4, 10)]):
        found = latents(with_origin(integers, teacher))
        assert all(np.array_equal(found[name], value) for name, value in plain.items())


def test_a_model_in_float_has_no_origin(original: Path) -> None:
    model = normalise(read(original))
    assert with_origin(model, str(original)) is model


def test_tensors_of_integers_are_paired_with_those_of_the_same_name(
    integers: Model, original: Path, images: np.ndarray
) -> None:
    teacher = normalise(read(original))
    pairs = propose(integers, teacher, {"image": images[:1]})
    assert len(pairs) >= 2
    assert all(pair.student == pair.teacher and not pair.adapted for pair in pairs)
