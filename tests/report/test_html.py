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

from gossamer.errors import OutputError
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency
from gossamer.nouns.plan import Calibration, Plan, Scope, Step
from gossamer.nouns.record import Candidate, Machine, Record, Split, Splits
from gossamer.report import words
from gossamer.report.html import rank, write_report
from gossamer.report.picture import figure

HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert(2)">'&{{ 7*7 }}%{x}"""
ORIGINAL_BYTES, ORIGINAL_MS = 1_517_780, 0.431
RUNTIME = "onnxruntime 1.31.1"


def facts(drop: float, ratio: float, size: int, half: float = 0.006) -> Facts:
    accuracy = Accuracy("top1", 0.9372, 0.9372 - drop, drop, drop - half, drop + half, 700, 24.6)
    latency = Latency(ORIGINAL_MS, ORIGINAL_MS / ratio, ratio, 0.97 * ratio, 1.04 * ratio, 1, RUNTIME)
    return Facts(accuracy, Bytes(ORIGINAL_BYTES, size), latency)


def candidate(name: str, steps: tuple[Step, ...], measured: Facts, seconds: float) -> Candidate:
    calibration = Calibration("demo-out/data.npz", digest="9f2c")
    return Candidate(Plan(name, steps, calibration), measured, measured.accuracy.drop <= 0.01, "", seconds)


def sample_record() -> Record:
    """What a real run leaves: eight candidates, one of them failed, one collapsed."""
    fold, equalize = Step("fold_batchnorm"), Step("equalize_channels")

    def static(**options: object) -> Step:
        scope = Scope(skip=("stem",))
        return Step("static_int8", {"activations": "uint8", "granularity": "per_channel", **options}, scope)

    candidates = (
        candidate("float, folded", (fold,), facts(0.0, 1.04, 1_498_112, 0.0), 2.1),
        candidate("float16", (fold, Step("float16")), facts(0.0004, 0.71, 760_144, 0.0012), 2.8),
        candidate("dynamic int8", (fold, Step("dynamic_int8")), facts(0.0021, 0.55, 402_331, 0.003), 3.3),
        candidate("static int8, min-max", (fold, static(ranges="minmax")), facts(0.0057, 2.29, 411_902), 6.4),
        candidate("static int8, KL", (fold, static(ranges="kl")), facts(0.0129, 2.31, 411_902, 0.008), 7.0),
        msgspec.structs.replace(
            candidate(
                "static int8, L2, equalized, bias corrected",
                (fold, equalize, static(ranges="l2"), Step("correct_bias")),
                facts(0.0014, 2.26, 413_120, 0.005),
                9.7,
            ),
            notes=("bias corrected in 7 of 14 layers; elsewhere the output error did not fall",),
        ),
        candidate("static int8, per tensor", (fold, static(ranges="minmax")), facts(0.214, 2.35, 409_777, 0.03), 6.0),
        Candidate(Plan("static int8, int16 activations"), None, False, "onnxruntime refuses the model: no kernel", 1.2),
    )
    return Record(
        met=True,
        artifact="demo-out/model.onnx",
        accuracy=Accuracy("top1", 0.9385, 0.9371, 0.0014, -0.0031, 0.0060, 700, 24.8),
        bytes=Bytes(ORIGINAL_BYTES, 413_120),
        latency_ms=Latency(ORIGINAL_MS, 0.1907, 2.26, 2.19, 2.35, 1, RUNTIME),
        seconds=41.3,
        peak_rss_bytes=312_000_000,
        max_drop=0.01,
        minimize="latency",
        confident=False,
        chosen="static int8, L2, equalized, bias corrected",
        model="original.onnx",
        data="demo-out/data.npz",
        notes=("bias corrected in 7 of 14 layers",),
        original_sha256="1" * 64,
        artifact_sha256="2" * 64,
        labelled=True,
        splits=Splits(Split(600, "a" * 64), Split(700, "b" * 64), Split(700, "c" * 64), 0),
        candidates=candidates,
        machine=Machine(
            "Xeon (Sapphire Rapids)", 2, ("avx2", "avx512f", "avx512_vnni"), "Linux 6.1", "3.11.7", {"numpy": "2.4.6"}
        ),
        gossamer="0.1.0",
    )


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


def changed(record: Record, **fields: object) -> Record:
    return msgspec.structs.replace(record, **fields)


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
    page = read(changed(record, warnings=(HOSTILE,), gossamer=HOSTILE, **fields), tmp_path)
    honest = read(record, tmp_path)
    assert len(page.scripts) == len(honest.scripts) == 3
    assert page.scripts[1:] == honest.scripts[1:]
    assert not any(tag == "img" or any(name.startswith("on") for name in attributes) for tag, attributes in page.tags)
    assert page.text.count(HOSTILE) >= 10
    drawn = json.loads(page.scripts[0])
    hovers = [text for trace in drawn["data"] for text in trace.get("hovertext", [])]
    assert not any("<img" in text or "<script" in text for text in hovers)


def test_missing_numbers_are_told_as_missing(tmp_path: Path) -> None:
    page = read(unmeasured(), tmp_path)
    assert words.UNKNOWN in page.text
    assert "nan" not in page.text.lower().replace("gossamer", "")
    assert "NaN" not in page.scripts[0]


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
