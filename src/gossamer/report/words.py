"""Numbers and findings as a person reads them. Both reports, the page and the terminal's, use these words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gossamer.nouns.facts import Accuracy, Bytes, Energy, Latency
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.nouns.record import Record

UNKNOWN = "not measured"
SAME = 1.02  # ratios nearer to 1 than this are told as "the same"

EQUAL_DB = 200  # what measuring gives for no noise at all
OPTIMISTIC = {
    "accuracy": "the accuracy shown is optimistic: its samples also chose the result",
    "candidates.accuracy": "the candidates' drops are optimistic: their samples also calibrated",
}


def number(value: float | None, digits: int) -> str:
    """A number with thousands separated and a real minus sign; "not measured" for None and NaN."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.removeprefix("-")


def size_text(size_bytes: int) -> str:
    """Bytes in the unit that reads best, decimal as file managers count."""
    for unit, bytes_per_unit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= bytes_per_unit:
            return f"{size_bytes / bytes_per_unit:,.{2 if size_bytes < 10 * bytes_per_unit else 1}f} {unit}"
    return f"{size_bytes:,} bytes"


def latency_text(latency_ms: float) -> str:
    """Milliseconds with three digits that count."""
    return f"{number(latency_ms, 3 if latency_ms < 10 else 1)} ms" if math.isfinite(latency_ms) else UNKNOWN


def is_share(metric: str) -> bool:
    """Whether a metric is a share of 1, told in percent. A person's own metric is told as it is."""
    return ":" not in metric


def score_text(metric: str, score: float) -> str:
    """A score: percent for a share, else four decimals."""
    if not math.isfinite(score):
        return UNKNOWN
    return f"{number(100 * score, 2)} %" if is_share(metric) else number(score, 4)


def drop_text(metric: str, drop: float) -> str:
    """A drop of the metric without its unit: points (hundredths) for a share, else four decimals."""
    return number(100 * drop, 2) if is_share(metric) else number(drop, 4)


def metric_name(metric: str) -> str:
    """What the metric is called in a sentence."""
    names = {"top1": "top-1 accuracy", "agreement": "agreement with the original", "snr": "signal share of the output"}
    return names.get(metric, metric)


def metric_words(accuracy: Accuracy, labelled: bool) -> str:
    """The metric explained, and what it does not tell."""
    explained = {
        "top1": "The share of samples whose largest output is at their label.",
        "agreement": "The share of samples for which original and result choose the same class.",
        "snr": "The share of the output's power that is not noise, the original's output being the signal: "
        "1 % of noise is a ratio of 20 dB, 0.1 % is 30 dB.",
    }
    words = explained.get(accuracy.metric, f"The mean of {accuracy.metric} over the samples.")
    if labelled:
        return words
    return f"{words} The data has no labels: this says how like the original the result is, not how often it is right."


def speed_words(latency: Latency) -> str:
    """The latency ratio as a phrase."""
    return _ratio_words(latency.ratio, "faster", "slower", "as fast as before")


def size_words(size: Bytes) -> str:
    """The size ratio as a phrase."""
    return _ratio_words(
        size.original / size.result if size.result else math.nan, "smaller", "larger", "as large as before"
    )


def drop_words(accuracy: Accuracy) -> str:
    """The drop as a phrase."""
    if not math.isfinite(accuracy.drop):
        return UNKNOWN
    size = drop_text(accuracy.metric, abs(accuracy.drop))
    if not float(size.replace(",", "")):
        return "unchanged"
    unit = " points" if is_share(accuracy.metric) else ""
    return f"{size}{unit} {'lower' if accuracy.drop > 0 else 'higher'}"


def interval_text(accuracy: Accuracy) -> str:
    """The 95 % interval of the drop, without its unit."""
    return _span(drop_text(accuracy.metric, accuracy.low), drop_text(accuracy.metric, accuracy.high))


def spread_text(latency: Latency) -> str:
    """The 10th to 90th percentile of the latency ratio."""
    return _span(number(latency.low, 2), number(latency.high, 2))


def _span(low: str, high: str) -> str:
    return UNKNOWN if UNKNOWN in (low, high) else f"{low} to {high}"


def floor_words(record: Record) -> str:
    """The promise that was asked for."""
    unit = " points" if is_share(record.accuracy.metric) else ""
    bound = ", by the bound of the interval" if record.confident else ""
    drop = drop_text(record.accuracy.metric, record.max_drop)
    limits = [
        f"at most {size_text(record.max_bytes)}" if record.max_bytes else "",
        f"at most {number(100 * record.max_latency_ratio, 1)} % of the latency" if record.max_latency_ratio else "",
    ]
    return ", ".join(
        filter(None, (f"{metric_name(record.accuracy.metric)} at most {drop}{unit} lower{bound}", *limits))
    )


