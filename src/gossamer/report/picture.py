"""The picture of the candidates: accuracy drop over latency, the area of a dot its size on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from gossamer.nouns.facts import Facts
from gossamer.nouns.record import Candidate, Record
from gossamer.report.words import drop_text, interval_text, is_share, latency_text, number, size_text, spread_text

ORIGINAL_DIAMETER_PX = 38.0
LABEL_LENGTH = 44


class Dot(NamedTuple):
    """A candidate's place. `number` is its row in the table below the picture."""

    number: int
    name: str
    x_ms: float
    y_drop: float
    low: float
    high: float
    diameter_px: float
    kind: str  # "chosen", "met", "missed"
    hover: str


class Frame(NamedTuple):
    """What the axes show. Farther dots are drawn at the edge, as triangles."""

    right_ms: float
    bottom: float
    top: float


def figure(record: Record, ranked: Sequence[Candidate]) -> dict[str, Any]:
    """Data and layout for Plotly; colours are names of the page's CSS variables.

    Candidates that failed have no place; `ranked` gives the numbers on the dots.
    """
    factor = 100.0 if is_share(record.accuracy.metric) else 1.0
    dots = [dot for dot in (_dot(place, one, record, factor) for place, one in enumerate(ranked, 1)) if dot]
    frame = _frame(dots, record, factor)
    traces = [_intervals(dots, frame), _front(dots, record, frame), _original(record)]
    traces += [_trace(kind, [dot for dot in dots if dot.kind == kind], frame) for kind in ("met", "missed", "chosen")]
    return {"data": [trace for trace in traces if trace["x"]], "layout": _layout(record, dots, frame, factor)}


def _dot(place: int, candidate: Candidate, record: Record, factor: float) -> Dot | None:
    facts = candidate.facts
    if facts is None or not (math.isfinite(facts.latency_ms.result) and math.isfinite(facts.accuracy.drop)):
        return None
    kind = "chosen" if candidate.plan.name == record.chosen else "met" if candidate.met else "missed"
    drop = facts.accuracy.drop
    low, high = (bound if math.isfinite(bound) else drop for bound in (facts.accuracy.low, facts.accuracy.high))
    diameter_px = ORIGINAL_DIAMETER_PX * math.sqrt(facts.bytes.result / max(record.bytes.original, 1))
    return Dot(
        number=place,
        name=candidate.plan.name,
        x_ms=facts.latency_ms.result,
        y_drop=factor * drop,
        low=factor * low,
        high=factor * high,
        diameter_px=min(max(diameter_px, 9.0), 80.0),
        kind=kind,
        hover=_hover(place, candidate, facts, kind),
    )


def _hover(place: int, candidate: Candidate, facts: Facts, kind: str) -> str:
    latency, size, accuracy = facts.latency_ms, facts.bytes, facts.accuracy
    unit = " points" if is_share(accuracy.metric) else ""
    verdict = "meets the floor" if candidate.met else "misses the floor"
    lines = [
        f"<b>{place}  {escape(candidate.plan.name)}</b>",
        f"chosen, {verdict}" if kind == "chosen" else verdict,
        f"drop {drop_text(accuracy.metric, accuracy.drop)}{unit}, 95 % interval {interval_text(accuracy)}",
        f"{latency_text(latency.result)}, {number(latency.ratio, 2)}× the original's speed, "
        f"10–90 %: {spread_text(latency)}",
        f"{size_text(size.result)} ({size.result:,} bytes)",
    ]
    return "<br>".join(lines)


def _frame(dots: Sequence[Dot], record: Record, factor: float) -> Frame:
    """Axes that show the floor and what lies around it; a candidate that collapsed must not flatten the rest."""
    floor = factor * record.max_drop
    cap = max(2.5 * floor, 0.02 * factor)
    top = min(cap, max([1.3 * floor, 0.005 * factor, *(1.1 * dot.y_drop for dot in dots)]))
    lowest = min([0.0, *(dot.low for dot in dots)])
    bottom = max(1.05 * lowest, -0.6 * top) - 0.14 * top
    original_ms = record.latency_ms.original if math.isfinite(record.latency_ms.original) else 0.0
    slowest_ms = max([original_ms, *(dot.x_ms for dot in dots)], default=1.0) or 1.0
    return Frame(1.12 * min(slowest_ms, 2.2 * original_ms or slowest_ms), bottom, top)


def _pinned(dot: Dot, frame: Frame) -> tuple[float, float, str]:
    """Where a dot is drawn, and as what."""
    if dot.y_drop > frame.top:
        return min(dot.x_ms, frame.right_ms), frame.top, "triangle-up"
    if dot.x_ms > frame.right_ms:
        return frame.right_ms, dot.y_drop, "triangle-right"
    return dot.x_ms, dot.y_drop, "circle"


def _intervals(dots: Sequence[Dot], frame: Frame) -> dict[str, Any]:
    """The 95 % intervals, under all dots; a dot at the edge has none, as it does not stand at its value."""
    inside = [dot for dot in dots if _pinned(dot, frame)[2] == "circle"]
    return {
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "hoverinfo": "skip",
        "x": [dot.x_ms for dot in inside],
        "y": [dot.y_drop for dot in inside],
        "marker": {"size": 1, "color": "var(--faint)"},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [max(dot.high - dot.y_drop, 0) for dot in inside],
            "arrayminus": [max(dot.y_drop - dot.low, 0) for dot in inside],
            "color": "var(--faint)",
            "thickness": 1,
            "width": 0,
        },
    }


