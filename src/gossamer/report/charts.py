"""Pictures of a diagnosis: signal to noise layer by layer, and what the worst layers' activations look like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from gossamer.nouns.diagnosis import LayerBlame, RangeHistogram, worst
from gossamer.report.findings import span_text
from gossamer.report.words import counted, number

MARKED = 5  # worst layers, with a number in the picture and a row in its table
EQUAL_DB = 100  # beyond this only the rounding of floats is left; drawn as this
LONGEST_NAME = 46
CLEAR = "rgba(0,0,0,0)"


def marked_layers(layers: tuple[LayerBlame, ...]) -> tuple[LayerBlame, ...]:
    """The worst, in the order of the numbers they bear."""
    return worst(layers, MARKED)


def layers_figure(layers: tuple[LayerBlame, ...]) -> dict[str, Any]:
    """Bars in graph order: signal to noise above; below it, where it was measured, the gain of each layer in float.

    Colours are names of the page's CSS variables, as in `picture.figure`.
    """
    numbers = {layer.position: place for place, layer in enumerate(marked_layers(layers), 1)}
    heights = [min(layer.snr_db, EQUAL_DB) if math.isfinite(layer.snr_db) else None for layer in layers]
    two = any(layer.restored_db is not None for layer in layers)
    hovers = [_layer_hover(layer) for layer in layers]
    colours = ["var(--bad)" if layer.position in numbers else "var(--bar)" for layer in layers]
    traces = [_bars("signal to noise", heights, colours, hovers, "y")]
    if two:
        gains = [layer.restored_db for layer in layers]
        traces.append(_bars("gain in float", gains, colours, hovers, "y2"))
    labels = [
        _number(at, numbers[layer.position], max(heights[at] or 0.0, 0.0))
        for at, layer in enumerate(layers)
        if layer.position in numbers
    ]
    return {"data": traces, "layout": _layers_layout(layers, two, labels)}


def _bars(
    name: str, heights: Sequence[float | None], colours: list[str], hovers: list[str], axis: str
) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": list(range(1, len(heights) + 1)),
        "y": list(heights),
        "yaxis": axis,
        "hovertext": hovers,
        "hoverinfo": "text",
        "textposition": "none",
        "marker": {"color": colours, "line": {"width": 0}},
    }


def _layer_hover(layer: LayerBlame) -> str:
    lines = [
        f"<b>{escape(short(layer.node), quote=False)}</b>  {escape(layer.op, quote=False)}",
        f"{snr_text(layer.snr_db)} at its output",
        f"adds {percent_text(layer.added_ratio)} of noise itself",
    ]
    if layer.channel_spread is not None:
        lines.append(f"channels' weights differ {number(layer.channel_spread, 1)}-fold")
    if layer.restored_db is not None:
        price = price_text(layer.restored_latency_ratio)
        lines.append(f"in float: outputs {gain_text(layer.restored_db)}, {price}")
        if layer.restored_with:
            lines.append(f"together with {escape(names_text(layer.restored_with), quote=False)}")
    return "<br>".join(lines)


def _number(at: int, place: int, height: float) -> dict[str, Any]:
    return {
        "x": at + 1,
        "y": height,
        "yref": "y",
        "yanchor": "bottom",
        "text": f"<b>{place}</b>",
        "showarrow": False,
        "font": font("var(--bad)", 11),
    }


def _layers_layout(layers: Sequence[LayerBlame], two: bool, labels: list[dict[str, Any]]) -> dict[str, Any]:
    quiet = {"gridcolor": "var(--line)", "zerolinecolor": "var(--faint)", "ticks": "", "nticks": 6, "fixedrange": True}
    tallest = max((min(layer.snr_db, EQUAL_DB) for layer in layers if math.isfinite(layer.snr_db)), default=1.0)
    lowest = min((layer.snr_db for layer in layers if math.isfinite(layer.snr_db)), default=0.0)
    layout: dict[str, Any] = {
        **frame(380 if two else 280),
        "bargap": 0.25 if len(layers) < 120 else 0.0,
        "hovermode": "closest",
        "xaxis": {
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
            "showticklabels": False,
            "fixedrange": True,
            "range": [0.4, len(layers) + 0.6],
            "title": _title("layers, in the order of the graph"),
            "anchor": "y2" if two else "y",
        },
        "yaxis": {
            **quiet,
            "range": [min(0.0, 1.1 * lowest), 1.12 * max(tallest, 1.0)],
            "title": _title("signal to noise, dB"),
            "domain": [0.46, 1] if two else [0, 1],
        },
        "annotations": labels,
    }
    if two:
        layout["yaxis2"] = {**quiet, "nticks": 4, "title": _title("gained, dB"), "domain": [0, 0.36]}
    return layout


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 8, "font": font("var(--soft)", 12)}


def range_figure(histogram: RangeHistogram) -> dict[str, Any]:
    """One activation: how many values fell where (a logarithmic scale), and the range its integers cover."""
    counts = histogram.counts
    width = (histogram.high - histogram.low) / max(len(counts), 1)
    starts = [histogram.low + place * width for place in range(len(counts))]
    inside = [histogram.clip_low <= start + width / 2 <= histogram.clip_high for start in starts]
    bars = {
        "type": "bar",
        "name": histogram.tensor,
        "x": [start + width / 2 for start in starts],
        "width": [width] * len(counts),
        "y": [count or None for count in counts],
        "hovertext": [
            f"{span_text(start, start + width)}<br><b>{count:,}</b> values{'' if kept else ', cut to the range'}"
            for start, count, kept in zip(starts, counts, inside, strict=True)
        ],
        "hoverinfo": "text",
        "textposition": "none",
        "marker": {"color": ["var(--bar)" if kept else "var(--bad)" for kept in inside], "line": {"width": 0}},
    }
    left, right = min(histogram.low, histogram.clip_low), max(histogram.high, histogram.clip_high)
    margin = 0.03 * (right - left)
    top = math.log10(max([*counts, 1])) + 0.25
    layout = {
        **frame(210),
        "margin": {"l": 44, "r": 8, "t": 8, "b": 30},
        "bargap": 0,
        "hovermode": "closest",
        "xaxis": {**_bare(), "range": [left - margin, right + margin], "showgrid": False, "nticks": 7},
        "yaxis": {
            **_bare(),
            "type": "log",
            "range": [math.log10(0.6), top],
            "dtick": 2 if top > 3 else 1,
            "exponentformat": "power",
        },
        "shapes": _covered(histogram),
    }
    return {"data": [bars], "layout": layout}


def _covered(histogram: RangeHistogram) -> list[dict[str, Any]]:
    tall = {"yref": "paper", "y0": 0, "y1": 1}
    low, high = histogram.clip_low, histogram.clip_high
    band = {
        **tall,
        "type": "rect",
        "layer": "below",
        "x0": low,
        "x1": high,
        "fillcolor": "var(--cover)",
        "line": {"width": 0},
    }
    edge = {**tall, "type": "line", "line": {"color": "var(--good)", "width": 1, "dash": "dot"}}
    return [band, {**edge, "x0": low, "x1": low}, {**edge, "x0": high, "x1": high}]


def range_words(histogram: RangeHistogram) -> str:
    """What the picture of a range shows, in a sentence or two."""
    covered = f"{histogram.levels:,} steps from {span_text(histogram.clip_low, histogram.clip_high)}"
    clipped = (
        f"{percent_text(histogram.clipped_ratio)} of the values cut off"
        if histogram.clipped_ratio
        else "nothing cut off"
    )
    largest = f"the largest is {number(histogram.outlier_ratio, 1)} times what 999 of 1,000 stay below"
    return f"{covered}; {clipped}; {largest}."


def _bare() -> dict[str, Any]:
    return {"gridcolor": "var(--line)", "zeroline": False, "ticks": "", "fixedrange": True, "tickfont": {"size": 11}}


def frame(height_px: int) -> dict[str, Any]:
    """What all pictures share."""
    return {
        "height": height_px,
        "margin": {"l": 60, "r": 8, "t": 10, "b": 40},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": font("var(--ink)", 13),
        "showlegend": False,
        "dragmode": False,
        "hoverlabel": {
            "align": "left",
            "bgcolor": "var(--card)",
            "bordercolor": "var(--line)",
            "font": font("var(--ink)", 13),
        },
    }


def font(colour: str, size_px: int) -> dict[str, Any]:
    """Of a text in a picture."""
    return {"family": "system-ui, sans-serif", "size": size_px, "color": colour}


def snr_text(snr_db: float) -> str:
    """A ratio in dB, or that there is no noise to speak of."""
    return f"{number(snr_db, 1)} dB" if snr_db < EQUAL_DB or math.isnan(snr_db) else "float rounding only"


def gain_text(gain_db: float) -> str:
    """How much truer, in dB."""
    return f"{number(abs(gain_db), 1)} dB {'truer' if gain_db >= 0 else 'less true'}"


def price_text(ratio: float | None) -> str:
    """What a layer in float costs in latency."""
    if ratio is None or not math.isfinite(ratio):
        return "price not measured"
    percent = 100 * (ratio - 1)
    return "at no more latency" if percent < 0.5 else f"{number(percent, 1)} % slower"


def percent_text(ratio: float) -> str:
    """A small share with two digits that count."""
    if not math.isfinite(ratio) or ratio <= 0:
        return "0 %"
    digits = max(0, 1 - math.floor(math.log10(100 * ratio)))
    return f"{number(100 * ratio, min(digits, 6))} %"


def names_text(names: Sequence[str]) -> str:
    """Some names; the third and on are counted."""
    return counted([short(name) for name in names])


def short(name: str) -> str:
    """A name that fits a label; of a long path the end tells more than the beginning."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
