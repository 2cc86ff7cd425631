"""The picture of the candidates: accuracy drop over latency, the area of a dot its bytes.

Where bytes are what is minimised they are the axis, on a logarithmic scale, and the area is the latency: the
rate-accuracy curve of the search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from gossamer.nouns.facts import Facts
from gossamer.nouns.record import Candidate, Record
from gossamer.report.words import (
    drop_text,
    interval_text,
    is_share,
    is_untouched,
    latency_text,
    number,
    size_text,
    spread_text,
)

ORIGINAL_DIAMETER_PX = 38.0
LABEL_LENGTH = 44
PICTURE_PX = (830.0, 385.0)  # what the axes enclose on a wide page
CHARACTER_PX = (6.7, 16.0)
NUMBER_SHARE = (0.02, 0.04)  # width and height of a number on a dot, of the picture's


class Dot(NamedTuple):
    """A candidate's place. `number` is its row in the table below the picture.

    `x_percent` is its latency in percent of the original's, from the ratio measured in turns: milliseconds of two
    candidates come from different moments of a shared machine. Or its bytes in percent of the original's.
    """

    number: int
    name: str
    x_percent: float
    y_drop: float
    low: float
    high: float
    diameter_px: float
    kind: str  # "chosen", "met", "missed"
    hover: str


class Frame(NamedTuple):
    """What the axes show. Farther dots are drawn at the edge, as triangles. `left_percent` is 0 on a linear scale."""

    left_percent: float
    right_percent: float
    bottom: float
    top: float

    def share(self, x_percent: float) -> float:
        """How far right something lies, from 0 to 1."""
        if not self.left_percent:
            return x_percent / self.right_percent
        return math.log(x_percent / self.left_percent) / math.log(self.right_percent / self.left_percent)

    def on_axis(self, x_percent: float) -> float:
        """Where Plotly wants notes to stand."""
        return math.log10(x_percent) if self.left_percent else x_percent


def figure(record: Record, ranked: Sequence[Candidate]) -> dict[str, Any]:
    """Data and layout for Plotly; colours are names of the page's CSS variables.

    Candidates that failed have no place; `ranked` gives the numbers on the dots.
    """
    factor = 100.0 if is_share(record.accuracy.metric) else 1.0
    dots = [dot for dot in (_dot(place, one, record, factor) for place, one in enumerate(ranked, 1)) if dot]
    frame = _frame(dots, record, factor)
    traces = [_intervals(dots, frame), _front(dots, frame), _original(record)]
    for kind in ("met", "missed", "chosen"):
        traces.append(_trace(kind, [dot for dot in dots if dot.kind == kind], frame, _numbered(dots, frame)))
    return {"data": [trace for trace in traces if trace["x"]], "layout": _layout(record, dots, frame, factor)}


def _dot(place: int, candidate: Candidate, record: Record, factor: float) -> Dot | None:
    facts = candidate.facts
    if facts is None or not candidate.plan.steps:  # the ring stands for the original
        return None
    if not (
        math.isfinite(facts.latency_ms.ratio) and facts.latency_ms.ratio > 0 and math.isfinite(facts.accuracy.drop)
    ):
        return None
    kind = "chosen" if candidate.plan.name == record.chosen else "met" if candidate.met else "missed"
    drop = facts.accuracy.drop
    low, high = (bound if math.isfinite(bound) else drop for bound in (facts.accuracy.low, facts.accuracy.high))
    speed, bytes_percent = facts.latency_ms.ratio, 100 * facts.bytes.result / max(record.bytes.original, 1)
    x_percent, area = (100 / speed, bytes_percent / 100) if record.minimize == "latency" else (bytes_percent, 1 / speed)
    return Dot(
        number=place,
        name=candidate.plan.name,
        x_percent=x_percent,
        y_drop=factor * drop,
        low=factor * low,
        high=factor * high,
        diameter_px=min(max(_original_px(record) * math.sqrt(area), 9.0), 80.0),
        kind=kind,
        hover=_hover(place, candidate, facts, kind),
    )


def _original_px(record: Record) -> float:
    """Diameter of the original's ring."""
    return ORIGINAL_DIAMETER_PX if record.minimize == "latency" else ORIGINAL_DIAMETER_PX / 2


