"""The first round: plans that differ in what runs in integers, and so in speed.

The runtime says what it can profit from (the constants at the end of its file); nothing here asks for its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from glob import escape

from gossamer.nouns.budget import Minimize
from gossamer.nouns.plan import ORIGINAL, Plan, Scope, Step, quantizing
from gossamer.planning.features import Features
from gossamer.runtimes.contract import Runtime

LEAST_SHARE = 0.05  # of the weights: a head of a few classes behind convolutions gains no time that could be measured
CLEAN = Plan("clean", (Step("fold_constants"), Step("fold_batchnorm")))  # what every plan begins with


def propose(found: Features, runtime: Runtime, minimize: Minimize, weight_bits: int = 8) -> tuple[Plan, ...]:
    """The first round: the original, float made clean, and every integer layout the runtime gains from.

    Args:
        found: of the model with its constants and norms folded, as plans quantize it.
        weight_bits: of weights that are multiplied with bytes: 7 where the target's processor sums in 16 bits.
    """
    clean = prepare(found, runtime)
    plans = [Plan("float", clean)]
    if minimize == "download":  # the rest is up to `shrinking`: integers between layers make no archive smaller
        return Plan(ORIGINAL), *plans
    if found.convolutions:
        plans += _with_convolutions(found, clean, runtime, weight_bits)
    gains = found.product_share >= LEAST_SHARE or minimize != "latency"
    if ((found.products and gains) or found.tables) and runtime.FAST_DYNAMIC:
        plans.append(Plan("dynamic int8", (*clean, Step("quantize_dynamic", _bits(weight_bits)))))
    if found.products and not found.convolutions:
        plans.append(_with_products(found, clean, runtime, weight_bits))
    if found.layer_norms:
        smoothed = [_smoothed(plan, clean) for plan in plans if quantizing(plan) is not None]
        plans += smoothed + [_with_form(plan, clean, form) for plan in smoothed for form in runtime.FAST_FORMS]
    if found.recurrent:
        smaller = [_with_recurrent(plan, found, runtime, weight_bits) for plan in plans]
        plans = [plans[0], *smaller] if minimize == "size" else [*plans, *smaller]
    if minimize == "size":
        plans.append(Plan("float16", (*clean, Step("store_float16"))))
        plans += _with_float16_rest(plans)
        plans += _with_small_weights(clean)
    return (Plan(ORIGINAL), *plans)


def prepare(found: Features, runtime: Runtime) -> tuple[Step, ...]:
    """The function-preserving steps that every plan begins with."""
    slow = [Step(method) for method in runtime.SLOW_FUSIONS] if found.layer_norms else []
    return (*CLEAN.steps, *slow)


def _with_convolutions(found: Features, clean: tuple[Step, ...], runtime: Runtime, weight_bits: int) -> list[Plan]:
    """All in integers, and with the first layers left in float."""
    config = {
        "activation": runtime.ACTIVATION,
        "operators": list(runtime.INTEGER_OPERATORS),
        "free_float": list(runtime.INTEGER_PRODUCTS),
        "rounding": "sums",
        **_bits(weight_bits),
    }
    plans = [Plan("int8", (*clean, Step("quantize_static", config), Step("correct_bias")))]
    for name, skipped in (("stem", found.narrow_stems), ("first block", found.first_blocks)):
        if 0 < len(skipped) < found.convolutions:
            scope = Scope(skip=tuple(escape(node) for node in skipped))  # a scope holds patterns
            steps = (Step("quantize_static", config, scope), Step("correct_bias"))
            plans.append(Plan(f"int8, {name} in float", (*clean, *steps)))
    return plans


def _with_products(found: Features, clean: tuple[Step, ...], runtime: Runtime, weight_bits: int) -> Plan:
    """The matrix products of a net without convolutions, static; the dynamic pass is left with the tables alone."""
    config = {"activation": runtime.ACTIVATION, "operators": list(runtime.INTEGER_PRODUCTS), **_bits(weight_bits)}
    scope = Scope() if runtime.INTEGER_ATTENTION else Scope(skip=tuple(escape(node) for node in found.attention))
    rows = Step("quantize_dynamic", scope=Scope(only=tuple(escape(node) for node in found.tables)))
    tables = (rows,) if found.tables else ()  # rows in int8 cost no runtime any time
    return Plan("int8 products", (*clean, Step("quantize_static", config, scope), Step("correct_bias"), *tables))


def _smoothed(plan: Plan, clean: tuple[Step, ...]) -> Plan:
    """The plan with outlier channels taken out of the activations first, which normalizations always leave."""
    ranges = "static" if any(step.method == "quantize_static" for step in plan.steps) else "dynamic"
    smooth = Step("smooth_activations", {"alpha": None, "products": True, "ranges": ranges})
    return Plan(f"{plan.name}, smoothed", (*clean, smooth, *plan.steps[len(clean) :]))


def _bits(weight_bits: int) -> dict[str, int]:
    """The option of the weights' width, where it is not the usual one."""
    return {} if weight_bits == 8 else {"weight_bits": weight_bits}


def _with_form(plan: Plan, clean: tuple[Step, ...], form: str) -> Plan:
    """A plan with one more step that preserves the function, behind the others that do, which plans then share."""
    at = next((at for at, step in enumerate(plan.steps) if step.method == "smooth_activations"), len(clean) - 1) + 1
    return Plan(f"{plan.name}, {form.replace('_', ' ')}", (*plan.steps[:at], Step(form), *plan.steps[at:]))


def _with_recurrent(plan: Plan, found: Features, runtime: Runtime, weight_bits: int) -> Plan:
    """A plan whose recurrent layers are stored in integers, and multiplied in integers where that is faster."""
    form = "fastest" if runtime.FAST_DYNAMIC and weight_bits == 8 else "cast"
    config = {"constraint": "grid:8", "solver": "nearest", "form": form}
    scope = Scope(only=tuple(escape(name) for name in found.recurrent))
    return Plan(f"{plan.name}, recurrent int8", (*plan.steps, Step("constrain_weights", config, scope)))


def _with_small_weights(clean: tuple[Step, ...]) -> list[Plan]:
    """Weights stored in a byte and computed with in float. For fewer bits, see `shrinking`."""
    eight = Step("constrain_weights", {"constraint": "grid:8", "solver": "nearest", "form": "cast"})
    return [Plan("int8 weights", (*clean, eight, Step("store_float16")))]


def _with_float16_rest(plans: Iterable[Plan]) -> list[Plan]:
    """Integer plans whose remaining float weights are stored as float16 as well."""
    integer = [plan for plan in plans if quantizing(plan) is not None]
    return [Plan(f"{plan.name}, rest float16", (*plan.steps, Step("store_float16"))) for plan in integer]
