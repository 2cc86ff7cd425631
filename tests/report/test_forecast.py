"""Pictures of a forecast: every layer has its mark, and any numbers can be drawn."""

from __future__ import annotations

import math

import msgspec
import plotly.graph_objects as go
from hypothesis import given
from hypothesis import strategies as st
from tests.report.records import HOSTILE, forecast, hostile_forecast

from gossamer.nouns.prediction import Forecast, Prediction
from gossamer.report.forecast import bits_figure, noise_figure

ANY = st.floats() | st.floats(1e-6, 1.0)
TEXTS = st.sampled_from(["", "grid:4", "codebook:16", "sparse:2:4", "low_rank:0.9", "grid:", "nonsense"])
PREDICTIONS = st.builds(
    Prediction,
    layer=st.text(max_size=60),
    weight=st.text(max_size=3),
    constraint=TEXTS,
    loss=ANY,
    nearest_loss=ANY,
    zero_loss=ANY,
    stored_bytes=st.integers(0, 10**12),
    reason=st.text(max_size=90),
    measured_loss=st.none() | ANY,
    noise_ratio=st.none() | ANY,
    measured_noise_ratio=st.none() | ANY,
    float_bytes=st.integers(0, 10**12),
)


@given(st.lists(PREDICTIONS, max_size=8), st.none() | ANY, st.none() | ANY)
def test_any_forecast_can_be_drawn(predictions: list[Prediction], predicted: float, measured: float) -> None:
    drawn = Forecast(tuple(predictions), predicted, measured)
    go.Figure(bits_figure(drawn))  # refuses a property it does not know
    noise = noise_figure(drawn)
    if noise is not None:
        go.Figure(noise)
        for trace in noise["data"]:
            assert all(value > 0 and math.isfinite(value) for value in (*trace["x"], *trace["y"]))


def test_bars_show_bits_with_scales_on_top_and_bytes_below() -> None:
    bits, extra, stored = bits_figure(forecast())["data"]
    assert bits["y"][:5] == [7, 3, 3, 4, 3]
    # the last is in float, and must not flatten the rest
    assert bits["y"][5] < 10 and bits["text"] == ["7", "3", "3", "4", "3", "float"]
    assert bits["marker"]["color"][5] != bits["marker"]["color"][0]
    assert [round(a + b, 6) for a, b in zip(bits["y"][:5], extra["y"], strict=False)] == [7, 3, 3, 4, 3]
    assert stored["y"] == [3.5, 3.0, 4.5, 8.0, 7.5, 4.0]


def test_scales_are_what_is_stored_beyond_the_bits() -> None:
    one = msgspec.structs.replace(forecast().predictions[1], stored_bytes=4000)  # 32,000 bytes of floats: 4 bits each
    bits, extra, _ = bits_figure(Forecast((one,)))["data"]
    assert (bits["y"], extra["y"]) == ([3], [1.0])


def test_dots_stand_at_prediction_and_measurement() -> None:
    told = noise_figure(forecast())
    assert told is not None
    marks, ring = told["data"][-2:]
    assert [round(x, 6) for x in marks["x"]] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [round(y, 6) for y in marks["y"]] == [0.21, 0.42, 0.63, 0.84, 1.05]
    assert (ring["x"], ring["y"]) == ([3.0], [2.4])
    for expected in ("block3.conv", "grid:4", "8.00 kB of 64.0 kB, 4.0 bits a weight", "predicted noise 0.8 %"):
        assert expected in marks["hovertext"][3]
    assert "head" not in " ".join(marks["hovertext"])


def test_the_diagonal_runs_from_corner_to_corner() -> None:
    told = noise_figure(forecast())
    assert told is not None
    line, span = told["data"][1], told["layout"]["xaxis"]["range"]
    assert line["x"] == line["y"] and span == told["layout"]["yaxis"]["range"]
    assert [math.log10(x) for x in line["x"]] == span


def test_names_stand_where_there_is_room() -> None:
    told = noise_figure(forecast())
    assert told is not None
    names = told["data"][2]["text"]
    assert names[4] == "block4.conv" and 1 <= sum(map(bool, names)) <= 4
    crowd = [
        msgspec.structs.replace(one, noise_ratio=0.01, measured_noise_ratio=0.01) for one in forecast().predictions
    ]
    crowded = noise_figure(Forecast(tuple(crowd)))
    assert crowded is not None and sum(map(bool, crowded["data"][2]["text"])) <= 1


def test_nothing_measured_gives_no_picture() -> None:
    bare = [msgspec.structs.replace(one, measured_noise_ratio=None) for one in forecast().predictions]
    assert noise_figure(Forecast(tuple(bare), 0.1, 0.1)) is None
    silent = [msgspec.structs.replace(one, measured_noise_ratio=0.0) for one in forecast().predictions]
    assert noise_figure(Forecast(tuple(silent), 0.1, 0.1)) is None


def test_names_are_escaped() -> None:
    told = hostile_forecast()
    noise = noise_figure(told)
    assert noise is not None
    for figure in (bits_figure(told), noise):
        for trace in figure["data"]:
            for text in (*trace.get("hovertext", []), *trace.get("text", [])):
                assert "<script" not in text and "<img" not in text
    assert HOSTILE not in str(noise)