def _trace(kind: str, dots: Sequence[Dot], frame: Frame) -> dict[str, Any]:
    """The dots of one kind. Triangles come last: the legend shows the first."""
    name, colour = {
        "met": ("meets the floor", "var(--good)"),
        "missed": ("misses the floor", "var(--faint)"),
        "chosen": ("chosen", "var(--accent)"),
    }[kind]
    placed = sorted(((_pinned(dot, frame), dot) for dot in dots), key=lambda pair: pair[0][2])
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [place[0] for place, _ in placed],
        "y": [place[1] for place, _ in placed],
        "text": [str(dot.number) for _, dot in placed],
        "textfont": _font("var(--page)", 11),
        "hovertext": [dot.hover for _, dot in placed],
        "hoverinfo": "text",
        "cliponaxis": False,
        "marker": {
            "size": [dot.diameter_px for _, dot in placed],
            "symbol": [place[2] for place, _ in placed],
            "color": colour,
            "opacity": 1,
            "line": {"color": "var(--page)", "width": 1.5},
        },
    }


def _original(record: Record) -> dict[str, Any]:
    latency_ms = record.latency_ms.original
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "original",
        "x": [latency_ms] if math.isfinite(latency_ms) else [],
        "y": [0],
        "hovertext": [f"<b>original</b><br>{latency_text(latency_ms)}<br>{size_text(record.bytes.original)}"],
        "hoverinfo": "text",
        "marker": {
            "size": ORIGINAL_DIAMETER_PX,
            "color": "rgba(0,0,0,0)",
            "line": {"color": "var(--ink)", "width": 1.5},
        },
    }


def _front(dots: Sequence[Dot], record: Record, frame: Frame) -> dict[str, Any]:
    """The steps along which speed can only be had for accuracy (the Pareto front), the original included."""
    points = sorted([(dot.x_ms, dot.y_drop) for dot in dots] + [(record.latency_ms.original, 0.0)])
    best: list[tuple[float, float]] = []
    for x, y in points:
        if math.isfinite(x) and (not best or y < best[-1][1]):
            best.append((x, y))
    seen = [(x, y) for x, y in best if y <= frame.top and x <= frame.right_ms]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "best trade-offs",
        "x": [x for x, _ in seen],
        "y": [y for _, y in seen],
        "line": {"shape": "hv", "dash": "dot", "width": 1.5, "color": "var(--soft)"},
        "hoverinfo": "skip",
    }


def _layout(record: Record, dots: Sequence[Dot], frame: Frame, factor: float) -> dict[str, Any]:
    unit = "points" if factor == 100 else record.accuracy.metric
    axis = {"gridcolor": "var(--line)", "zeroline": False, "ticks": "", "automargin": True}
    height = frame.top - frame.bottom
    return {
        "height": 460,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": _font("var(--ink)", 13),
        "hoverlabel": {
            "align": "left",
            "bgcolor": "var(--card)",
            "bordercolor": "var(--line)",
            "font": _font("var(--ink)", 13),
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
        "xaxis": {**axis, "range": [0, frame.right_ms], "title": {"text": "latency of one call, ms", "standoff": 10}},
        "yaxis": {
            **axis,
            "range": [frame.bottom, frame.top + 0.06 * height],
            "title": {"text": escape(f"accuracy drop, {unit}"), "standoff": 10},
        },
        "shapes": _floor(frame.bottom, factor * record.max_drop),
        "annotations": _labels(record, dots, frame, factor),
    }


def _floor(bottom: float, floor: float) -> list[dict[str, Any]]:
    """The floor as a line, and what meets it as a band."""
    across = {"xref": "paper", "x0": 0, "x1": 1}
    band = {**across, "type": "rect", "layer": "below", "y0": bottom, "y1": floor, "line": {"width": 0}}
    line = {**across, "type": "line", "y0": floor, "y1": floor, "line": {"color": "var(--bad)", "width": 1.5}}
    return [{**band, "fillcolor": "var(--wash)"}, line]


def _labels(record: Record, dots: Sequence[Dot], frame: Frame, factor: float) -> list[dict[str, Any]]:
    """Names at the floor, the original and the chosen candidate; the others have their number."""
    lost = f"{drop_text(record.accuracy.metric, record.max_drop)} {'points ' if factor == 100 else ''}lost"
    floor = {"x": 1, "xref": "paper", "xanchor": "right", "y": factor * record.max_drop, "yanchor": "bottom"}
    labels = [{**floor, "text": f"floor: {lost}", "showarrow": False, "font": _font("var(--bad)", 12)}]
    if math.isfinite(record.latency_ms.original):
        labels.append(_label("original", record.latency_ms.original, 0.0, -ORIGINAL_DIAMETER_PX / 2 - 9, frame))
    for dot in dots:
        if dot.kind == "chosen":
            x_ms, y_drop, _ = _pinned(dot, frame)
            labels.append(_label(_short(dot.name), x_ms, y_drop, dot.diameter_px / 2 + 10, frame))
    return labels


def _label(text: str, x_ms: float, y_drop: float, shift_px: float, frame: Frame) -> dict[str, Any]:
    share = x_ms / frame.right_ms
    anchor = "left" if share < 0.3 else "right" if share > 0.75 else "center"
    place = {"x": x_ms, "xanchor": anchor, "xshift": {"left": 6, "right": -6, "center": 0}[anchor], "y": y_drop}
    return {
        **place,
        "yshift": shift_px,
        "text": f"<b>{escape(text)}</b>",
        "showarrow": False,
        "font": _font("var(--ink)", 12),
    }


def _font(colour: str, size_px: int) -> dict[str, Any]:
    return {"family": "system-ui, sans-serif", "size": size_px, "color": colour}


def _short(name: str) -> str:
    return name if len(name) <= LABEL_LENGTH else name[: LABEL_LENGTH - 1] + "…"
