"""The first round: plans that differ in what runs in integers, and so in speed.

The runtime says what it can profit from (the constants at the end of its file); nothing here asks for its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import escape

from gossamer.graph.layers import Layer, convolutions_behind, is_depthwise, is_narrow_stem, layer_of, reads_table
from gossamer.nouns.budget import Minimize
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.runtimes.contract import Runtime

ORIGINAL = "original"


@dataclass(frozen=True)
class Features:
    """What a graph holds that decides which plans make sense."""

    convolutions: int
    products: int
    depthwise: bool
    narrow_stems: tuple[str, ...]
    first_blocks: tuple[str, ...]
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
        first_blocks=_first_blocks(layers),
        layer_norms=sum(node.op_type == "LayerNormalization" for node in nodes),
        tables=any(reads_table(node) for node in nodes),
    )


def _first_blocks(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Narrow stems with the depthwise convolution behind them and the one behind that; nothing without depthwise.

    The first depthwise filters of trained nets are edge detectors: large weights that sum to about zero. Rounded, they
    no longer do, and the image's plain areas leak through. Integer depthwise kernels gain next to nothing in time.
    """
    names: list[str] = []
    for stem in (layer.node for layer in layers if is_narrow_stem(layer.node)):
        for depthwise in (node for node in convolutions_behind(stem) if is_depthwise(node)):
            names += [node.name or "" for node in (stem, depthwise, *convolutions_behind(depthwise))]
    return tuple(dict.fromkeys(names))


def propose(model: Model, runtime: Runtime, minimize: Minimize) -> tuple[Plan, ...]:
    """The first round: the original, float made clean, and every integer layout the runtime gains from."""
    found = features(model)
    clean = prepare(found, runtime)
    plans = [Plan("float", clean)]
    if found.convolutions:
        plans += _with_convolutions(found, clean, runtime)
    if (found.products or found.tables) and runtime.FAST_DYNAMIC:
        plans.append(Plan("dynamic int8", (*clean, Step("quantize_dynamic"))))
    if found.products and not found.convolutions:
        plans.append(_with_products(found, clean, runtime))
    if found.layer_norms:
        plans += [_with_form(plan, clean, form) for plan in plans for form in runtime.FAST_FORMS]
    if minimize == "size":
        plans.append(Plan("float16", (*clean, Step("store_float16"))))
        plans += _with_float16_rest(plans)
        plans += _with_small_weights(clean)
    return (Plan(ORIGINAL), *plans)


def prepare(found: Features, runtime: Runtime) -> tuple[Step, ...]:
    """The function-preserving steps that every plan begins with."""
    slow = [Step(method) for method in runtime.SLOW_FUSIONS] if found.layer_norms else []
    return (Step("fold_constants"), Step("fold_batchnorm"), *slow)


def _with_convolutions(found: Features, clean: tuple[Step, ...], runtime: Runtime) -> list[Plan]:
    """All in integers, and with the first layers left in float."""
    config = {"activation": runtime.ACTIVATION, "operators": list(runtime.INTEGER_OPERATORS), "rounding": "sums"}
    plans = [Plan("int8", (*clean, Step("quantize_static", config), Step("correct_bias")))]
    for name, skipped in (("stem", found.narrow_stems), ("first block", found.first_blocks)):
        if 0 < len(skipped) < found.convolutions:
            scope = Scope(skip=tuple(escape(node) for node in skipped))  # a scope holds patterns
            steps = (Step("quantize_static", config, scope), Step("correct_bias"))
            plans.append(Plan(f"int8, {name} in float", (*clean, *steps)))
    return plans


def _with_products(found: Features, clean: tuple[Step, ...], runtime: Runtime) -> Plan:
    """The matrix products of a net without convolutions, static; the dynamic pass is left with the tables alone."""
    config = {"activation": runtime.ACTIVATION, "operators": list(runtime.INTEGER_PRODUCTS), "ranges": "percentile"}
    tables = (Step("quantize_dynamic"),) if found.tables and runtime.FAST_DYNAMIC else ()
    return Plan("int8 products", (*clean, Step("quantize_static", config), Step("correct_bias"), *tables))


def _with_form(plan: Plan, clean: tuple[Step, ...], form: str) -> Plan:
    """A plan with one more step that preserves the function, behind the others that do."""
    return Plan(f"{plan.name}, {form.replace('_', ' ')}", (*clean, Step(form), *plan.steps[len(clean) :]))


def _with_small_weights(clean: tuple[Step, ...]) -> list[Plan]:
    """Weights stored small and computed with in float: the truest at their size."""
    eight = Step("quantize_weights", {"bits": 8, "form": "cast"})
    four = Step("quantize_weights", {"bits": 4, "granularity": 32, "scales": "mse"})
    rest = Step("store_float16")
    return [Plan("int8 weights", (*clean, eight, rest)), Plan("int4 weights", (*clean, four, eight, rest))]


def _with_float16_rest(plans: Iterable[Plan]) -> list[Plan]:
    """Integer plans whose remaining float weights are stored as float16 as well."""
    integer = [plan for plan in plans if any(step.method.startswith("quantize") for step in plan.steps)]
    return [Plan(f"{plan.name}, rest float16", (*plan.steps, Step("store_float16"))) for plan in integer]
