"""Two small trained networks that int8 ruins when applied without care; here they must keep their accuracy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from tests.hard.tasks import exact_lines
from tests.integers import OVERFLOWS, WHY
from tests.quick import time_little

import gossamer
from gossamer import search
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Step
from gossamer.passes import contract
from gossamer.runtimes.onnxruntime import open_session

HERE = Path(__file__).parent
READER_METRIC = "tests.hard.tasks:exact_lines"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little timing: which candidate is faster by a few percent decides nothing here. And peers log a lot."""
    time_little(monkeypatch)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def scored(model: Path | Model, name: str) -> float:
    """The share of all samples that a model answers rightly."""
    with np.load(HERE / f"{name}.npz") as data:
        x, labels = (data[column] for column in ("picture" if name == "reader" else "steps", "labels"))
    session = open_session(model)
    scores = np.asarray(session.run({next(iter(session.inputs)): x})[0])
    right = exact_lines({"scores": scores}, labels) if name == "reader" else scores.argmax(1) == labels
    return float(np.mean(right))


def compressed(name: str, budget: gossamer.Budget, folder: Path) -> gossamer.Record:
    metric = READER_METRIC if name == "reader" else None
    return gossamer.compress(HERE / f"{name}.onnx", HERE / f"{name}.npz", budget, folder, metric=metric)


def stored(name: str, constraint: str, form: str) -> Model:
    config = {"constraint": constraint, "solver": "nearest", "form": form}
    return contract.run(Step("constrain_weights", config), normalise(read(HERE / f"{name}.onnx"))).model


class FirstPictures(CalibrationDataReader):  # type: ignore[misc]  # it has no types
    """A hundred of the reader's pictures for a peer's calibration."""

    def __init__(self) -> None:
        with np.load(HERE / "reader.npz") as data:
            self.pictures = iter([{"picture": data["picture"][n : n + 1]} for n in range(100)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.pictures, None)


# --- they are hard


@pytest.mark.parametrize("per_channel", [False, True])
def test_all_operators_in_int8_ruin_the_reader(per_channel: bool, tmp_path: Path) -> None:
    path = tmp_path / "static.onnx"
    quantize_static(
        HERE / "reader.onnx",
        path,
        FirstPictures(),
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    assert scored(path, "reader") < scored(HERE / "reader.onnx", "reader") - 0.2


def test_one_scale_a_matrix_ruins_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(HERE / "ledger.onnx", path)
    original = scored(HERE / "ledger.onnx", "ledger")
    assert "DynamicQuantizeLSTM" in {node.op_type for node in onnx.load(path).graph.node}
    assert scored(path, "ledger") < original - 0.08
    assert scored(stored("ledger", "grid:8:tensor", "cast"), "ledger") < original - 0.08


# --- they keep their accuracy


# 7 bits, which a kernel without VNNI could multiply, are too few for the ledger in any form
KERNEL = pytest.param("dynamiclstm", marks=pytest.mark.skipif(OVERFLOWS, reason=WHY))


@pytest.mark.parametrize("form", ["cast", KERNEL])
def test_one_scale_a_row_keeps_the_ledger(form: str) -> None:
    drop = scored(HERE / "ledger.onnx", "ledger") - scored(stored("ledger", "grid:8", form), "ledger")
    assert abs(drop) < 0.01


@pytest.mark.parametrize("name", ["ledger", "reader"])
def test_smallest(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "refine", lambda *_: ())  # other ranges do not make a file smaller
    record = compressed(name, gossamer.Budget(0.01, minimize="size"), tmp_path)
    assert record.met and record.accuracy.drop <= 0.01
    assert record.bytes.result < record.bytes.original / 2.5
    assert scored(tmp_path / "model.onnx", name) > scored(HERE / f"{name}.onnx", name) - 0.015


@pytest.mark.parametrize("name", ["ledger", "reader"])
def test_fastest(name: str, tmp_path: Path) -> None:
    record = compressed(name, gossamer.Budget(0.01), tmp_path)
    assert record.met and record.accuracy.drop <= 0.01
    assert scored(tmp_path / "model.onnx", name) > scored(HERE / f"{name}.onnx", name) - 0.015