def _hover(place: int, candidate: Candidate, facts: Facts, kind: str) -> str:
    latency, size, accuracy = facts.latency_ms, facts.bytes, facts.accuracy
    unit = " points" if is_share(accuracy.metric) else ""
    verdict = "meets the floor" if candidate.met else "misses the floor"
    lines = [
        f"<b>{place}  {escape(candidate.plan.name, quote=False)}</b>",
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
    farthest = max([100.0, *(dot.x_percent for dot in dots)])
    if record.minimize == "latency":
        return Frame(0.0, 1.12 * min(farthest, 220.0), bottom, top)
    nearest = min([100.0, *(dot.x_percent for dot in dots)])
    return Frame(max(nearest, 0.01) / 1.3, 1.3 * farthest, bottom, top)


def _pinned(dot: Dot, frame: Frame) -> tuple[float, float, str]:
    """Where a dot is drawn, and as what."""
    if dot.y_drop > frame.top:
        return min(dot.x_percent, frame.right_percent), frame.top, "triangle-up"
    if dot.x_percent > frame.right_percent:
        return frame.right_percent, dot.y_drop, "triangle-right"
    return dot.x_percent, dot.y_drop, "circle"


def _intervals(dots: Sequence[Dot], frame: Frame) -> dict[str, Any]:
    """The 95 % intervals, under all dots; a dot at the edge has none, as it does not stand at its value."""
    inside = [dot for dot in dots if _pinned(dot, frame)[2] == "circle"]
    return {
        "type": "scatter",
        "mode": "markers",
        "hoverinfo": "skip",
        "x": [dot.x_percent for dot in inside],
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


def _trace(kind: str, dots: Sequence[Dot], frame: Frame, numbered: set[int]) -> dict[str, Any]:
    """The dots of one kind."""
    colour = {"met": "var(--good)", "missed": "var(--faint)", "chosen": "var(--accent)"}[kind]
    placed = [(_pinned(dot, frame), dot) for dot in dots]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": kind,
        "x": [place[0] for place, _ in placed],
        "y": [place[1] for place, _ in placed],
        "text": [str(dot.number) if dot.number in numbered else "" for _, dot in placed],
        "textfont": _font("var(--page)", 11),
        "hovertext": [dot.hover for _, dot in placed],
        "hoverinfo": "text",
        "cliponaxis": False,
        "marker": {
            "size": [dot.diameter_px for _, dot in placed],
            "symbol": [place[2] for place, _ in placed],
            "color": colour,
            "opacity": 0.85,
            "line": {"color": "var(--page)", "width": 1.5},
        },
    }


def _numbered(dots: Sequence[Dot], frame: Frame) -> set[int]:
    """The numbers that can be read: of dots on top of each other only the first in rank has one, and the hover."""
    taken: list[tuple[float, float]] = []
    numbers = set()
    for dot in sorted(dots, key=lambda dot: dot.number):
        x_percent, y_drop, _ = _pinned(dot, frame)
        x, y = frame.share(x_percent), y_drop / (frame.top - frame.bottom)
        if all(abs(x - other[0]) > NUMBER_SHARE[0] or abs(y - other[1]) > NUMBER_SHARE[1] for other in taken):
            taken.append((x, y))
            numbers.add(dot.number)
    return numbers


def _original(record: Record) -> dict[str, Any]:
    """The ring at 100 %, which is where the original is by definition."""
    chosen = is_untouched(record)
    text = f"<b>original{', chosen' if chosen else ''}</b>"
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "original",
        "x": [100],
        "y": [0],
        "hovertext": [f"{text}<br>{latency_text(record.latency_ms.original)}<br>{size_text(record.bytes.original)}"],
        "hoverinfo": "text",
        "marker": {
            "size": _original_px(record),
            "color": "rgba(0,0,0,0)",
            "line": {"color": "var(--accent)" if chosen else "var(--ink)", "width": 3 if chosen else 1.5},
        },
    }


def _front(dots: Sequence[Dot], frame: Frame) -> dict[str, Any]:
    """The steps along which speed or bytes can only be had for accuracy (the Pareto front), the original included."""
    best: list[tuple[float, float]] = []
    for x, y in sorted([(dot.x_percent, dot.y_drop) for dot in dots] + [(100.0, 0.0)]):
        if not best or y < best[-1][1]:
            best.append((x, y))
    seen = [(x, y) for x, y in best if y <= frame.top and x <= frame.right_percent]
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
    axis = {"gridcolor": "var(--line)", "zeroline": False, "ticks": ""}
    height = frame.top - frame.bottom
    return {
        "height": 460,
        "margin": {"l": 60, "r": 8, "t": 8, "b": 52},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": _font("var(--ink)", 13),
        "hoverlabel": {
            "align": "left",
            "bgcolor": "var(--card)",
            "bordercolor": "var(--line)",
            "font": _font("var(--ink)", 13),
        },
        "showlegend": False,  # the page has one that wraps better
        "xaxis": {
            **axis,
            **_scale(frame),
            "title": {"text": f"{'bytes' if frame.left_percent else 'latency'}, % of the original's", "standoff": 10},
        },
        "yaxis": {
            **axis,
            "range": [frame.bottom, frame.top + 0.06 * height],
            "title": {"text": escape(f"accuracy drop, {unit}"), "standoff": 10},
        },
        "shapes": _floor(frame.bottom, factor * record.max_drop),
        "annotations": _labels(record, dots, frame, factor),
    }