def excess_words(record: Record) -> str:
    """Which limit the result exceeds; "" if none."""
    if record.max_bytes and record.bytes.result > record.max_bytes:
        return f"the result has {size_text(record.bytes.result)}, and {size_text(record.max_bytes)} are allowed"
    share = 1 / record.latency_ms.ratio
    if record.max_latency_ratio and share > record.max_latency_ratio:
        allowed = number(100 * record.max_latency_ratio, 1)
        return f"the result takes {number(100 * share, 1)} % of the latency, and {allowed} % are allowed"
    return ""


def is_untouched(record: Record) -> bool:
    """Whether the answer is to leave the model as it was."""
    if record.artifact_sha256 == record.original_sha256:
        return True
    return any(one.plan.name == record.chosen and not one.plan.steps for one in record.candidates)


def headline(record: Record) -> str:
    """The outcome in one sentence."""
    if not record.met and excess_words(record):
        drop = f"{metric_name(record.accuracy.metric)} is {drop_words(record.accuracy)}"
        return f"Limit not met: {excess_words(record)}. Its {drop}."
    if not record.met:
        return (
            f"Floor not met: the best result has {metric_name(record.accuracy.metric)} {drop_words(record.accuracy)}."
        )
    if is_untouched(record):
        return "Leave it as it is: nothing that was tried is better here and keeps the floor."
    figures = [speed_words(record.latency_ms), size_words(record.bytes)]
    if record.minimize != "latency":
        figures.reverse()
    gained = " and ".join(figure for figure in figures if figure != UNKNOWN)
    told = ", ".join(
        part for part in (gained, f"{metric_name(record.accuracy.metric)} {drop_words(record.accuracy)}") if part
    )
    return f"{told[:1].upper()}{told[1:]}."


def subline(record: Record) -> str:
    """What was asked for, and whether it was met, in one sentence."""
    if record.met:
        return f"Met: {floor_words(record)}."
    return f"NOT met: {floor_words(record)}. The file is written all the same, for you to judge."


def step_words(step: Step) -> str:
    """One sentence of a plan."""
    options = ", ".join(f"{name.replace('_', ' ')} {value_words(value)}" for name, value in step.config.items())
    method = step.method.replace("_", " ")
    return f"{method[:1].upper()}{method[1:]}{f' ({options})' if options else ''}{_scope_words(step.scope)}"


def step_name(step: Step) -> str:
    """What a step does and where, without its options."""
    method = step.method.replace("_", " ")
    only = f" on {counted(step.scope.only)}" if step.scope.only else ""
    left = f", leaving out {counted(step.scope.skip)}" if step.scope.skip else ""
    return f"{method[:1].upper()}{method[1:]}{only}{left}"


def scope_names(patterns: Sequence[str]) -> str:
    """Names of a scope between backticks; the third and on are counted."""
    return counted([f"`{pattern}`" for pattern in patterns])


def counted(names: Sequence[str]) -> str:
    """The first two of some names, and how many more there are."""
    named, more = names[:2], len(names) - 2
    return f"{', '.join(named)} and {more} more" if more > 0 else " and ".join(named)


def plan_words(plan: Plan) -> list[str]:
    """A plan, sentence by sentence."""
    return [step_words(step) for step in plan.steps] or ["Nothing: the model stays as it is"]


def _ratio_words(ratio: float, above: str, below: str, same: str) -> str:
    if not math.isfinite(ratio) or ratio <= 0:
        return UNKNOWN
    if 1 / SAME < ratio < SAME:
        return same
    return f"{number(ratio, 2)}× {above}" if ratio > 1 else f"{number(1 / ratio, 2)}× {below}"


def value_words(value: object) -> str:
    """An option's value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(value_words(item) for item in value) or "none"
    return "none" if value is None else str(value)


def _scope_words(scope: Scope) -> str:
    only = f" on {', '.join(scope.only)}" if scope.only else ""
    return f"{only}, leaving out {', '.join(scope.skip)}" if scope.skip else only


def energy_text(energy_mj: float) -> str:
    """Millijoules with three digits that count."""
    return f"{energy_mj:.3g} mJ"


def energy_words(energy: Energy) -> str:
    """How much less energy, and whether that is measured."""
    change = "the same" if 1 / SAME < energy.ratio < SAME else f"{energy.ratio:.2f}× less"
    return f"{change} (estimate)" if energy.method == "estimate" else change
