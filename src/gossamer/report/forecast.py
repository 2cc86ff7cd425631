"""Pictures of a forecast: where the bits and bytes went, and predicted noise against measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from gossamer.nouns.prediction import Forecast, Prediction
from gossamer.report.charts import CLEAR, font, frame, short
from gossamer.report.predictions import bits_of, measured_pairs, noise_text, stored_bits
from gossamer.report.words import number, size_text

MOST_LABELLED = 28  # bars that have room for a figure on top
NAMED = (2, 2)  # dots with a name: so many of the loudest, and of those farthest from the diagonal
NAME_LENGTH = 24
NAME_SHARE = (0.016, 0.045)  # width of a character and height of a line, of the picture's
FLOAT_BITS = 32
DOT_PX = (8.0, 30.0)  # diameters of the least and the largest weight


class Bar(NamedTuple):
    """A weight's place in the picture of bits: those of its numbers, and what scales or tables add to them."""

    bits: float
    extra: float
    left: bool  # as it was
    label: str


class Dot(NamedTuple):
    """A place in the picture of noise, in percent."""

    x: float
    y: float
    name: str
    hover: str
    diameter_px: float


def bits_figure(forecast: Forecast) -> dict[str, Any]:
    """Bars in graph order: bits a weight above; below them, the bytes that each layer's weights take.

    Colours are names of the page's CSS variables, as in `picture.figure`.
    """
    every = forecast.predictions
    bars = [_bar(one) for one in every]
    top = max((bar.bits + bar.extra for bar in bars if not bar.left), default=8.0)
    heights = [min(bar.bits, 1.2 * top) for bar in bars]
    hovers = [_hover(one) for one in every]
    labels = [bar.label if len(every) <= MOST_LABELLED else "" for bar in bars]
    colours = ["var(--line)" if bar.left else "var(--bar)" for bar in bars]
    largest = max((one.stored_bytes for one in every), default=0)
    unit, unit_bytes = ("MB", 1e6) if largest >= 1e6 else ("kB", 1e3)
    sizes = [one.stored_bytes / unit_bytes for one in every]
    traces = [
        {**_bars("bits", heights, colours, hovers, "y"), "text": labels, "textposition": "inside"},
        _bars("scales and tables", [bar.extra for bar in bars], ["var(--cover)"] * len(bars), hovers, "y"),
        _bars("stored", sizes, colours, hovers, "y2"),
    ]
    traces[0] |= {
        "insidetextanchor": "end",
        "textangle": 0,
        "textfont": font("var(--ink)", 12),
        "constraintext": "none",
    }
    return {"data": traces, "layout": _bits_layout(len(every), top, largest / unit_bytes, unit)}


def _bar(one: Prediction) -> Bar:
    if not one.constraint:
        return Bar(FLOAT_BITS, 0.0, True, "float")
    bits, stored = bits_of(one), stored_bits(one)
    if bits is None:
        return Bar(stored or 0.0, 0.0, False, number(stored, 1) if stored else "")
    return Bar(bits, max((stored or 0.0) - bits, 0.0), False, str(bits))


def _bars(
    name: str, heights: Sequence[float], colours: Sequence[str], hovers: Sequence[str], axis: str
) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": list(range(1, len(heights) + 1)),
        "y": list(heights),
        "yaxis": axis,
        "hovertext": list(hovers),
        "hoverinfo": "text",
        "textposition": "none",
        "marker": {"color": list(colours), "line": {"width": 0}},
    }


def _hover(one: Prediction) -> str:
    lines = [f"<b>{escape(short(one.layer), quote=False)}</b>"]
    if not one.constraint:
        return "<br>".join([*lines, f"left as it was: {size_text(one.stored_bytes)}"])
    before = f" of {size_text(one.float_bytes)}" if one.float_bytes else ""
    stored = stored_bits(one)
    each = f", {number(stored, 1)} bits a weight" if stored is not None else ""
    lines += [escape(one.constraint, quote=False), f"{size_text(one.stored_bytes)}{before}{each}"]
    predicted = one.noise_ratio
    if predicted is not None:
        lines.append(f"predicted noise {noise_text(predicted)}, measured {noise_text(one.measured_noise_ratio)}")
    if one.reason:
        lines.append(f"nearest: {escape(short(one.reason), quote=False)}")
    return "<br>".join(lines)


def _bits_layout(count: int, top: float, largest: float, unit: str) -> dict[str, Any]:
    quiet = {"gridcolor": "var(--line)", "zerolinecolor": "var(--faint)", "ticks": "", "fixedrange": True}
    return {
        **frame(340),
        "barmode": "stack",
        "bargap": 0.25 if count < 120 else 0.0,
        "hovermode": "closest",
        "xaxis": {
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
            "showticklabels": False,
            "fixedrange": True,
            "range": [0.4, count + 0.6],
            "title": _title("layers, in the order of the graph"),
            "anchor": "y2",
        },
        "yaxis": {
            **quiet,
            "range": [0, 1.1 * max(top, 1.0)],
            "nticks": 6,
            "title": _title("bits a weight"),
            "domain": [0.46, 1],
        },
        "yaxis2": {
            **quiet,
            "range": [0, 1.08 * (largest or 1.0)],
            "nticks": 4,
            "title": _title(f"stored, {unit}"),
            "domain": [0, 0.36],
        },
    }


