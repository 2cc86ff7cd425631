"""Findings: what was measured, in plain words, each with the remedy applied or the command that would apply it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape
from typing import NamedTuple

from gossamer.nouns.budget import Budget
from gossamer.nouns.diagnosis import Finding, LayerBlame, RangeHistogram, StepEffect, worst
from gossamer.nouns.facts import Facts
from gossamer.nouns.plan import Plan, rounds, trains
from gossamer.nouns.prediction import Forecast
from gossamer.nouns.record import Candidate, Splits
from gossamer.report.contrasts import Contrast, contrasts
from gossamer.report.forecast_findings import forecast_findings
from gossamer.report.words import drop_text, is_share, number, scope_names

MOST = 7
NOTABLE_DB = 0.3  # smaller gains are within what another set of samples would show
NOTABLE_SPEED = 1.1
WIDE_SPREAD = 20.0  # fold
FAR_OUTLIER = 5.0  # times the 99.9th percentile
MANY_CLIPPED = 1e-3
HOPELESS = 0.1  # a drop that nobody accepts
CALL_US = 15.0  # microseconds an operator, at which calling it is what counts


@dataclass(frozen=True)
class Case:
    """What findings are drawn from.

    Attributes:
        plan: the chosen one.
        facts: its figures, as they are reported.
        met: whether it keeps the floor.
        budget: what was asked for.
        splits: how many samples each part had.
        candidates: all that were tried.
        operators: nodes of the original's main graph.
        model, data: as they would be written in a command.
        options: further options of the command that made this, each with a blank in front.
        advice: a line about the preprocessing, empty where it seems right.
        layers, ranges, steps: see `Diagnosis`.
        forecast: see `Record`.
    """

    plan: Plan
    facts: Facts
    met: bool
    budget: Budget
    splits: Splits
    candidates: tuple[Candidate, ...]
    operators: int
    model: str = "model.onnx"
    data: str = "DATA"
    advice: str = ""
    options: str = ""
    layers: tuple[LayerBlame, ...] = ()
    ranges: tuple[RangeHistogram, ...] = ()
    steps: tuple[StepEffect, ...] = ()
    forecast: Forecast | None = None


class Weighed(NamedTuple):
    """A finding and how much it matters."""

    weight: float
    finding: Finding


def findings(case: Case) -> tuple[Finding, ...]:
    """At most seven, the most important first."""
    told = contrasts(case.plan, case.candidates, _replay(case))
    found = [
        *_preprocessing(case),
        *_floor(case),
        *_certainty(case),
        *_trained(case),
        *_worst_layer(case),
        *_ranges(case),
        *(Weighed(*one) for one in forecast_findings(case.forecast, case.model, case.data)),
        *_latency(case),
        *(Weighed(50 + min(abs(one.gain_db), 9), one.finding) for one in told if _notable(one)),
        *_faster(case),
        *_main_step(case),
    ]
    return tuple(one.finding for one in sorted(found, key=lambda one: -one.weight)[:MOST])


def _notable(one: Contrast) -> bool:
    return abs(one.gain_db) >= NOTABLE_DB or not 1 / NOTABLE_SPEED < one.speed < NOTABLE_SPEED


def _preprocessing(case: Case) -> Iterator[Weighed]:
    said, _, remedy = case.advice.partition("; ")
    if said:
        yield Weighed(100, Finding(_sentence(said), _sentence(remedy)))


def _floor(case: Case) -> Iterator[Weighed]:
    """The floor is broken: at which floor the result would do."""
    if case.met:
        return
    drop = case.facts.accuracy.high if case.budget.confident else case.facts.accuracy.drop
    if not math.isfinite(drop):
        return
    if case.budget.excess_ratio(case.facts) > 1:
        text = f"None of {len(case.candidates)} candidates keeps the floor within the limits on size and latency."
        yield Weighed(90, Finding(text, "Allow more of either, or a larger `--max-drop`."))
        return
    text = f"The best of {len(case.candidates)} candidates loses {_points(case, drop)} and misses the floor."
    remedy = f"To accept that: `{_again(case, drop)}`"
    if drop > HOPELESS:
        remedy = "No floor worth having accepts that: see which layers cost most, and leave them in float."
    yield Weighed(90, Finding(text, remedy))


def _certainty(case: Case) -> Iterator[Weighed]:
    """The interval reaches over the floor: how many samples would settle it."""
    accuracy, floor = case.facts.accuracy, case.budget.max_drop
    margin, reach = floor - accuracy.drop, accuracy.high - accuracy.drop
    if not case.met or not case.plan.steps or not reach > margin > 0:
        return
    # an interval's width falls with the square root of the number of samples
    needed = accuracy.n * (reach / margin) ** 2
    parts = case.splits
    total = parts.calibrate.n + parts.select.n + parts.verify.n
    text = (
        f"{accuracy.n:,} samples leave it open whether the floor holds: the drop is "
        f"{_points(case, accuracy.drop)}, its 95 % interval reaches to {_points(case, accuracy.high)}."
    )
    many = round_up(needed * total / max(parts.verify.n, 1))
    remedy = f"About {many:,} samples in `--data` would settle it, if the drop stays what it is."
    yield Weighed(80, Finding(text, remedy))


def _trained(case: Case) -> Iterator[Weighed]:
    """What training won back of the accuracy that integers lose, both as they were where candidates were chosen."""
    steps = tuple(step for step in case.plan.steps if not trains(step))
    before, after = (
        next((one.facts for one in case.candidates if one.plan.steps == wanted and one.facts is not None), None)
        for wanted in (steps, case.plan.steps)
    )
    if steps == case.plan.steps or before is None or after is None:
        return
    lost, left = before.accuracy, after.accuracy
    text = (
        f"Training took the loss of accuracy from {_points(case, lost.drop)} to {_points(case, left.drop)}, "
        f"and the outputs' signal from {number(lost.snr_db, 1)} to {number(left.snr_db, 1)} dB above their noise."
    )
    yield Weighed(78, Finding(text, "Applied."))


def _worst_layer(case: Case) -> Iterator[Weighed]:
    ranked = worst(case.layers, 3)
    if not ranked:
        return
    first = ranked[0]
    measured = [layer for layer in case.layers if layer.restored_db is not None]
    if measured and (first.restored_db or 0) < NOTABLE_DB:
        text = (
            f"No single layer is to blame: putting any one of the {len(measured)} worst back in float gains less than "
            f"{NOTABLE_DB} dB."
        )
        yield Weighed(35, Finding(text, "Nothing to do."))
        return
    named = f"`{first.node}` ({first.op})"
    if measured:
        beside = f", with {scope_names(first.restored_with)} that it reads from," if first.restored_with else ""
        text = (
            f"{named} costs most: in float{beside} it would make the outputs {number(first.restored_db, 1)} dB truer."
        )
    else:
        share = first.added_ratio / sum(layer.added_ratio for layer in case.layers if layer.added_ratio > 0)
        text = f"{named} costs most: of all noise that layers add, {number(100 * share, 0)} % is its own."
    yield Weighed(75, Finding(f"{text}{_spread_words(case, first)}", _in_float(case, first)))


def _spread_words(case: Case, layer: LayerBlame) -> str:
    if layer.channel_spread is None or layer.channel_spread < WIDE_SPREAD:
        return ""
    equalized = any(step.method == "equalize_channels" for step in case.plan.steps)
    still = "still " if equalized else ""
    fold = number(layer.channel_spread, 0)
    return f" Its channels' weights {still}differ {fold}-fold in size{', equalized as they are' if equalized else ''}."


def _in_float(case: Case, layer: LayerBlame) -> str:
    """The edit of plan.yaml that leaves a layer in float."""
    method = next((step.method for step in case.plan.steps if rounds(step)), "the quantizing step")
    names = ", ".join(f"`{escape(name)}`" for name in (layer.node, *layer.restored_with))  # a scope holds patterns
    edit = f"add {names} to `skip` of `{method}`'s scope in `plan.yaml`, then `{_replay(case)}`."
    ratio = layer.restored_latency_ratio
    if ratio is None:
        return f"To leave it in float, {edit}"
    price = f"{number(100 * (ratio - 1), 0)} % more latency" if ratio > 1.005 else "no more latency"
    return f"In float it costs {price}: {edit}"


def _ranges(case: Case) -> Iterator[Weighed]:
    """Ranges that a few values stretch, or that cut many off; the worst of them."""
    for one in sorted(case.ranges, key=lambda one: -one.outlier_ratio):
        if one.clipped_ratio >= MANY_CLIPPED:
            text = (
                f"{number(100 * one.clipped_ratio, 1)} % of the values of `{one.tensor}` lie outside what its "
                f"integers cover ({span_text(one.clip_low, one.clip_high)}) and are cut to its ends."
            )
            yield Weighed(62, Finding(text, _other_ranges(case, "minmax")))
            return
        stretched = one.levels <= 256 and one.outlier_ratio >= FAR_OUTLIER
        if stretched and not one.clipped_ratio:
            peak = max(abs(one.low), abs(one.high))
            text = (
                f"A few values of `{one.tensor}` reach {number(peak, 1)}, {number(one.outlier_ratio, 0)} times what "
                f"999 of 1,000 stay below, and stretch its {one.levels} steps over a range that is hardly used."
            )
            yield Weighed(62, Finding(text, _other_ranges(case, "l2")))
            return


def _other_ranges(case: Case, wanted: str) -> str:
    """Whether ranges of another kind were tried; else how to have them."""
    steps = [step for step in case.plan.steps if step.method == "quantize_static"]
    if not steps:
        return "Ranges are found while running; nothing to set."
    other = next(
        (
            one
            for one in case.candidates
            if one.facts
            and any(s.config.get("ranges", "minmax") == wanted for s in one.plan.steps if s.method == "quantize_static")
        ),
        None,
    )
    if steps[0].config.get("ranges", "minmax") == wanted:
        return f"The ranges are `{wanted}`, which were the truest of those tried."
    if other is not None and other.facts is not None:
        return f"`{wanted}` ranges were tried too: {number(other.facts.accuracy.snr_db, 1)} dB, as `{other.plan.name}`."
    return f"Set `ranges: {wanted}` in `quantize_static`'s config in `plan.yaml`, then `{_replay(case)}`."


def _latency(case: Case) -> Iterator[Weighed]:
    """Integers did not make it faster: why."""
    integer = [one for one in case.candidates if any(step.method.startswith("quantize_") for step in one.plan.steps)]
    ratio = max((one.facts.latency_ms.ratio for one in integer if one.facts), default=math.nan)
    latency = case.facts.latency_ms
    if not ratio < NOTABLE_SPEED or not case.operators or not math.isfinite(latency.original):
        return
    each_us = 1000 * latency.original / case.operators
    each = f"{case.operators} operators in {number(latency.original, 3)} ms are {number(each_us, 1)} µs each"
    if each_us < CALL_US:
        text = f"Nothing that was tried is faster, as the net is small: {each}, about what it takes to call one."
        remedy = "Integers shorten what an operator computes, not its call. Several samples a call would help more."
    else:
        text = (
            f"Nothing that was tried is faster: {each}, and integers save less than the conversions around them cost."
        )
        remedy = f"What can run in integers, and why the rest cannot: `gossamer inspect {shlex.quote(case.model)}`"
    yield Weighed(58, Finding(text, remedy))


def _faster(case: Case) -> Iterator[Weighed]:
    """A candidate that misses the floor and is a good deal better at what was asked for."""
    if not case.met:
        return
    mine = _gain(case, case.facts)
    missed = [one for one in case.candidates if one.facts and not one.met and one.facts.accuracy.drop < 0.5]
    better = [(one, _gain(case, one.facts)) for one in missed if one.facts]
    better = [(one, gain) for one, gain in better if gain > NOTABLE_SPEED * mine]
    if not better:
        return
    one, gain = min(better, key=lambda pair: pair[0].facts.accuracy.drop if pair[0].facts else math.inf)
    if one.facts is None:
        return
    accuracy = one.facts.accuracy
    drop = accuracy.high if case.budget.confident else accuracy.drop
    kind = "as fast" if case.budget.minimize == "latency" else "as small"
    lost = _points(case, drop)
    text = f"`{one.plan.name}` is {number(gain / mine, 2)}× {kind}, but loses {lost} and so misses the floor."
    yield Weighed(45, Finding(text, f"To accept that: `{_again(case, drop)}`"))


def _main_step(case: Case) -> Iterator[Weighed]:
    """The step that brought the most."""
    if not case.steps or not all(0 < step.latency_ratio < math.inf for step in case.steps):
        return
    before = (1.0, *(step.latency_ratio for step in case.steps[:-1]))
    first, step = max(zip(before, case.steps, strict=True), key=lambda pair: pair[0] / pair[1].latency_ratio)
    if first < NOTABLE_SPEED * step.latency_ratio:
        return
    text = (
        f"The speed comes from one step, “{step.step}”: from {number(100 * first, 0)} to "
        f"{number(100 * step.latency_ratio, 0)} % of the original's latency, at {number(step.snr_db, 1)} dB."
    )
    yield Weighed(20, Finding(text, "Applied."))


def _gain(case: Case, facts: Facts) -> float:
    if case.budget.minimize == "latency":
        return facts.latency_ms.ratio
    return facts.bytes.original / max(facts.bytes.result, 1)


def _points(case: Case, drop: float) -> str:
    metric = case.facts.accuracy.metric
    return f"{drop_text(metric, drop)}{' points' if is_share(metric) else ''}"


def _again(case: Case, drop: float) -> str:
    """The command that accepts a drop, rounded up."""
    per_mille = math.ceil(1000 * drop - 1e-9)
    asked = (
        f"gossamer compress {shlex.quote(case.model)} --data {shlex.quote(case.data)} --max-drop {per_mille / 10:g}%"
    )
    size = f" --minimize {case.budget.minimize}" if case.budget.minimize != "latency" else ""
    return f"{asked}{size}{' --confident' if case.budget.confident else ''}{case.options}"


def _replay(case: Case) -> str:
    return f"gossamer apply plan.yaml {shlex.quote(case.model)} -o edited/"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def span_text(low: float, high: float) -> str:
    """A range of values with three digits that count."""
    return f"{_short(low)} to {_short(high)}"


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def round_up(value: float) -> int:
    """To two digits that count; a forecast has no more."""
    if not 1 <= value < math.inf:
        return 1
    unit = int(10 ** max(0, math.floor(math.log10(value)) - 1))
    return math.ceil(value / unit) * unit
