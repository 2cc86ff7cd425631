"""An allocation as a plan: one sentence for every distinct constraint, over the layers that it was given to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import escape
from typing import Any

from gossamer.constraints.contract import Constraint, as_text
from gossamer.nouns.plan import Plan, Scope, Step

METHOD = "constrain_weights"


def allocated(
    plan: Plan,
    nodes: Sequence[str],
    constraints: Sequence[Constraint | None],
    config: Mapping[str, Any],
    name: str,
) -> Plan:
    """A plan, and behind its steps those that put each layer under its constraint.

    Layers that one step takes are those with equal constraints; steps come in the order in which the graph first asks
    for them.

    Args:
        plan: what comes first: steps that preserve the function.
        nodes: the layers' nodes, in graph order; nodes that share a weight each stand here with its constraint.
        constraints: of each; None leaves it as it is.
        config: the other options of `constrain_weights`, such as {"solver": "second_order"}.
        name: of the new plan.
    """
    taken: dict[str, list[str]] = {}
    for node, constraint in zip(nodes, constraints, strict=True):
        if constraint is not None:
            taken.setdefault(as_text(constraint), []).append(escape(node))  # a scope holds patterns
    steps = [Step(METHOD, {"constraint": text, **config}, Scope(only=tuple(names))) for text, names in taken.items()]
    return Plan(name, (*plan.steps, *steps))
