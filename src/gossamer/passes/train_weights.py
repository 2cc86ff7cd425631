"""Training within the form that weights have: integers, tables and the rest move until the outputs are right again.

What rounds is what the steps before put there, and stays there; training happens in a twin of the graph (see
`training.twin`) that computes what the runtime computes. Zeros stay zeros, and shared values shared. The samples, the
teacher and torch are those of the `School` that the evidence names, so that this file needs none of them.

Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference"; learned steps: Esser et al. 2020, "Learned step size quantization".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.graph.qdq import integers_behind
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.nouns.schooling import Schooling
from gossamer.passes.contract import Result, in_scope, trained

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = False
NEEDS_SAMPLES = True
STORES: tuple[str, ...] = ()


Config = Schooling


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Nothing: a graph in which there is nothing to train comes back as it is."""


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Train what the nodes in the scope read; what is all in float, or gains nothing, comes back as it is.

    Raises:
        OptionError: there are no training samples.
        ModelError: an operator has no gradient, or no counterpart in torch.
        CandidateError: the loss became NaN, or memory does not suffice.
    """
    if model.reference is None and not any(integers_behind(node) for node in model.ir.graph):
        return Result(model, False, ("train_weights: no step before gave weights another form",))
    if any(value.dtype == ir.DataType.FLOAT16 for value in model.ir.graph.initializers.values()):
        return Result(model, False, ("train_weights: what is stored in float16 is not trained",))
    nodes = None if scope == Scope() else frozenset(node.name or "" for node in model.ir.graph if in_scope(scope, node))
    if nodes is not None and not nodes:
        return Result(model, False)
    result, note = trained("train_weights", model, config, nodes, evidence)
    if result is model:
        return Result(model, False, (f"train_weights: {note}",))
    return Result(replace(result, reference=model.reference), True, (f"train_weights: {note}",))


def ensures(before: Model, result: Result, config: Config) -> None:
    """The graph is the same, and every constant has the type and shape that it had.

    Raises:
        CandidateError: names one that has not.
    """
    known = before.ir.graph.initializers
    for name, value in result.model.ir.graph.initializers.items():
        if name not in known or _kind(known[name]) != _kind(value):
            raise CandidateError(f"training changed the type or shape of {name}")


def _kind(value: ir.Value) -> tuple[object, ...]:
    tensor = value.const_value
    return () if tensor is None else (tensor.dtype, tuple(tensor.shape.numpy()))
