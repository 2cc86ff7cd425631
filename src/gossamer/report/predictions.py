"""Predicted against measured loss, layer by layer and for the whole: a table, sentences, and the rank correlation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from gossamer.nouns.prediction import Forecast, Prediction
from gossamer.report.words import number, size_text

HEADER = ("layer", "constraint", "size", "predicted", "measured")
LONGEST_NAME = 40
UNKNOWN = "—"
GRID = re.compile(r"(?:sparse:[^+]*\+)?grid:(\d+)")
TABLE = re.compile(r"(?:sparse:[^+]*\+)?codebook:(\d+)(?!.*dimension)")


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation (1904), equal values sharing their mean rank; None with fewer than three pairs, or
    where all values of one side are equal."""
    if len(first) != len(second) or len(first) < 3:
        return None
    a, b = (_ranks(np.asarray(values, np.float64)) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip(a @ b / spread, -1, 1)) if spread > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[place])


def prediction_rows(predictions: Sequence[Prediction]) -> list[tuple[str, ...]]:
    """A row of text for each constrained layer, the loudest first: name, constraint, bytes, predicted and measured.

    Both are noise over signal in percent: of the network's outputs where that was predicted, else of the layer's.
    """
    shown = [one for one in predictions if one.constraint]
    shown.sort(key=lambda one: _pair(one)[0], reverse=True)
    return [
        (_short(one.layer), one.constraint, size_text(one.stored_bytes), *map(noise_text, _pair(one))) for one in shown
    ]


def prediction_text(predictions: Sequence[Prediction], whole: tuple[float, float] | None = None) -> str:
    """The table, then a line on how far predictions can be trusted; "" without any.

    Args:
        whole: predicted and measured noise over signal of the network's outputs under the whole plan.
    """
    rows = prediction_rows(predictions)
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in (HEADER, *rows)) for column in range(len(HEADER))]
    lines = [_line(row, widths) for row in (HEADER, *rows)]
    return "\n".join([*lines, *verdict(predictions, whole)])


def verdict(predictions: Sequence[Prediction], whole: tuple[float, float] | None = None) -> list[str]:
    """One or two sentences: the whole, and the rank correlation over layers."""
    said = []
    if whole is not None:
        said.append(f"the whole: predicted {noise_text(whole[0])} noise, measured {noise_text(whole[1])}")
    found, layers = order(predictions)
    if found is not None:
        said.append(f"rank correlation of predicted and measured, {layers} layers: {number(found, 2)}")
    return said


def order(predictions: Sequence[Prediction]) -> tuple[float | None, int]:
    """The rank correlation of predicted and measured noise, and over how many layers."""
    pairs = measured_pairs(predictions)
    return rank_correlation([pair[0] for _, *pair in pairs], [pair[1] for _, *pair in pairs]), len(pairs)


def measured_pairs(predictions: Sequence[Prediction]) -> list[tuple[Prediction, float, float]]:
    """Each constrained weight that was measured, with its predicted and its measured noise over signal."""
    both = [(one, *_pair(one)) for one in predictions if one.constraint]
    return [(one, predicted, measured) for one, predicted, measured in both if measured is not None]


def constrained(forecast: Forecast) -> tuple[Prediction, ...]:
    """The weights that were constrained, in graph order."""
    return tuple(one for one in forecast.predictions if one.constraint)


def bits_of(one: Prediction) -> int | None:
    """Of an integer or an index that stands for one weight; None where the constraint has no such number."""
    if found := GRID.match(one.constraint):
        return int(found[1])
    if found := TABLE.match(one.constraint):
        return (int(found[1]) - 1).bit_length()
    return None


def stored_bits(one: Prediction) -> float | None:
    """Bits that each weight takes with its share of scales and tables; None where the number of weights is unknown."""
    return 32 * one.stored_bytes / one.float_bytes if one.float_bytes else None


def summary(forecast: Forecast) -> str:
    """One line: what the weights became, the noise predicted and measured, how well layers are told apart."""
    predicted, measured = (
        None if ratio is None else noise_text(ratio) for ratio in (forecast.noise_ratio, forecast.measured_noise_ratio)
    )
    noise = {
        (True, True): f"predicted noise {predicted}, measured {measured}",
        (True, False): f"predicted noise {predicted}",
        (False, True): f"measured noise {measured}",
    }.get((predicted is not None, measured is not None))
    found, _ = order(forecast.predictions)
    alike = None if found is None else f"rank correlation over layers {number(found, 2)}"
    return "; ".join(part for part in (what_became(forecast), noise, alike) if part)


def what_became(forecast: Forecast) -> str:
    """How many weights have how many bits, or which constraints."""
    every = constrained(forecast)
    many = f"{len(every)} weight{'s' if len(every) != 1 else ''}"
    bits = [bits for one in every if (bits := bits_of(one)) is not None]
    if bits and len(bits) == len(every):
        return f"{many} at {_between(bits)}{_on_average(every, bits)}"
    kinds = list(dict.fromkeys(one.constraint for one in every))
    return f"{many} under {', '.join(kinds)}" if len(kinds) <= 2 else f"{many} under {len(kinds)} constraints"


def _between(bits: Sequence[int]) -> str:
    low, high = min(bits), max(bits)
    return f"{low} bits" if low == high else f"{low} to {high} bits"


def _on_average(every: Sequence[Prediction], bits: Sequence[int]) -> str:
    total = sum(one.float_bytes for one in every)
    if not total or min(bits) == max(bits):
        return ""
    return (
        f", {number(sum(each * one.float_bytes for one, each in zip(every, bits, strict=True)) / total, 1)} on average"
    )


def sentences(forecast: Forecast) -> list[str]:
    """The whole and the order of layers, for the page."""
    said = [f"{what_became(forecast)}{_bytes_words(constrained(forecast))}."]
    predicted, measured = forecast.noise_ratio, forecast.measured_noise_ratio
    if predicted is not None and measured is not None:
        said.append(
            f"For the network as a whole, noise of {noise_text(predicted)} of the outputs' power was predicted, "
            f"{noise_text(measured)} was measured."
        )
    elif predicted is not None:
        said.append(
            f"For the network as a whole, noise of {noise_text(predicted)} of the outputs' power was predicted."
        )
    elif measured is not None:
        said.append(f"For the network as a whole, noise of {noise_text(measured)} of the outputs' power was measured.")
    found, layers = order(forecast.predictions)
    if found is not None:
        said.append(
            f"Over {layers} layers, the rank correlation of predicted and measured noise is {number(found, 2)}; "
            "1 would be the same order throughout, 0 no relation."
        )
    return said


def _bytes_words(every: Sequence[Prediction]) -> str:
    before, after = sum(one.float_bytes for one in every), sum(one.stored_bytes for one in every)
    return f": {size_text(after)}, which took {size_text(before)}" if before else ""


def _pair(one: Prediction) -> tuple[float, float | None]:
    """Predicted and measured noise over signal: of the network's outputs, or of the layer's."""
    if one.noise_ratio is not None:
        return one.noise_ratio, one.measured_noise_ratio
    energy = one.zero_loss or 1.0
    return one.loss / energy, None if one.measured_loss is None else one.measured_loss / energy


def noise_text(ratio: float | None) -> str:
    """A share in percent with three digits that count."""
    if ratio is None or not math.isfinite(ratio):
        return UNKNOWN
    return "below 0.0001 %" if 0 < ratio < 1e-6 else f"{100 * ratio:.3g} %"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Two columns of words, then figures."""
    cells = [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
