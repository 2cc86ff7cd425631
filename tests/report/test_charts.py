"""Pictures of a diagnosis: every mark stands for a measurement, and any measurement can be drawn."""

from __future__ import annotations

import math

import msgspec
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.records import HOSTILE, diagnosis, hostile_diagnosis

from gossamer.nouns.diagnosis import LayerBlame, RangeHistogram, worst
from gossamer.report.charts import (
    layers_figure,
    marked_layers,
    percent_text,
    price_text,
    range_figure,
    range_words,
    short,
)

ANY = st.floats() | st.just(0.0)


@given(
    st.lists(
        st.builds(
            LayerBlame,
            node=st.text(max_size=80),
            op=st.just("Conv"),
            tensor=st.just("t"),
            position=st.integers(0, 9),
            snr_db=ANY,
            added_ratio=ANY,
            restored_db=st.none() | ANY,
            restored_latency_ratio=st.none() | ANY,
            restored_with=st.sampled_from([(), ("a",), ("a", "b", "c")]),
            channel_spread=st.none() | ANY,
        ),
        max_size=6,
    )
)
def test_any_layers_can_be_drawn(layers: list[LayerBlame]) -> None:
    go.Figure(layers_figure(tuple(layers)))  # refuses a property it does not know


@given(
    low=st.floats(-1e30, 1e30),
    width=st.floats(0, 1e30),
    counts=st.lists(st.integers(0, 10**12), max_size=5),
    clip_low=ANY,
    clip_high=ANY,
)
def test_any_range_can_be_drawn(low: float, width: float, counts: list[int], clip_low: float, clip_high: float) -> None:
    histogram = RangeHistogram("t", low, low + width, tuple(counts), clip_low, clip_high, 256)
    go.Figure(range_figure(histogram))
    assert "nan" not in range_words(histogram).lower()


def test_bars_stand_for_layers_and_the_marked_ones_are_the_worst() -> None:
    layers = diagnosis().layers
    upper, lower = layers_figure(layers)["data"]
    assert upper["y"] == [layer.snr_db for layer in layers]
    assert lower["y"] == [layer.restored_db for layer in layers]
    marked = {place for place, colour in enumerate(upper["marker"]["color"]) if colour == "var(--bad)"}
    assert marked == {layer.position for layer in marked_layers(layers)} == {13, 12, 11, 10, 9}
    labels = {label["x"]: label["text"] for label in layers_figure(layers)["layout"]["annotations"]}
    assert labels[14] == "<b>1</b>" and labels[10] == "<b>5</b>"


def test_gains_that_were_not_measured_have_no_panel() -> None:
    layers = tuple(msgspec.structs.replace(layer, restored_db=None) for layer in diagnosis().layers)
    drawn = layers_figure(layers)
    assert len(drawn["data"]) == 1 and "yaxis2" not in drawn["layout"]
    assert worst(layers, 2) == (layers[13], layers[12])  # by the noise that they add


def test_the_worst_are_those_that_gain_most() -> None:
    layers = (
        LayerBlame("a", "Conv", "a", 0, 30, 0.9),
        LayerBlame("b", "Conv", "b", 1, 30, 0.1, 0.2, 1.0),
        LayerBlame("c", "Conv", "c", 2, 30, 0.2, 1.2, 1.0),
        LayerBlame("d", "Conv", "d", 3, 30, 0.3, -0.4, 1.0),
    )
    assert [layer.node for layer in worst(layers, 5)] == ["c", "b"]
    assert worst((), 5) == ()


def test_outside_the_covered_range_bars_are_marked() -> None:
    histogram = diagnosis().ranges[0]
    drawn = range_figure(histogram)
    (bars,) = drawn["data"]
    for x, colour in zip(bars["x"], bars["marker"]["color"], strict=True):
        assert (colour == "var(--bad)") == (not histogram.clip_low <= x <= histogram.clip_high)
    left, right = drawn["layout"]["xaxis"]["range"]
    assert left < histogram.low and right > histogram.high
    band, *edges = drawn["layout"]["shapes"]
    assert (band["x0"], band["x1"]) == (histogram.clip_low, histogram.clip_high)
    assert [edge["x0"] for edge in edges] == [histogram.clip_low, histogram.clip_high]


def test_names_in_hovers_are_escaped() -> None:
    drawn = layers_figure(hostile_diagnosis().layers)
    assert not any("<img" in text or "<script" in text for trace in drawn["data"] for text in trace["hovertext"])
    assert short(HOSTILE * 5).startswith("…") and len(short(HOSTILE * 5)) <= 46


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.0, "0 %"), (0.0000734, "0.0073 %"), (0.05, "5.0 %"), (0.34, "34 %"), (math.nan, "0 %")]
)
def test_small_shares_have_two_digits(ratio: float, text: str) -> None:
    assert percent_text(ratio) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(None, "price not measured"), (0.99, "at no more latency"), (1.078, "7.8 % slower")]
)
def test_prices(ratio: float | None, text: str) -> None:
    assert price_text(ratio) == text
