"""The report as a person sees it: it opens without an error, the pictures are there, hovering tells what is what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser.chromium import Page, browsing, find
from tests.report.records import (
    HOSTILE,
    changed,
    constrained_record,
    diagnosed_record,
    forecast,
    hostile_diagnosis,
    hostile_forecast,
    sample_record,
)

from gossamer.report.html import write_report

CHROMIUM = find()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: install Debian's package chromium, or let .ci/run do it"
)
HOVER = "[...document.querySelectorAll('#{id} .hoverlayer text')].map(text => text.textContent).join(' ')"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    write_report(constrained_record(), folder / "report.html")
    with browsing(CHROMIUM or "", folder / "profile") as opened:
        opened.open(folder / "report.html")
        yield opened


def count(page: Page, selector: str) -> int:
    return int(page.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"))


def bars(page: Page, id: str) -> int:
    """Bars that can be seen; a value that is missing has an empty one."""
    boxes = f"[...document.querySelectorAll('#{id} .barlayer .point path')].map(bar => bar.getBoundingClientRect())"
    return int(page.evaluate(f"{boxes}.filter(box => box.width > 0 && box.height > 0).length"))


def hover(page: Page, id: str, trace: int, point: int) -> str:
    """The label that appears over one mark, found by its trace and place as the drawing script numbers them.

    The pointer goes near its top: on a logarithmic axis a bar reaches out of the picture at the bottom.
    """
    mark = f"#{id} .cartesianlayer .trace:nth-of-type({trace}) :is(.point, path.point):nth-of-type({point})"
    page.evaluate(f"document.querySelector({json.dumps(f'#{id}')}).scrollIntoView({{block: 'center'}})")
    spot = page.evaluate(
        f"(() => {{ const box = document.querySelector({json.dumps(mark)}).getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + Math.min(box.height / 2, 6)]; })()"
    )
    page.hover(2, 2)
    page.hover(*spot)
    return str(page.eventually(HOVER.format(id=id)))


def test_nothing_complains(page: Page) -> None:
    assert page.eventually("document.querySelectorAll('#picture .point').length > 0")
    assert page.complaints == []


def test_every_picture_is_drawn_with_all_its_marks(page: Page) -> None:
    record = diagnosed_record()
    diagnosis = record.diagnosis
    assert diagnosis is not None
    drawn = sum(one.facts is not None for one in record.candidates)
    assert count(page, "#picture svg.main-svg") > 0
    assert count(page, "#picture .scatterlayer .point") >= drawn
    measured = sum(layer.restored_db is not None for layer in diagnosis.layers)
    assert bars(page, "layers") == len(diagnosis.layers) + measured
    for place, histogram in enumerate(diagnosis.ranges, 1):
        assert bars(page, f"range-{place}") == sum(one > 0 for one in histogram.counts)
        assert count(page, f"#range-{place} .shapelayer path") >= 3  # what the integers cover, and its two ends


def test_where_the_bits_went_is_drawn(page: Page) -> None:
    told = forecast()
    assert bars(page, "bits") == 2 * len(told.predictions)  # bits and bytes; no scales take more than nothing here
    assert count(page, "#bits .barlayer text") == len(told.predictions)
    measured = sum(one.measured_noise_ratio is not None for one in told.predictions)
    assert count(page, "#noise .scatterlayer .point") == measured + 1  # and the whole
    label = hover(page, "bits", 1, 2)
    assert "block1.conv" in label and "grid:3" in label and "3.00 kB of 32.0 kB" in label


def test_hovering_a_dot_tells_what_was_predicted_and_measured(page: Page) -> None:
    trace = page.evaluate(
        "[...document.querySelectorAll('#noise .scatterlayer .trace')]"
        ".findIndex(trace => trace.querySelectorAll('.point').length > 1) + 1"
    )
    label = hover(page, "noise", trace, 1)
    assert "block0.conv" in label and "predicted noise 0.2 %, measured 0.21 %" in label


def test_the_table_of_layers_opens(page: Page) -> None:
    seen = "document.querySelector('.forms').checkVisibility()"
    assert page.evaluate(seen) is False
    page.evaluate("document.querySelector('details summary').click()")
    try:
        assert page.eventually(seen)
    finally:
        page.evaluate("document.querySelector('details').open = false")


def test_pictures_follow_the_page_s_colours(page: Page) -> None:
    assert page.evaluate("document.body.innerHTML.includes('fill: var(')") is False
    fills = "getComputedStyle(document.querySelector('#layers .barlayer .point path')).fill"
    light = page.evaluate(fills)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        assert page.eventually(f"{fills} !== {json.dumps(light)}")
    finally:
        page.call("Emulation.setEmulatedMedia", features=[])
    assert page.eventually(f"{fills} === {json.dumps(light)}")


def test_hovering_a_candidate_tells_its_name_and_figures(page: Page) -> None:
    spots = page.evaluate(
        "[...document.querySelectorAll('#picture .scatterlayer .trace')]"
        ".map(trace => trace.querySelectorAll('.textpoint').length)"
    )
    chosen = max(place for place, texts in enumerate(spots, 1) if texts)  # drawn last, on top
    label = hover(page, "picture", chosen, 1)
    assert diagnosed_record().chosen in label
    assert "95 % interval" in label


def test_hovering_a_bar_tells_the_layer_and_its_price(page: Page) -> None:
    diagnosis = diagnosed_record().diagnosis
    assert diagnosis is not None
    at, layer = next((at, one) for at, one in enumerate(diagnosis.layers, 1) if one.restored_latency_ratio)
    label = hover(page, "layers", 1, at)
    assert layer.node in label
    assert "% slower" in label and "truer" in label


def test_hovering_a_histogram_counts(page: Page) -> None:
    assert "values" in hover(page, "range-1", 1, 40)


def test_a_narrow_page_has_nothing_wider_than_itself(page: Page) -> None:
    page.resize(390)
    try:
        assert page.eventually("document.getElementById('picture').layout.width < 390")
        assert page.evaluate("document.documentElement.scrollWidth <= 390")
    finally:
        page.resize(1280)
    assert page.eventually("document.getElementById('picture').layout.width > 600")


def test_hostile_names_run_nothing(tmp_path: Path) -> None:
    evil = changed(sample_record(), model=HOSTILE, diagnosis=hostile_diagnosis(), forecast=hostile_forecast())
    write_report(evil, tmp_path / "report.html")
    with browsing(CHROMIUM or "", tmp_path / "profile") as page:
        page.open(tmp_path / "report.html")
        assert page.eventually("document.querySelectorAll('#layers .point').length > 0")
        assert page.eventually("document.querySelectorAll('#bits .point').length > 0")
        assert page.complaints == []
        assert page.evaluate("document.images.length") == 0
        assert HOSTILE in hover(page, "layers", 1, 1)
