"""An allocation as a plan: one sentence, with the constraint that most layers have and the layers that differ."""

from __future__ import annotations

from collections import Counter
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
    """A plan, and behind its steps one that puts each layer under its constraint; none where no layer has one.

    All of them in one step, as it solves in the order in which layers act: see `gossamer.solving`.

    Args:
        plan: what comes first: steps that preserve the function.
        nodes: the layers' nodes, in graph order; nodes that share a weight each stand here with its constraint.
        constraints: of each; None leaves it as it is.
        config: the other options of `constrain_weights`, such as {"solver": "second_order"}.
        name: of the new plan.
    """
    texts = {
        escape(node): as_text(constraint)  # scopes hold patterns
        for node, constraint in zip(nodes, constraints, strict=True)
        if constraint is not None
    }
    if not texts:
        return Plan(name, plan.steps)
    (most, _), *_ = Counter(texts.values()).most_common(1)
    others = {node: text for node, text in texts.items() if text != most}
    options = {"constraint": most, **({"by_layer": others} if others else {}), **config}
    return Plan(name, (*plan.steps, Step(METHOD, options, Scope(only=tuple(texts)))))
