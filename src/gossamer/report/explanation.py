"""A diagnosis as rows of the page: findings, what each step did, the worst layers, captions of their ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gossamer.nouns.diagnosis import Finding, LayerBlame, RangeHistogram, StepEffect
from gossamer.report import charts, words

NOISE_PERCENT = 4.0  # of latency: smaller changes are a busy machine's


def told(finding: Finding) -> dict[str, list[tuple[bool, str]]]:
    """Both texts in pieces; of a pair the first says whether it stood between backticks."""
    return {"text": _pieces(finding.text), "remedy": _pieces(finding.remedy)}


def _pieces(text: str) -> list[tuple[bool, str]]:
    return [(place % 2 == 1, piece) for place, piece in enumerate(text.split("`")) if piece]


def effects(steps: Sequence[StepEffect]) -> list[dict[str, Any]]:
    """A row for each step: where it left latency, size and signal to noise, and what it changed of them."""
    rows = []
    latency, size, snr_db = 1.0, 1.0, math.inf
    ratios = [ratio for one in steps for ratio in (one.latency_ratio, one.bytes_ratio)]
    widest = max([1.0, *(ratio for ratio in ratios if math.isfinite(ratio))])
    for one in steps:
        noisy = one.snr_db < charts.EQUAL_DB
        gained = noisy and snr_db < charts.EQUAL_DB and abs(one.snr_db - snr_db) >= 0.05
        rows.append(
            {
                "step": one.step,
                "latency": _effect(one.latency_ratio, latency, widest, NOISE_PERCENT),
                "size": _effect(one.bytes_ratio, size, widest, 0.5),
                "snr": charts.snr_text(one.snr_db),
                "gain": _signed(one.snr_db - snr_db, "dB", 1) if gained else None,
                "snr_bar": 0 if math.isnan(one.snr_db) else round(min(max(one.snr_db, 0.0), charts.EQUAL_DB), 1),
            }
        )
        latency, size, snr_db = one.latency_ratio, one.bytes_ratio, one.snr_db
    return rows


def _effect(ratio: float, before: float, widest: float, least: float) -> dict[str, Any]:
    """A figure and its bar: `moved` percent of its length were saved, or lost. Changes below `least` are none."""
    known = math.isfinite(ratio)
    change = 100 * (ratio - before) if known and math.isfinite(before) else 0.0
    change = change if abs(change) >= least else 0.0
    return {
        "percent": f"{words.number(100 * ratio, 0)} %" if known else words.UNKNOWN,
        "change": _signed(change, "%", 0) if change else None,
        "better": change < 0,
        "bar": round(100 * (min(ratio, before) if change else ratio) / widest, 2) if known else 0,
        "moved": round(abs(change) / widest, 2),
    }


def _signed(value: float, unit: str, digits: int) -> str:
    text = words.number(value, digits)
    return f"{'+' if value > 0 and not text.startswith('−') else ''}{text} {unit}"


def worst_layers(layers: tuple[LayerBlame, ...]) -> list[dict[str, Any]]:
    """A row for each layer that has a number in the picture."""
    return [
        {
            "number": place,
            "name": one.node,
            "op": one.op,
            "snr": charts.snr_text(one.snr_db),
            "added": charts.percent_text(one.added_ratio),
            "gain": None if one.restored_db is None else charts.gain_text(one.restored_db),
            "price": charts.price_text(one.restored_latency_ratio),
            "beside": charts.names_text(one.restored_with),
        }
        for place, one in enumerate(charts.marked_layers(layers), 1)
    ]


def ranges(histograms: Sequence[RangeHistogram]) -> list[dict[str, str]]:
    """Captions, and the ids of the pictures they stand under."""
    return [
        {"id": f"range-{place}", "tensor": one.tensor, "layer": one.layer, "words": charts.range_words(one)}
        for place, one in enumerate(histograms, 1)
    ]
