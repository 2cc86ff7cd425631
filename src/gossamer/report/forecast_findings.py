"""Findings about weights in their new form: why one keeps more bits, which makes most noise, whom to trust."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from glob import escape
from statistics import median, median_low

from gossamer.nouns.diagnosis import Finding
from gossamer.nouns.prediction import Forecast, Prediction
from gossamer.report.predictions import bits_of, constrained, noise_text, order
from gossamer.report.words import number, scope_names, size_text

LOUD = 2.0  # times the usual layer's: what a noise estimate of a few samples can tell apart
SMALL = 0.25  # of the usual layer's bytes
SHARE = 0.25  # of all layers' noise
OFF = 2.0  # fold
POOR_ORDER = 0.5
FEWEST_LAYERS = 6  # that a rank correlation is worth telling for
NO_BETTER = "no better than nearest"  # a solver that gave way to an equally good point: nothing to tell
ESTIMATED = "estimated"


def forecast_findings(forecast: Forecast | None, model: str, data: str) -> Iterator[tuple[float, Finding]]:
    """Each with its weight among all findings.

    Args:
        model, data: as they would be written in a command.
    """
    if forecast is None:
        return
    every = constrained(forecast)
    yield from _most_bits(every, model, data)
    yield from _noisiest(every, model, data)
    yield from _fell_back(every)
    yield from _trust(forecast)


def _command(model: str, data: str, constraint: str, layer: str) -> str:
    pattern = shlex.quote(escape(layer))  # a scope holds patterns
    return (
        f"gossamer constrain {shlex.quote(model)} --data {shlex.quote(data)} --constraint {constraint} "
        f"--solver second_order --layers {pattern} -o alone/"
    )


def _most_bits(every: Sequence[Prediction], model: str, data: str) -> Iterator[tuple[float, Finding]]:
    """The weight with the most bits, and why it has them."""
    known = [(bits, one) for one in every if (bits := bits_of(one)) is not None]
    if len(known) < 3:
        return
    usual = median_low(bits for bits, _ in known)
    most = max(bits for bits, _ in known)
    if most < usual + 2:
        return
    highest = [one for bits, one in known if bits == most]
    told = [(reason, one) for one in highest if (reason := _why(one, [one for _, one in known]))]
    if not told:
        return
    # the loudest, or else the first
    reason, one = max(told, key=lambda pair: _gain(pair[1]) or 0.0)
    text = f"`{one.layer}` keeps {most} bits, where the usual layer has {usual}: {reason}."
    remedy = f"Applied. What it alone would lose with {usual}: `{_command(model, data, f'grid:{usual}', one.layer)}`"
    yield 52, Finding(text, remedy if one.constraint.startswith("grid") else "Applied.")


def _why(one: Prediction, every: Sequence[Prediction]) -> str:
    """What makes bits worth more in one weight than in others; "" if nothing stands out."""
    gains = [gain for other in every if (gain := _gain(other)) is not None]
    gain, reasons = _gain(one), []
    if gain is not None and gain >= LOUD * median(gains) > 0:
        times = gain / median(gains)
        reasons.append(
            f"an error there is heard {number(times, 0 if times >= 3 else 1)} times as loud as in the usual layer"
        )
    usual_bytes = median(other.float_bytes for other in every)
    if 0 < one.float_bytes <= SMALL * usual_bytes:
        reasons.append(f"bits cost little there, as it has {size_text(one.float_bytes)} of weights in all")
    return ", and ".join(reasons)


def _gain(one: Prediction) -> float | None:
    """How loudly the network's outputs hear the layer's noise."""
    if one.noise_ratio is None or not (one.loss > 0 and one.zero_loss > 0):
        return None
    gain = one.noise_ratio * one.zero_loss / one.loss
    return gain if math.isfinite(gain) else None


def _noisiest(every: Sequence[Prediction], model: str, data: str) -> Iterator[tuple[float, Finding]]:
    """The layer that makes more noise than all others together, or nearly."""
    measured = all(one.measured_noise_ratio is not None for one in every)
    noises = [(one.measured_noise_ratio if measured else one.noise_ratio) or 0.0 for one in every]
    total = sum(noises)
    if len(every) < 3 or not 0 < total < math.inf:
        return
    loudest, one = max(zip(noises, every, strict=True), key=lambda pair: pair[0])
    if loudest < max(SHARE, 2 / len(every)) * total:
        return
    share = number(100 * loudest / total, 0)
    place = f"`{one.layer}` ({one.constraint}, {noise_text(loudest)})"
    text = f"Of the noise that new weights make, {share} % comes from {place}."
    bits = bits_of(one)
    if bits is None or not one.constraint.startswith("grid"):
        yield 48, Finding(text, "To spare it, leave it out of its step's scope in `plan.yaml`.")
        return
    command = _command(model, data, one.constraint.replace(str(bits), str(_finer(bits)), 1), one.layer)
    yield (
        48,
        Finding(text, f"With {_finer(bits)} bits, it alone: `{command}`; to keep that, edit its step in `plan.yaml`."),
    )


def _finer(bits: int) -> int:
    """The next number of bits that a grid can have."""
    return bits + 1 if bits < 8 else 16


def _fell_back(every: Sequence[Prediction]) -> Iterator[tuple[float, Finding]]:
    """Weights for which the solver gave way to the nearest point, by the reason that most have."""
    reasons: dict[str, list[str]] = {}
    for one in every:
        if one.reason and NO_BETTER not in one.reason and not one.reason.startswith(ESTIMATED):
            reasons.setdefault(one.reason, []).append(one.layer)
    if not reasons:
        return
    reason, layers = max(reasons.items(), key=lambda pair: len(pair[1]))
    many = "The weights of " + scope_names(layers)
    yield 60, Finding(f"{many} fell back to the nearest point: {reason}.", _mend(reason))


def _mend(reason: str) -> str:
    if "zero" in reason or "no sample" in reason:
        return "Samples that reach these layers would help: give `--data` that covers more of what the model will see."
    if "NaN" in reason:
        return "Look for NaN or infinity in the samples and in the model's own outputs."
    return "More samples in `--data` may help; without moments of its input, a weight is rounded by itself."


def _trust(forecast: Forecast) -> Iterator[tuple[float, Finding]]:
    """Where predictions and measurement part: the allocation then rests on weak ground."""
    found, layers = order(forecast.predictions)
    if found is not None and layers >= FEWEST_LAYERS and found < POOR_ORDER:
        text = (
            f"What was predicted says little about these layers: the rank correlation with what was measured is "
            f"{number(found, 2)}, so bits may lie where they do not count."
        )
        yield 65, Finding(text, "More calibration samples make predictions better: give more in `--data`.")
    predicted, measured = forecast.noise_ratio, forecast.measured_noise_ratio
    if predicted and measured and measured > OFF * predicted:
        text = (
            f"The whole is {number(measured / predicted, 1)} times as noisy as predicted ({noise_text(predicted)} "
            f"predicted, {noise_text(measured)} measured): errors of its layers add up instead of cancelling."
        )
        yield 40, Finding(text, "The floor was held by measurement, not by the prediction; nothing to do.")
