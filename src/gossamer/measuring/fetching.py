"""Tensors from inside a graph: a copy of the model that gives them as outputs too."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.errors import ModelError
from gossamer.nouns.model import Model


def with_outputs(model: Model, names: Sequence[str], what: str) -> Model:
    """A copy that gives these results of its nodes beside its own outputs.

    Args:
        what: such tensors have, for the message.

    Raises:
        ModelError: no node of the main graph computes one of them.
    """
    clone = model.clone()
    graph = clone.ir.graph
    values = {value.name: value for node in graph for value in node.outputs}
    outputs = {value.name for value in graph.outputs}
    for name in names:
        if name not in values:
            raise ModelError(
                f"{model.name}: no node of the main graph computes {name!r}; only such tensors have {what}"
            )
        if name not in outputs:
            graph.outputs.append(values[name])
    return clone