def _scale(frame: Frame) -> dict[str, Any]:
    if not frame.left_percent:
        return {"range": [0, frame.right_percent]}
    marks = [by * 10.0**power for power in range(-2, 4) for by in (1, 2, 5)]
    return {
        "type": "log",
        "range": [frame.on_axis(frame.left_percent), frame.on_axis(frame.right_percent)],
        "tickvals": marks,
        "ticktext": [f"{mark:g}" for mark in marks],
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
    original = "original, chosen" if is_untouched(record) else "original"
    labels.append(_label(original, 100.0, 0.0, _original_px(record) / 2 + 10, frame))
    for dot in dots:
        if dot.kind == "chosen":
            labels.append(_chosen_label(dot, dots, frame))
    return labels


def _chosen_label(dot: Dot, dots: Sequence[Dot], frame: Frame) -> dict[str, Any]:
    """The chosen one's name, on that side of its dot where it covers the fewest others."""
    text = _short(dot.name)
    width, height = CHARACTER_PX[0] * len(text) / PICTURE_PX[0], CHARACTER_PX[1] / PICTURE_PX[1]
    x, y = _place(dot, frame)
    away_x, away_y = (dot.diameter_px / 2 + 9) / PICTURE_PX[0], (dot.diameter_px / 2 + 10) / PICTURE_PX[1]
    sides = {
        "below": (x, y - away_y, "center"),
        "above": (x, y + away_y, "center"),
        "right": (x + away_x + width / 2, y, "left"),
        "left": (x - away_x - width / 2, y, "right"),
    }

    def covered(side: str) -> int:
        middle_x, middle_y, _ = sides[side]
        if not 0.12 <= middle_x - width / 2 <= middle_x + width / 2 <= 1:  # narrower on paper
            return len(dots) + 1
        near = [(abs(a - middle_x), abs(b - middle_y)) for a, b in (_place(other, frame) for other in dots)]
        return sum(a < width / 2 + 0.01 and b < height / 2 + 0.02 for a, b in near)

    side = min(sides, key=covered)
    x_percent, y_drop, _ = _pinned(dot, frame)
    label = _label(text, x_percent, y_drop, (sides[side][1] - y) * PICTURE_PX[1], frame)
    if side in ("left", "right"):
        label |= {"xanchor": sides[side][2], "xshift": (1 if side == "right" else -1) * (dot.diameter_px / 2 + 5)}
    return {**label, "name": "chosen"}  # a narrow page says "chosen" instead


def _place(dot: Dot, frame: Frame) -> tuple[float, float]:
    """Where a dot is drawn, in shares of the picture."""
    x_percent, y_drop, _ = _pinned(dot, frame)
    return frame.share(x_percent), (y_drop - frame.bottom) / (frame.top - frame.bottom)


def _label(text: str, x_percent: float, y_drop: float, shift_px: float, frame: Frame) -> dict[str, Any]:
    share = frame.share(x_percent)
    anchor = "left" if share < 0.3 else "right" if share > 0.75 else "center"
    place: dict[str, Any] = {"x": frame.on_axis(x_percent), "y": y_drop}
    place |= {"xanchor": anchor, "xshift": {"left": 6, "right": -6, "center": 0}[anchor]}
    return {
        **place,
        "yshift": shift_px,
        "text": f"<b>{escape(text, quote=False)}</b>",
        "showarrow": False,
        "font": _font("var(--ink)", 12),
    }


def _font(colour: str, size_px: int) -> dict[str, Any]:
    return {"family": "system-ui, sans-serif", "size": size_px, "color": colour}


def _short(name: str) -> str:
    return name if len(name) <= LABEL_LENGTH else name[: LABEL_LENGTH - 1] + "…"
