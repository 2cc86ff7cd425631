"""Why the result is as it is: ranges of the worst layers, what each step cost and gained, and findings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from time import perf_counter
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from msgspec.structs import replace as altered

from gossamer.arith.histogram import Observed, cumulative
from gossamer.errors import GossamerError
from gossamer.gate import Baseline
from gossamer.graph.edit import constant
from gossamer.graph.layers import layer_of
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.latency import Timing, race
from gossamer.measuring.metrics import Metric
from gossamer.measuring.noise import to_db
from gossamer.measuring.quality import score
from gossamer.nouns.diagnosis import Diagnosis, LayerBlame, RangeHistogram, StepEffect, worst
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Plan
from gossamer.passes.contract import Memo, run_plan
from gossamer.report.findings import Case, findings
from gossamer.report.words import step_name
from gossamer.runtimes.contract import Session

BINS = 80
MOST_RANGES = 4
STEP_SAMPLES = 64
HEAVY_BYTES = 2_000_000_000  # of weights of all steps together; more are not held open at once
DEAD = 1e-4  # of the widest channel's largest weight: narrower ones carry nothing, and no grid minds them
OUTLIERS = 0.999  # the share of magnitudes below which a value is ordinary
FOLLOWED = 3  # activation functions between a layer and its quantizer
SNR = Metric("snr")


def diagnose(
    case: Case,
    model: Model,
    evidence: Evidence,
    memo: Memo,
    original: Baseline,
    blames: tuple[LayerBlame, ...] = (),
    budget_s: float = 5.0,
) -> Diagnosis:
    """Explain the chosen plan. What cannot be measured is left empty: an explanation never costs a result.

    Args:
        case: what was chosen and measured; its `layers`, `ranges` and `steps` are filled in here.
        model: the normalised original, which the plan is applied to.
        evidence, memo: those of the trials, so that little is computed again.
        original: opened and scored on the split that chose.
        blames: the integer layers of the result.
        budget_s: begin nothing more after so many seconds. What is under way ends first.
    """
    end = perf_counter() + budget_s
    try:
        stages = _stages(case.plan, model, evidence, memo)
    except GossamerError:  # the plan ran before; if it does not now, there is nothing to look at
        stages = []
    layers = _with_spreads(blames, stages[-1].before if stages else model)
    try:
        ranges = _ranges(stages, evidence, layers)
    except GossamerError:
        ranges = ()
    try:
        steps = _steps(stages, original, case.facts.latency_ms.original, end)
    except GossamerError:
        steps = ()
    known = replace(case, layers=layers, ranges=ranges, steps=steps)
    return Diagnosis(layers, ranges, steps, findings(known))


class _Stage(NamedTuple):
    """A step that changed something: the model after it; `before` is the last one that had no quantizer."""

    step: str
    before: Model
    after: Model


def _stages(plan: Plan, model: Model, evidence: Evidence, memo: Memo) -> list[_Stage]:
    stages: list[_Stage] = []
    before = last = model
    for count, step in enumerate(plan.steps, 1):
        after = run_plan(altered(plan, steps=plan.steps[:count]), model, evidence, memo).model
        if after is not last:
            stages.append(_Stage(step_name(step), before, after))
        last = after
        before = before if _has_quantizers(after) else after
    return stages


def _has_quantizers(model: Model) -> bool:
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.ir.graph)


def _with_spreads(blames: Sequence[LayerBlame], model: Model) -> tuple[LayerBlame, ...]:
    nodes = {node.name: node for node in model.ir.graph}
    return tuple(
        altered(blame, channel_spread=_spread(nodes[blame.node])) if blame.node in nodes else blame for blame in blames
    )


def _spread(node: ir.Node) -> float | None:
    """The largest weight of the widest output channel over that of the narrowest which is not dead."""
    layer = layer_of(node)
    if isinstance(layer, str):
        return None
    w_OX = np.moveaxis(np.asarray(constant(layer.weight)), layer.channel_axis, 0).reshape(layer.channels, -1)
    peaks_O = np.abs(w_OX).max(axis=1, initial=0)
    alive_O = peaks_O[peaks_O > DEAD * peaks_O.max(initial=0)]
    return float(alive_O.max() / alive_O.min()) if alive_O.size and np.isfinite(alive_O).all() else None


class _Quantizer(NamedTuple):
    clip_low: float
    clip_high: float
    levels: int


def _ranges(stages: Sequence[_Stage], evidence: Evidence, layers: tuple[LayerBlame, ...]) -> tuple[RangeHistogram, ...]:
    """Of the worst layers' quantized outputs, or inputs where the output stays in float."""
    if not stages or not layers:
        return ()
    before, quantizers = stages[-1].before, _quantizers(stages[-1].after)
    nodes = {node.name: node for node in before.ir.graph}
    tensors: dict[str, str] = {}
    for layer in worst(layers, 3 * MOST_RANGES):  # several may share a tensor
        tensor = _quantized_near(nodes.get(layer.node), quantizers)
        if tensor is not None and len(tensors) < MOST_RANGES:
            tensors.setdefault(tensor, layer.node)
    observed = evidence.ranges(before, list(tensors), histogram=True) if tensors else {}
    drawn = (_histogram(name, layer, observed[name], quantizers[name]) for name, layer in tensors.items())
    return tuple(one for one in drawn if one is not None)


