"""The terminal reports: every figure is there, 80 columns hold it, names are printed as they are."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from tests.report.records import forecast

from gossamer.measuring.inspection import Axes, Inspection
from gossamer.measuring.layers import Layer
from gossamer.nouns.diagnosis import Diagnosis, Finding
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency, LayerError
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.record import Candidate, Machine, Record, Split, Splits
from gossamer.report.text import print_comparison, print_inspection, print_record

ACCURACY = Accuracy("top1", 0.9361, 0.9352, 0.0009, -0.0011, 0.0032, 1000, 31.2)
SIZES = Bytes(1_920_000, 510_000)
LATENCY = Latency(5.7, 3.01, 1.894, 1.85, 1.93, 1, "onnxruntime 1.31.1")
FACTS = Facts(ACCURACY, SIZES, LATENCY)


def plan(name: str) -> Plan:
    return Plan(name, (Step("quantize_static"),))


def record(**changes: Any) -> Record:
    made = Record(
        met=True,
        artifact="out/model.onnx",
        accuracy=ACCURACY,
        bytes=SIZES,
        latency_ms=LATENCY,
        seconds=41.0,
        peak_rss_bytes=300_000_000,
        max_drop=0.01,
        minimize="latency",
        confident=False,
        chosen="static int8",
        model="net.onnx",
        data="val.npz",
        original_sha256="a" * 64,
        artifact_sha256="b" * 64,
        labelled=True,
        splits=Splits(Split(200, "c"), Split(800, "d"), Split(1000, "e"), 0),
        candidates=(
            Candidate(plan("static int8"), FACTS, met=True),
            Candidate(plan("dynamic int8"), FACTS, met=False),
            Candidate(plan("float16"), None, error="onnxruntime refuses the model: no kernel for [bold]Conv[/bold]"),
        ),
        machine=Machine("AMD EPYC", 2, ("avx2",), "Linux", "3.11", {}),
    )
    return msgspec.structs.replace(made, **changes)


def test_a_forecast_is_a_line() -> None:
    text = " ".join(printed(print_record, record(forecast=forecast())).split())
    assert (
        "5 weights at 3 to 7 bits, 3.5 on average; predicted noise 3 %, measured 2.4 %; "
        "rank correlation over layers 1.00 " in text
    )
    assert "predicted" not in printed(print_record, record())


def printed(show: Any, *given: Any, width: int = 80) -> str:
    paper = io.StringIO()
    show(*given, Console(file=paper, width=width, color_system=None))
    return paper.getvalue()


def test_a_record_shows_every_figure() -> None:
    text = " ".join(printed(print_record, record()).split())
    for figure in (
        "1.92 MB",
        "510.0 kB",
        "5.700 ms",
        "3.010 ms",
        "1.85 to 1.93",
        "93.61 %",
        "93.52 %",
        "−0.11 to 0.32",
    ):
        assert figure in text
    for fact in ("1,000 samples", "onnxruntime 1.31.1, 1 thread, AMD EPYC", "31.2 dB", "800 samples"):
        assert fact in text


def test_equal_outputs_have_no_decibels() -> None:
    text = " ".join(printed(print_record, record(accuracy=replace(ACCURACY, snr_db=200.0))).split())
    assert "The outputs are equal." in text
    assert "dB" not in text


def test_the_first_findings_are_told_shortly() -> None:
    long = (
        "Add `conv` to `skip` of `quantize_static`'s scope in `plan.yaml`, then `gossamer apply plan.yaml model.onnx`."
        * 2
    )
    found = (
        Finding("`conv[0]` costs most: 1.9 dB.", long),
        Finding("Correcting the biases gained 1.3 dB.", "Applied."),
        Finding("The floor is missed.", "To accept that: `gossamer compress m.onnx --data d.npz --max-drop 1.5%`"),
        Finding("The fourth is in the report.", "Applied."),
    )
    text = printed(print_record, record(diagnosis=Diagnosis(findings=found)))
    lines = [line.strip() for line in text.splitlines()]
    assert "→ conv[0] costs most: 1.9 dB. How to change it is in report.html." in lines
    assert "→ Correcting the biases gained 1.3 dB. Applied." in lines
    assert "`gossamer compress m.onnx --data d.npz --max-drop 1.5%`" in " ".join(text.split())
    assert "The fourth" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert sum("→" in line for line in lines) == 3
    assert "→" not in printed(print_record, record())


def test_candidates_are_told_apart() -> None:
    lines = printed(print_record, record(), width=200).splitlines()
    (chosen,) = [line for line in lines if "static int8" in line]
    (missed,) = [line for line in lines if "dynamic int8" in line]
    (failed,) = [line for line in lines if "float16" in line]
    assert "▸" in chosen
    assert "met" in chosen
    assert "▸" not in missed
    assert "missed" in missed
    assert "failed: onnxruntime refuses the model: no kernel for [bold]Conv[/bold]" in failed


def test_a_missed_floor_is_said_first() -> None:
    first, second, *_ = printed(print_record, record(met=False)).splitlines()
    assert first.startswith("Floor not met")
    assert "NOT met" in second
    assert "interrupted" in printed(print_record, record(interrupted=True))


def test_what_flatters_is_said() -> None:
    few = record(splits=Splits(Split(5, "c"), Split(5, "c"), Split(5, "c"), 0, ("accuracy", "candidates.accuracy")))
    text = " ".join(printed(print_record, few).split())
    assert "! the accuracy shown is optimistic: its samples also chose the result" in text
    assert "! the candidates' drops are optimistic" in text
    assert "optimistic" not in printed(print_record, record())


def test_without_labels_it_is_said() -> None:
    text = " ".join(
        printed(print_record, record(labelled=False, accuracy=replace(ACCURACY, metric="agreement"))).split()
    )
    assert "The data has no labels" in text


def test_warnings_are_shown_whole() -> None:
    warning = "the original is right on only 3 of 200 samples; check [mean] and --std " * 3
    assert " ".join(warning.split()) in " ".join(printed(print_record, record(warnings=(warning,))).split())


def test_paths_stay_in_one_piece(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    (folder / "report.html").touch()
    lines = printed(print_record, record(artifact=str(folder / "model.onnx"))).splitlines()
    assert str(folder / "model.onnx") in lines
    assert str(folder / "report.html") in lines
    assert str(folder / "plan.yaml") not in lines


@pytest.mark.parametrize("metric", ["agreement", "snr", "my.module.with.a.long.name:function_that_scores_boxes"])
def test_other_metrics_fit_too(metric: str) -> None:
    other = record(accuracy=replace(ACCURACY, metric=metric), labelled=False)
    assert max(len(line) for line in printed(print_record, other).splitlines()) <= 80


def test_a_comparison_shows_both_and_the_worst_tensors() -> None:
    class Held:
        met, max_drop, accuracy, bytes, latency_ms = False, 0.01, ACCURACY, SIZES, LATENCY
        layers = tuple(LayerError(f"t[{index}]", "Conv", index, 12.5 + index) for index in range(50))

    text = printed(print_comparison, Held())
    assert text.startswith("B does not keep the floor: at most 1.00 points lower")
    for figure in ("1.92 MB", "3.010 ms", "93.52 %", "t[0]", "12.5 dB", "t[19]"):
        assert figure in text
    assert "t[20]" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def inspection(**changes: Any) -> Inspection:
    rows = (
        Layer(
            "stem[1]", "Conv", ((1, 3, 224, 224),), ((1, 64, 112, 112),), 9408, 118_013_952, 37632, 3211264, False, "x"
        ),
        Layer("relu", "Relu", ((1, 64, 112, 112),), ((1, 64, 112, 112),), 0, 0, 0, 3211264, False),
        Layer("odd", "house.Twist", (None,), (None,), 0, 0, 0, None, False, "custom domain house: kept as it is"),
        Layer("head", "Gemm", ((1, 512),), ((1, 1000),), 513_000, None, 2_052_000, 4000, True, "weights tied to stem"),
    )
    made = Inspection(
        model="net.onnx",
        parameters=11_684_712,
        macs=1_814_000_000,
        bytes=46_800_000,
        peak_activation_bytes=6_420_000,
        opset={"": 20, "house": 1},
        inputs=(Axes("image", "float", ("batch", 3, 224, 224), (0,)),),
        outputs=(Axes("scores", "float", None, ()),),
        layers=rows,
        notes=("a note",),
    )
    return msgspec.structs.replace(made, **changes)


def test_an_inspection_shows_layers_and_totals() -> None:
    text = printed(print_inspection, inspection())
    for figure in ("11,684,712", "1.814 G", "46.8 MB", "6.42 MB", "ai.onnx 20, house 1", "118.0 M", "64×112×112"):
        assert figure in text
    assert "stem[1]" in text
    assert "image  float (batch, 3, 224, 224), free axes 0" in text
    assert "scores  float, any shape" in text
    assert "a note" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_dull_nodes_are_counted_and_not_listed() -> None:
    text = printed(print_inspection, inspection())
    assert "relu" not in text
    assert "1 more nodes" in text
    assert "custom domain house" in " ".join(text.split())


def test_unknown_totals_are_called_unknown() -> None:
    text = " ".join(printed(print_inspection, inspection(macs=None, peak_activation_bytes=None)).split())
    assert "multiply-accumulates unknown" in text
    assert "peak activations unknown" in text
