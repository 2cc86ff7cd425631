"""The report as one HTML file that opens offline: verdict, figures, findings, trials, steps, bits, layers, where."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from gossamer.nouns.diagnosis import Diagnosis
from gossamer.nouns.facts import Energy
from gossamer.nouns.model import write_file
from gossamer.nouns.prediction import Forecast
from gossamer.nouns.record import Candidate, Record
from gossamer.report import charts, explanation, words
from gossamer.report.forecast import bits_figure, noise_figure
from gossamer.report.picture import figure
from gossamer.report.predictions import HEADER, constrained, prediction_rows, sentences

PAGE = Path(__file__).with_name("page.html")


def write_report(record: Record, path: Path) -> None:
    """Write the report of a record.

    Everything the page needs is inside it, the drawing script too (about 5 MB). Names come from files and are escaped.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    from plotly.offline import get_plotlyjs  # only needed here, and slow to load

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(PAGE.read_text(encoding="utf-8"))
    ranked, diagnosis = rank(record), record.diagnosis or Diagnosis()
    forecast = record.forecast if record.forecast and constrained(record.forecast) else None
    figures = _figures(record, ranked, diagnosis, forecast)
    text = page.render(
        record=record,
        headline=words.headline(record),
        subline=words.subline(record),
        rows=_rows(record),
        ranked=[_tried(place, one, record) for place, one in enumerate(ranked, 1)],
        steps=_steps(record),
        findings=[explanation.told(one) for one in diagnosis.findings],
        effects=explanation.effects(diagnosis.steps),
        layers=explanation.worst_layers(diagnosis.layers),
        layer_count=len(diagnosis.layers),
        ranges=explanation.ranges(diagnosis.ranges),
        forecast=_forecast(forecast, figures) if forecast else None,
        notes=record.notes,
        optimistic=[words.OPTIMISTIC.get(figure, figure) for figure in record.splits.optimistic],
        metric=words.metric_words(record.accuracy, record.labelled),
        metric_name=words.metric_name(record.accuracy.metric),
        unit="points" if words.is_share(record.accuracy.metric) else "",
        peak=words.size_text(record.peak_rss_bytes),
        seconds=words.number(record.seconds, 1),
        figures=_in_script(figures) if figures else "",
        plotly=get_plotlyjs() if figures else "",
    )
    write_file(path, text.encode("utf-8", "replace"))


def rank(record: Record) -> list[Candidate]:
    """The candidates as the table lists them: the chosen one, those that meet the floor, that miss it, that failed."""

    def place(one: Candidate) -> tuple[bool, bool, bool, float]:
        ratio = one.facts.latency_ms.ratio if one.facts else math.nan
        return (
            one.plan.name != record.chosen,
            one.facts is None,
            not one.met,
            -ratio if math.isfinite(ratio) else math.inf,
        )

    return sorted(record.candidates, key=place)


def _rows(record: Record) -> list[dict[str, Any]]:
    """Before and after: a row for bytes, latency, accuracy. `bars` are widths in percent of the wider of the two."""
    size, latency, accuracy = record.bytes, record.latency_ms, record.accuracy
    spread = f"10–90 %: {words.spread_text(latency)}"
    equal = math.isnan(accuracy.snr_db) or accuracy.snr_db >= words.EQUAL_DB
    ratio_db = "" if equal else f", {words.number(accuracy.snr_db, 1)} dB"
    return [
        {
            "name": "Latency",
            "original": words.latency_text(latency.original),
            "result": words.latency_text(latency.result),
            "bars": _bars(latency.original, latency.result),
            "change": words.speed_words(latency),
            "detail": f"{spread}; {latency.threads} thread{'s' if latency.threads != 1 else ''}, {latency.runtime}",
        },
        {
            "name": "Download" if record.minimize == "download" else "Size on disk",
            "original": words.size_text(size.original),
            "result": words.size_text(size.result),
            "bars": _bars(size.original, size.result),
            "change": words.size_words(size),
            "detail": f"{size.original:,} to {size.result:,} bytes",
        },
        {
            "name": words.metric_name(accuracy.metric).capitalize()
            if words.is_share(accuracy.metric)
            else accuracy.metric,
            "original": words.score_text(accuracy.metric, accuracy.original),
            "result": words.score_text(accuracy.metric, accuracy.result),
            "bars": _bars(accuracy.original, accuracy.result),
            "change": words.drop_words(accuracy),
            "detail": f"95 % interval of the drop: {words.interval_text(accuracy)}; {accuracy.n:,} samples{ratio_db}",
        },
        *_energy_rows(record.energy),
    ]