def _quantizers(model: Model) -> dict[str, _Quantizer]:
    """Tensor names, those in front of a pair and those behind it, and what the pair can say."""
    found: dict[str, _Quantizer] = {}
    for node in model.ir.graph:
        scale = constant(node.inputs[1]) if node.op_type == "QuantizeLinear" else None
        if scale is None or scale.size != 1 or node.inputs[0] is None:
            continue
        zero_point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        dtype = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
        if dtype.kind not in "iu":  # four bits and the like have types that numpy does not know
            continue
        zero, limits = 0 if zero_point is None else int(zero_point.reshape(())), np.iinfo(dtype)
        low, high = (float(scale.reshape(())) * (int(limit) - zero) for limit in (limits.min, limits.max))
        said = _Quantizer(low, high, int(limits.max) - int(limits.min) + 1)
        behind = [output for user in node.outputs[0].consumers() for output in user.outputs]
        for value in (node.inputs[0], *behind):
            found.setdefault(value.name or "", said)
    return found


def _quantized_near(node: ir.Node | None, quantizers: Mapping[str, _Quantizer]) -> str | None:
    """The layer's output, what an activation function makes of it, or its input: the first that is quantized."""
    if node is None:
        return None
    value: ir.Value | None = node.outputs[0]
    for _ in range(FOLLOWED + 1):
        if value is None:
            break
        if value.name in quantizers:
            return value.name
        readers = tuple(value.consumers())
        value = readers[0].outputs[0] if len(readers) == 1 and len(readers[0].outputs) == 1 else None
    source = node.inputs[0] if node.inputs else None
    return source.name if source is not None and source.name in quantizers else None


def _histogram(tensor: str, layer: str, observed: Observed, quantizer: _Quantizer) -> RangeHistogram | None:
    """Bins of one width between the extremes; None for a tensor that holds a single value."""
    if not observed.size:
        return None
    low, high = float(observed.sample_low_N.min()), float(observed.sample_high_N.max())
    if not high > low:
        return None
    sums = cumulative(observed)
    edges = np.linspace(low, high, BINS + 1)
    part = np.diff(sums.below(edges)[:, 0])
    counts = np.where(part >= 0.01, np.maximum(np.rint(part), 1), 0).astype(np.int64)  # a lone outlier is to be seen
    inside_2 = sums.below(np.array([quantizer.clip_low, quantizer.clip_high]))[:, 0]
    clipped = 1 - float(inside_2[1] - inside_2[0]) / observed.size
    return RangeHistogram(
        tensor,
        low,
        high,
        tuple(counts.tolist()),
        *quantizer,
        layer,
        clipped if clipped > 0.5 / observed.size and _cuts(quantizer, low, high) else 0.0,
        _outlier_ratio(sums.edges, sums.counts),
    )


def _cuts(quantizer: _Quantizer, low: float, high: float) -> bool:
    """Whether a value lies farther outside than half a step, which rounding takes care of."""
    half = 0.5 * (quantizer.clip_high - quantizer.clip_low) / (quantizer.levels - 1)
    return low < quantizer.clip_low - half or high > quantizer.clip_high + half


def _outlier_ratio(edges: np.ndarray, counts: np.ndarray) -> float:
    """The largest magnitude over the 99.9th percentile of magnitudes, to the width of a bin."""
    magnitudes = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
    order = np.argsort(magnitudes)
    at = int(np.searchsorted(np.cumsum(counts[order]), OUTLIERS * counts.sum()))
    ordinary, largest = magnitudes[order[min(at, len(order) - 1)]], magnitudes[order[-1]]
    return float(largest / ordinary) if ordinary > 0 else 1.0


def _steps(stages: Sequence[_Stage], original: Baseline, latency_ms: float, end: float) -> tuple[StepEffect, ...]:
    """All steps in one race with the original and on the same samples, so that neighbours can be compared."""
    left_s = end - perf_counter()
    turns = len(stages) + 1
    too_slow = not isfinite(latency_ms) or latency_ms / 1000 * turns > 0.2 * left_s
    if not stages or too_slow or sum(stage.after.weight_bytes() for stage in stages) > HEAVY_BYTES:
        return ()
    threads = original.session.threads
    sizes = [len(to_bytes(stage.after)) for stage in stages]
    sessions = [original.runtime.open_session(stage.after, threads) for stage in stages]
    noises = _noises(sessions, original, int(0.3 * left_s / (latency_ms / 1000 * turns)))
    racing = {"original": original.session, **{str(place): session for place, session in enumerate(sessions)}}
    times = race(racing, original.feeds, threads, Timing(budget_s=left_s / 2, precision=0.01))
    return tuple(
        StepEffect(
            stage.step,
            to_db(noise),
            float(np.median(np.divide(times[str(place)], times["original"]))),
            size / original.size_bytes,
        )
        for place, (stage, noise, size) in enumerate(zip(stages, noises, sizes, strict=True))
    )


def _noises(sessions: Sequence[Session], original: Baseline, most: int) -> list[float]:
    """Noise over signal of every session's outputs, on the same few samples."""
    few = original.samples.first(min(STEP_SAMPLES, max(most, 4)))
    truth = score(original.truth.session, few, SNR)
    return [score(session, few, SNR, truth).noise_ratio for session in sessions]
