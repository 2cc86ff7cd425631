"""The story on OpenVINO: the same files, held against what that runtime makes of the original by default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.packaged import demo_in
from tests.quick import first_round_only, time_little

import gossamer
from gossamer.gate import baseline, open_original, unchanged
from gossamer.measuring.quality import choose_metric
from gossamer.nouns.samples import samples_from_arrays
from gossamer.runtimes.contract import find

pytest.importorskip("openvino", reason='the second runtime is not installed: pip install "gossamer[openvino]"')

OPENVINO = gossamer.Target("openvino")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    time_little(monkeypatch)
    first_round_only(monkeypatch)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packaged network and 120 of its images."""
    return demo_in(tmp_path_factory.mktemp("demo"), 120)


def test_int8_must_beat_what_the_runtime_makes_of_floats(demo: Path, tmp_path: Path) -> None:
    budget = gossamer.Budget(0.02)
    record = gossamer.compress(demo / "original.onnx", demo / "data.npz", budget, tmp_path, target=OPENVINO)
    assert record.latency_ms.runtime.startswith("openvino") and "openvino" in record.machine.versions
    assert not any(step.method == "quantize_dynamic" for c in record.candidates for step in c.plan.steps)
    assert record.met
    if record.chosen != "original":
        assert record.latency_ms.ratio > 1.03
        assert record.bytes.result < record.bytes.original / 3
        onnx.checker.check_model(str(tmp_path / "model.onnx"))  # and it stays a standard file


def test_noise_is_that_against_float32(demo: Path) -> None:
    opened = open_original(demo / "original.onnx", OPENVINO)
    data = np.load(demo / "data.npz")
    samples = samples_from_arrays({"image": data["image"]}, data["labels"])
    facts = unchanged(baseline(opened, demo / "original.onnx", samples, choose_metric(opened.reference, samples)))
    rounds = find("openvino").FLOAT != "float32"
    assert (20 < facts.accuracy.snr_db < 90) if rounds else facts.accuracy.snr_db > 90
    assert facts.accuracy.drop == 0


def test_measure_and_compare_use_the_runtime_asked_for(demo: Path) -> None:
    original = demo / "original.onnx"
    facts = gossamer.measure(original, original, demo / "data.npz", target=OPENVINO)
    assert facts.latency_ms.runtime.startswith("openvino")
    proto = onnx.load(original)  # not on disk, as what comes through a converter
    assert gossamer.measure(proto, proto, demo / "data.npz").accuracy.drop == 0