def _energy_rows(energy: Energy | None) -> list[dict[str, Any]]:
    if energy is None:
        return []
    return [
        {
            "name": "Energy of one call",
            "original": words.energy_text(energy.original_mj),
            "result": words.energy_text(energy.result_mj),
            "bars": _bars(energy.original_mj, energy.result_mj),
            "change": words.energy_words(energy),
            "detail": energy.source,
        }
    ]


def _bars(original: float, result: float) -> tuple[float, float]:
    wider = max((value for value in (original, result) if math.isfinite(value) and value > 0), default=1.0)
    first, second = (max(0.0, value / wider) if math.isfinite(value) else 0.0 for value in (original, result))
    return round(100 * first, 2), round(100 * second, 2)


def _tried(place: int, one: Candidate, record: Record) -> dict[str, Any]:
    chosen = one.plan.name == record.chosen
    row: dict[str, Any] = {
        "number": place,
        "name": one.plan.name,
        "chosen": chosen,
        "steps": "; ".join(words.plan_words(one.plan)),
        "notes": one.notes,
        "seconds": words.number(one.seconds, 1),
        "error": one.error or ("" if one.facts else "no reason was recorded"),
        "verdict": "failed" if one.facts is None else "meets the floor" if one.met else "misses the floor",
        "facts": None,
    }
    if one.facts is not None:
        accuracy, latency = one.facts.accuracy, one.facts.latency_ms
        row["facts"] = {
            "drop": words.drop_text(accuracy.metric, accuracy.drop),
            "interval": words.interval_text(accuracy),
            "latency": words.latency_text(latency.result),
            "ratio": f"{words.number(latency.ratio, 2)}×",
            "spread": words.spread_text(latency),
            "size": words.size_text(one.facts.bytes.result),
        }
    return row


def _steps(record: Record) -> list[str]:
    for one in record.candidates:
        if one.plan.name == record.chosen:
            return words.plan_words(one.plan)
    return [f"{record.chosen or 'nothing'}: not among the candidates that were tried"]


def _forecast(forecast: Forecast, figures: dict[str, Any]) -> dict[str, Any]:
    """What the page says of the weights' new forms."""
    return {
        "sentences": sentences(forecast),
        "header": [name.capitalize() for name in HEADER],
        "rows": prediction_rows(forecast.predictions),
        "left": any(not one.constraint for one in forecast.predictions),
        "measured": "noise" in figures,
    }


def _figures(
    record: Record, ranked: Sequence[Candidate], diagnosis: Diagnosis, forecast: Forecast | None
) -> dict[str, Any]:
    """The pictures by the id of their place in the page."""
    figures = {"picture": figure(record, ranked)} if ranked else {}
    if forecast is not None:
        figures["bits"] = bits_figure(forecast)
        noise = noise_figure(forecast)
        figures |= {"noise": noise} if noise else {}
    if diagnosis.layers:
        figures["layers"] = charts.layers_figure(diagnosis.layers)
    ranges = {f"range-{place}": charts.range_figure(one) for place, one in enumerate(diagnosis.ranges, 1)}
    return figures | ranges


def _in_script(value: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: no `<` that could end it, no line separators."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: both become null, which is drawn as nothing."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
