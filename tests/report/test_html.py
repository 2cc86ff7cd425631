"""The page opens offline, shows every candidate, and nothing a name holds becomes markup."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import plotly.graph_objects as go
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.report.records import (
    HOSTILE,
    ORIGINAL_BYTES,
    RUNTIME,
    changed,
    constrained_record,
    diagnosed_record,
    diagnosis,
    facts,
    forecast,
    hostile_diagnosis,
    hostile_forecast,
    sample_record,
)

from gossamer.errors import OutputError
from gossamer.nouns.diagnosis import Diagnosis
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency
from gossamer.nouns.plan import Calibration, Plan, Scope, Step
from gossamer.nouns.prediction import Forecast
from gossamer.nouns.record import Candidate, Machine, Record
from gossamer.report import words
from gossamer.report.html import rank, write_report
from gossamer.report.picture import figure


class Reader(HTMLParser):
    """Texts, tags and attributes of a page; scripts apart."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def read(record: Record, folder: Path) -> Reader:
    write_report(record, folder / "report.html")
    reader = Reader()
    reader.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def unmeasured() -> Record:
    """Every number that can be missing is."""
    nan = math.nan
    accuracy = Accuracy("snr", nan, nan, nan, nan, nan, 0, math.inf)
    latency = Latency(nan, nan, nan, nan, nan, 1, RUNTIME)
    empty = Facts(accuracy, Bytes(0, 0), latency)
    candidates = (Candidate(Plan("a"), empty), Candidate(Plan("b"), None, False, ""))
    return changed(sample_record(), accuracy=accuracy, latency_ms=latency, bytes=Bytes(0, 0), candidates=candidates)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = read(sample_record(), tmp_path)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert [tag for tag, _ in page.tags if tag in ("iframe", "object", "embed", "base")] == []
    policy = [
        attributes["content"] or ""
        for _, attributes in page.tags
        if "Content-Security" in (attributes.get("http-equiv") or "")
    ]
    assert policy and policy[0].startswith("default-src 'none'") and "http" not in policy[0]
    style = (tmp_path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_every_candidate_and_figure_is_shown(tmp_path: Path) -> None:
    record = sample_record()
    text = read(record, tmp_path).text
    for one in record.candidates:
        assert one.plan.name in text
    for expected in (
        "onnxruntime refuses the model: no kernel", "2.26× faster", "3.67× smaller", "0.14 points lower",
        "−0.31 to 0.60", "700 samples", "1,517,780 to 413,120 bytes", "avx512_vnni", "bias corrected in 7 of 14 layers",
        "a" * 64, "b" * 64, "c" * 64, "1" * 64, "2" * 64, RUNTIME, "Static int8 (activations uint8", "leaving out stem",
    ):  # fmt: skip
        assert expected in text, expected


def test_a_missed_floor_is_plain(tmp_path: Path) -> None:
    page = read(changed(sample_record(), met=False), tmp_path)
    assert "Floor not met" in page.text
    assert "NOT met: top-1 accuracy at most 1.00 points lower" in page.text
    assert any(attributes.get("class") == "verdict missed" for _, attributes in page.tags)


def test_warnings_optimism_and_interruption_are_told(tmp_path: Path) -> None:
    splits = msgspec.structs.replace(sample_record().splits, optimistic=("accuracy: 30 samples chose and verified",))
    text = read(changed(sample_record(), splits=splits, warnings=("top-1 is 12 %",), interrupted=True), tmp_path).text
    assert "Optimistic: accuracy: 30 samples" in text
    assert "Warning: top-1 is 12 %" in text
    assert "Interrupted." in text


def test_without_labels_the_page_says_what_was_measured(tmp_path: Path) -> None:
    record = sample_record()
    accuracy = msgspec.structs.replace(record.accuracy, metric="agreement") if False else record.accuracy
    unlabelled = changed(
        record, labelled=False, accuracy=Accuracy("agreement", 1.0, 0.99, 0.01, 0.002, 0.018, 700, accuracy.snr_db)
    )
    text = read(unlabelled, tmp_path).text
    assert "The data has no labels" in text
    assert "none: quality is likeness to the original" in text


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    record = sample_record()
    plan = Plan(HOSTILE, (Step(HOSTILE, {HOSTILE: HOSTILE}, Scope(only=(HOSTILE,))),), Calibration(HOSTILE))
    evil = (
        Candidate(plan, facts(0.001, 2.0, 400_000), True, "", 1.0, (HOSTILE,)),
        Candidate(plan, None, False, HOSTILE),
    )
    machine = Machine(HOSTILE, 2, (HOSTILE,), HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    fields = {"candidates": evil, "machine": machine, "model": HOSTILE, "artifact": HOSTILE, "chosen": HOSTILE}
    fields["diagnosis"], fields["forecast"] = hostile_diagnosis(), hostile_forecast()
    page = read(changed(record, warnings=(HOSTILE,), gossamer=HOSTILE, **fields), tmp_path)
    honest = read(record, tmp_path)
    assert len(page.scripts) == len(honest.scripts) == 3
    assert page.scripts[1:] == honest.scripts[1:]
    assert not any(tag == "img" or any(name.startswith("on") for name in attributes) for tag, attributes in page.tags)
    assert page.text.count(HOSTILE) >= 20
    drawn = [trace for one in json.loads(page.scripts[0]).values() for trace in one["data"]]
    hovers = [text for trace in drawn for text in trace.get("hovertext", [])]
    assert not any("<img" in text or "<script" in text for text in hovers)


def test_missing_numbers_are_told_as_missing(tmp_path: Path) -> None:
    page = read(unmeasured(), tmp_path)
    assert words.UNKNOWN in page.text
    assert "nan" not in page.text.lower().replace("gossamer", "")
    assert "NaN" not in page.scripts[0]


def test_a_diagnosis_is_told_whole(tmp_path: Path) -> None:
    text = " ".join(read(diagnosed_record(), tmp_path).text.split())
    told = diagnosis()
    for one in told.findings:
        assert one.text.replace("`", "") in text and one.remedy.replace("`", "") in text
    for expected in (
        "Fold batchnorm 101 %", "float rounding only", "45 % −56 %", "23.5 dB", "24.8 dB +1.3 dB", "14 integer layers",
        "block6.conv1", "1.5 dB truer 13.0 % slower", "0.070 % of the values cut off", "nothing cut off", "256 steps",
    ):  # fmt: skip
        assert expected in text, expected


@pytest.mark.parametrize("told", [None, Diagnosis()])
def test_without_a_diagnosis_there_are_no_sections_of_it(told: Diagnosis | None, tmp_path: Path) -> None:
    page = read(changed(sample_record(), diagnosis=told), tmp_path)
    labels = {attributes.get("aria-label") for tag, attributes in page.tags if tag == "section"}
    assert labels == {"Before and after", "Candidates", "What was done", "Data", "Machine", "Files"}
    assert list(json.loads(page.scripts[0])) == ["picture"]


def test_each_part_of_a_diagnosis_stands_alone(tmp_path: Path) -> None:
    whole = diagnosis()
    for part, label in (("layers", "Layers"), ("ranges", "Ranges"), ("findings", "Findings"), ("steps", None)):
        only = Diagnosis(**{part: getattr(whole, part)})
        page = read(changed(sample_record(), diagnosis=only), tmp_path)
        labels = {attributes.get("aria-label") for tag, attributes in page.tags if tag == "section"}
        assert labels & {"Layers", "Ranges", "Findings"} == ({label} if label else set())
        places = {attributes.get("id") for _, attributes in page.tags}
        assert set(json.loads(page.scripts[0])) <= places


def test_a_forecast_is_told_whole(tmp_path: Path) -> None:
    page = read(constrained_record(), tmp_path)
    text = " ".join(page.text.split())
    for expected in (
        "5 weights at 3 to 7 bits, 3.5 on average: 26.5 kB, which took 240.0 kB.",
        "Grey layers were left as they were.",
        "noise of 3 % of the outputs' power was predicted, 2.4 % was measured", "Over 5 layers", "noise is 1.00;",
        "All 5 layers as a table", "block4.conv grid:3 7.50 kB 1 % 1.05 %",
    ):  # fmt: skip
        assert expected in text, expected
    figures = json.loads(page.scripts[0])
    assert {"bits", "noise"} <= set(figures) <= {attributes.get("id") for _, attributes in page.tags}


def test_what_was_not_measured_has_no_picture(tmp_path: Path) -> None:
    bare = tuple(msgspec.structs.replace(one, measured_noise_ratio=None) for one in forecast().predictions)
    page = read(changed(constrained_record(), forecast=Forecast(bare)), tmp_path)
    assert "noise" not in json.loads(page.scripts[0]) and "dotted line" not in page.text
    assert "bits" in json.loads(page.scripts[0])


def test_a_plan_that_constrains_nothing_has_no_section_of_it(tmp_path: Path) -> None:
    left = Forecast(tuple(one for one in forecast().predictions if not one.constraint))
    for told in (None, Forecast(), left):
        page = read(changed(sample_record(), forecast=told), tmp_path)
        assert "Where the bits went" not in page.text


def test_no_candidate_at_all(tmp_path: Path) -> None:
    page = read(changed(sample_record(), candidates=(), met=False, interrupted=True), tmp_path)
    assert "No candidate was tried." in page.text
    assert page.scripts == []


def test_the_picture_is_one_plotly_can_draw() -> None:
    for record in (sample_record(), unmeasured()):
        drawn = figure(record, rank(record))
        go.Figure(drawn)  # refuses a property it does not know


def dots(record: Record) -> dict[int, tuple[float, float, float, str]]:
    """Row -> x, y, diameter and symbol; told by the hover, as a dot under another has no number."""
    return {
        int(hover.removeprefix("<b>").split()[0]): (x, y, size, symbol)
        for trace in figure(record, rank(record))["data"]
        if "text" in trace
        for hover, x, y, size, symbol in zip(
            trace["hovertext"], trace["x"], trace["y"], trace["marker"]["size"], trace["marker"]["symbol"], strict=True
        )
    }


def test_dots_stand_for_the_table_s_rows_and_their_areas_for_bytes() -> None:
    record = sample_record()
    ranked = rank(record)
    assert ranked[0].plan.name == record.chosen
    assert ranked[-1].facts is None
    drawn = dots(record)
    assert sorted(drawn) == list(range(1, len(ranked)))
    reference = ranked[0].facts
    for place, (_, _, diameter, _) in drawn.items():
        one = ranked[place - 1].facts
        assert one and reference
        assert (diameter / drawn[1][2]) ** 2 == pytest.approx(one.bytes.result / reference.bytes.result)


def test_the_chosen_dot_has_its_number_and_numbers_do_not_cover_each_other() -> None:
    record = sample_record()
    same = [msgspec.structs.replace(record.candidates[3], plan=Plan(name, (Step("float16"),))) for name in "abcd"]
    crowd = changed(record, candidates=(*record.candidates, *same))
    traces = [trace for trace in figure(crowd, rank(crowd))["data"] if "text" in trace]
    numbers = [number for trace in traces for number in trace["text"]]
    assert "1" in numbers
    assert numbers.count("") == len(same)


def test_the_original_is_a_ring_and_no_dot() -> None:
    record = sample_record()
    left = Candidate(Plan("original"), facts(0.0, 1.0, ORIGINAL_BYTES), True)
    drawn = figure(changed(record, candidates=(left,), chosen="original"), (left,))
    assert [trace["name"] for trace in drawn["data"] if trace.get("mode") != "lines"] == ["original"]
    assert "original, chosen" in str(drawn["layout"]["annotations"])


def test_a_collapsed_candidate_stands_at_the_edge_without_an_interval() -> None:
    record = sample_record()
    drawn = dots(record)
    collapsed = next(place for place, one in enumerate(rank(record), 1) if one.plan.name.endswith("per tensor"))
    _, y, _, symbol = drawn.pop(collapsed)
    assert symbol == "triangle-up"
    assert y < 21.4
    assert {symbol for *_, symbol in drawn.values()} == {"circle"}
    intervals = next(trace for trace in figure(record, rank(record))["data"] if "error_y" in trace)
    assert len(intervals["x"]) == len(drawn)


def test_the_front_never_trades_speed_for_nothing() -> None:
    record = sample_record()
    front = next(trace for trace in figure(record, rank(record))["data"] if trace.get("name") == "best trade-offs")
    assert front["x"] == sorted(front["x"])
    assert front["y"] == sorted(front["y"], reverse=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drop=st.floats(-1, 1) | st.just(math.nan),
    ratio=st.floats(0.01, 100),
    size=st.integers(1, 10**12),
    max_drop=st.floats(0, 1),
    minimize=st.sampled_from(["latency", "size"]),
    met=st.booleans(),
)
def test_any_measurement_can_be_told(
    drop: float, ratio: float, size: int, max_drop: float, minimize: str, met: bool
) -> None:
    measured = facts(drop, ratio, size)
    one = Candidate(Plan("x", (Step("float16"),)), measured, met)
    record = changed(
        sample_record(), accuracy=measured.accuracy, latency_ms=measured.latency_ms, bytes=measured.bytes,
        candidates=(one,), chosen="x", max_drop=max_drop, minimize=minimize, met=met,
    )  # fmt: skip
    go.Figure(figure(record, rank(record)))
    sentence = words.headline(record)
    assert sentence.endswith(".") and "nan" not in sentence
    assert ("not met" in sentence) == (not met)


def test_an_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*report\.html"):
        write_report(sample_record(), tmp_path / "file" / "report.html")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234.5, 1, "1,234.5"),
        (-0.001, 2, "0.00"),
        (-1.5, 1, "−1.5"),
        (math.nan, 2, "not measured"),
        (None, 2, "not measured"),
        (math.inf, 1, "∞"),
    ],
)
def test_numbers(value: float | None, digits: int, text: str) -> None:
    assert words.number(value, digits) == text


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 bytes"), (413_120, "413.1 kB"), (1_517_780, "1.52 MB"), (3_000_000_000, "3.00 GB")]
)
def test_sizes(size: int, text: str) -> None:
    assert words.size_text(size) == text
