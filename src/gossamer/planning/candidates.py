"""Which plans are worth trying: first those that differ in speed, then variations of the fastest that differ in truth.

The runtime says what it can profit from (the constants at the end of its file); nothing here asks for its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import escape
from types import ModuleType

import msgspec

from gossamer.graph.layers import is_depthwise, is_narrow_stem, layer_of, reads_table
from gossamer.nouns.budget import Minimize
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.nouns.record import Candidate

ORIGINAL = "original"
RANGES = ("minmax", "percentile", "l2", "entropy")  # tried on the best integer plan, but for its own


@dataclass(frozen=True)
class Features:
    """What a graph holds that decides which plans make sense."""

    convolutions: int
    products: int
    depthwise: bool
    narrow_stems: tuple[str, ...]
    layer_norms: int
    tables: bool


def features(model: Model) -> Features:
    """Count what matters in the main graph."""
    nodes = list(model.ir.graph)
    layers = [found for node in nodes if not isinstance(found := layer_of(node), str)]
    return Features(
        convolutions=sum(layer.node.op_type == "Conv" for layer in layers),
        products=sum(layer.node.op_type != "Conv" for layer in layers),
        depthwise=any(is_depthwise(layer.node) for layer in layers),
        narrow_stems=tuple(layer.node.name or "" for layer in layers if is_narrow_stem(layer.node)),
        layer_norms=sum(node.op_type == "LayerNormalization" for node in nodes),
        tables=any(reads_table(node) for node in nodes),
    )


def propose(model: Model, runtime: ModuleType, minimize: Minimize) -> tuple[Plan, ...]:
    """The first round: the original, float made clean, and every integer layout the runtime gains from."""
    found = features(model)
    clean = prepare(found, runtime)
    plans = [Plan(ORIGINAL), Plan("float", clean)]
    if found.convolutions:
        config = {"activation": runtime.ACTIVATION, "operators": list(runtime.INTEGER_OPERATORS)}
        tail = (Step("correct_bias"),)
        plans.append(Plan("int8", (*clean, Step("quantize_static", config), *tail)))
        if found.narrow_stems and len(found.narrow_stems) < found.convolutions:
            scope = Scope(skip=tuple(escape(name) for name in found.narrow_stems))  # a scope holds patterns
            plans.append(Plan("int8, stem in float", (*clean, Step("quantize_static", config, scope), *tail)))
    if (found.products or found.tables) and runtime.FAST_DYNAMIC:
        plans.append(Plan("dynamic int8", (*clean, Step("quantize_dynamic"))))
    if found.products and not found.convolutions:
        config = {"activation": runtime.ACTIVATION, "operators": list(runtime.INTEGER_PRODUCTS)}
        static = Step("quantize_static", {**config, "ranges": "percentile"})
        plans.append(Plan("int8 products", (*clean, static, Step("correct_bias"))))
    if minimize == "size":
        plans.append(Plan("float16", (*clean, Step("store_float16"))))
        plans.extend(_with_float16_rest(plans))
    return tuple(plans)


def refine(model: Model, tried: Sequence[Candidate], minimize: Minimize = "latency") -> tuple[Plan, ...]:
    """The second round: the best static plan with other ranges, with channels equalized, without correction."""
    static = [c for c in tried if c.facts and any(step.method == "quantize_static" for step in c.plan.steps)]
    if not static:
        return ()
    best = max(static, key=lambda candidate: gain(candidate, minimize)).plan
    step = next(step for step in best.steps if step.method == "quantize_static")
    own = step.config.get("ranges", "minmax")
    others = [ranges for ranges in RANGES if ranges != own]
    plans = [_variation(best, ranges, False) for ranges in others]
    if features(model).depthwise:
        plans.extend(_variation(best, ranges, True) for ranges in (None, *others))
    without = tuple(step for step in best.steps if step.method != "correct_bias")
    if without != best.steps:
        plans.append(Plan(f"{best.name}, biases as they were", without))
    return tuple(plans)


def gain(candidate: Candidate, minimize: Minimize) -> float:
    """How many times faster or smaller than the original; 0 for one that did not pass the gate."""
    if candidate.facts is None:
        return 0.0
    if candidate.plan.name == ORIGINAL:  # exactly, whatever the clock says
        return 1.0
    if minimize == "latency":
        return candidate.facts.latency_ms.ratio
    return candidate.facts.bytes.original / candidate.facts.bytes.result


def prepare(found: Features, runtime: ModuleType) -> tuple[Step, ...]:
    """The function-preserving steps that every plan begins with."""
    slow = [Step(method) for method in runtime.SLOW_FUSIONS] if found.layer_norms else []
    return (Step("fold_constants"), Step("fold_batchnorm"), *slow)


def _variation(plan: Plan, ranges: str | None, equalized: bool) -> Plan:
    steps: list[Step] = []
    for step in plan.steps:
        if step.method != "quantize_static":
            steps.append(step)
            continue
        if equalized:
            steps.append(Step("equalize_channels"))
        config = {**step.config, "ranges": ranges} if ranges else step.config
        steps.append(msgspec.structs.replace(step, config=config))
    words = [plan.name, *([f"{ranges} ranges"] if ranges else []), *(["equalized"] if equalized else [])]
    return Plan(", ".join(words), tuple(steps))


def _with_float16_rest(plans: Iterable[Plan]) -> list[Plan]:
    """Integer plans whose remaining float weights are stored as float16 as well."""
    integer = [plan for plan in plans if any(step.method.startswith("quantize") for step in plan.steps)]
    return [Plan(f"{plan.name}, rest float16", (*plan.steps, Step("store_float16"))) for plan in integer]