def noise_figure(forecast: Forecast) -> dict[str, Any] | None:
    """Measured over predicted noise on logarithmic axes, a dot for each layer and a ring for the whole.

    None where nothing can be drawn: no layer was measured, or none makes a noise.
    """
    dots = _dots(forecast)
    if not dots:
        return None
    whole = _whole(forecast)
    shown = [*dots, whole] if whole else dots
    low = min(min(dot.x, dot.y) for dot in shown) / 2
    high = 2.2 * max(max(dot.x, dot.y) for dot in shown)
    traces = [_within_twofold(low, high), _diagonal(low, high), _marks(dots, _named(shown, low, high))]
    if whole:
        traces.append(_ring(whole))
    return {"data": traces, "layout": _noise_layout(low, high)}


def _dots(forecast: Forecast) -> list[Dot]:
    pairs = [
        (one, 100 * predicted, 100 * measured)
        for one, predicted, measured in measured_pairs(forecast.predictions)
        if _drawable(predicted) and _drawable(measured)
    ]
    largest = max((one.stored_bytes for one, *_ in pairs), default=1) or 1
    return [
        Dot(
            predicted,
            measured,
            one.layer,
            _hover(one),
            max(DOT_PX[0], DOT_PX[1] * math.sqrt(max(one.stored_bytes, 0) / largest)),
        )
        for one, predicted, measured in pairs
    ]


def _named(dots: Sequence[Dot], low: float, high: float) -> dict[Dot, str]:
    """Those whose names stand beside them, and on which side: the telling ones, as far as there is room."""
    loudest = sorted(dots, key=lambda dot: -dot.y)[: NAMED[0] + 1]  # the whole among them
    farthest = sorted(dots, key=lambda dot: -abs(math.log(dot.y / dot.x)))[: NAMED[1]]
    span = math.log(high / low)
    spots = {dot: (math.log(dot.x / low) / span, math.log(dot.y / low) / span) for dot in dots}
    named: dict[Dot, str] = {}
    for dot in dict.fromkeys((*loudest, *farthest)):
        x, y = spots[dot]
        if len(dot.name) > NAME_LENGTH or any(abs(spots[other][1] - y) < NAME_SHARE[1] for other in named):
            continue
        length = NAME_SHARE[0] * (len(dot.name) + 2)
        for side, start, end in (("middle left", x - length, x), ("middle right", x, x + length)):
            taken = any(start < u < end and abs(v - y) < NAME_SHARE[1] for u, v in spots.values() if (u, v) != (x, y))
            if start > 0 and end < 1 and not taken:
                named[dot] = side
                break
    return named


def _whole(forecast: Forecast) -> Dot | None:
    predicted, measured = forecast.noise_ratio, forecast.measured_noise_ratio
    if predicted is None or measured is None or not (_drawable(predicted) and _drawable(measured)):
        return None
    hover = f"<b>the whole</b><br>predicted noise {noise_text(predicted)}, measured {noise_text(measured)}"
    return Dot(100 * predicted, 100 * measured, "the whole", hover, 15.0)


def _drawable(ratio: float) -> bool:
    """On a logarithmic axis; less than float rounding is none."""
    return 1e-15 < ratio < 1e15


def _within_twofold(low: float, high: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "hoverinfo": "skip",
        "x": [low, high, high, low],
        "y": [2 * low, 2 * high, high / 2, low / 2],
        "fill": "toself",
        "fillcolor": "var(--cover)",
        "line": {"width": 0},
    }


def _diagonal(low: float, high: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "hoverinfo": "skip",
        "x": [low, high],
        "y": [low, high],
        "line": {"color": "var(--good)", "width": 1, "dash": "dot"},
    }


def _marks(dots: Sequence[Dot], named: Mapping[Dot, str]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [dot.x for dot in dots],
        "y": [dot.y for dot in dots],
        "text": [escape(dot.name, quote=False) if dot in named else "" for dot in dots],
        "textposition": [named.get(dot, "middle left") for dot in dots],
        "textfont": font("var(--soft)", 11),
        "hovertext": [dot.hover for dot in dots],
        "hoverinfo": "text",
        "marker": {
            "color": "var(--accent)",
            "opacity": 0.6,
            "size": [dot.diameter_px for dot in dots],
            "line": {"color": "var(--page)", "width": 1},
        },
    }


def _ring(dot: Dot) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [dot.x],
        "y": [dot.y],
        "text": [dot.name],
        "textposition": "middle left",
        "textfont": font("var(--ink)", 12),
        "hovertext": [dot.hover],
        "hoverinfo": "text",
        "marker": {"color": CLEAR, "size": dot.diameter_px, "line": {"color": "var(--ink)", "width": 1.5}},
    }


def _noise_layout(low: float, high: float) -> dict[str, Any]:
    span = [math.log10(low), math.log10(high)]
    axis = {
        "type": "log",
        "range": span,
        "gridcolor": "var(--line)",
        "zeroline": False,
        "ticks": "",
        "fixedrange": True,
        "dtick": max(1, math.ceil((span[1] - span[0]) / 6)),
        "exponentformat": "none",
        "minexponent": 9,
        "ticksuffix": " %",
    }
    return {
        **frame(400),
        "margin": {"l": 80, "r": 8, "t": 10, "b": 44},
        "hovermode": "closest",
        "xaxis": {**axis, "title": _title("predicted noise")},
        "yaxis": {**axis, "title": _title("measured noise")},
    }


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 8, "font": font("var(--soft)", 12)}
