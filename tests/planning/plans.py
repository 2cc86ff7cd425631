"""What a plan says of each layer."""

from __future__ import annotations

from fnmatch import fnmatchcase

import msgspec

from gossamer.nouns.plan import Plan
from gossamer.passes.constrain_weights import Config
from gossamer.planning.allocated import METHOD


def constraints_in(plan: Plan, nodes: list[str]) -> dict[str, str]:
    """Node -> the constraint that it is put under."""
    found = {}
    for step in plan.steps:
        if step.method == METHOD:
            config = msgspec.convert(step.config, Config)
            taken = (node for node in nodes if any(fnmatchcase(node, pattern) for pattern in step.scope.only))
            found |= {node: config.text_of(node) for node in taken}
    return found
