"""Evaluate everything that does not depend on the inputs once, and store the result.

The runtime itself does the arithmetic, so the stored values are those it would have computed at load time. Not
folded: random operators, nodes with subgraphs, DequantizeLinear (stored integers must stay small), nodes whose output
the model returns, and results over 1 MB that are larger than the constants they replace. A constant that other nodes
still read is not replaced, so a tied weight with a Transpose in front of one of its readers is kept tied.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, in_scope
from gossamer.runtimes.onnxruntime import open_session

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = True
NEEDS_SAMPLES = False
STORES: tuple[str, ...] = ()

_KEPT = frozenset({"DequantizeLinear", "Bernoulli", "Multinomial"})
_KEPT_PARTS = ("Random", "Sequence", "Optional")  # random values, and results that are not tensors


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        growth_bytes: a result up to this size is stored even if it is larger than what it replaces.
    """

    growth_bytes: int = 1_000_000


TIED_BYTES = 1_024  # a weight with other readers stays one weight: what is computed of it must be next to nothing


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Every model is fine."""


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Replace constant nodes of the main graph by initializers. Subgraphs are left intact inside.

    Raises:
        CandidateError: the runtime refuses the constant part of the graph.
    """
    clone = model.clone()
    graph = clone.ir.graph
    shapes = _static_shapes(graph, scope)
    for node, array in shapes:
        _replace(graph, node, [array])
    found = _constant_nodes(graph, config, scope)
    folded = 0
    if found:
        arrays = _evaluate(clone, found)
        for node in found:
            values = [arrays.get(output.name or "") for output in node.outputs]
            if _is_worth_it(node, values, set(found), config):
                _replace(graph, node, [value for value in values if value is not None])
                folded += 1
    if not shapes and not folded:
        return Result(model, False)
    return Result(clone, True, (f"fold_constants: {folded + len(shapes)} nodes became constants",))


def ensures(before: Model, result: Result, config: Config) -> None:
    """The interface is the same and no node was added.

    Raises:
        CandidateError: it is not.
    """
    for kind in ("inputs", "outputs"):
        old, new = ([value.name for value in getattr(model.ir.graph, kind)] for model in (before, result.model))
        if old != new:
            raise CandidateError(f"fold_constants changed the {kind} of {before.name} from {old} to {new}")


def _static_shapes(graph: ir.Graph, scope: Scope) -> list[tuple[ir.Node, np.ndarray]]:
    """Shape nodes whose input has no free dimension."""
    found = []
    for node in graph:
        if (node.domain, node.op_type) != ("", "Shape") or not in_scope(scope, node):
            continue
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is None or not shape.is_static() or node.outputs[0].is_graph_output():
            continue
        start, end = (node.attributes[key].as_int() if key in node.attributes else None for key in ("start", "end"))
        found.append((node, np.array(shape.numpy()[start:end], np.int64)))
    return found


def _constant_nodes(graph: ir.Graph, config: Config, scope: Scope) -> list[ir.Node]:
    """Nodes that depend on constants only, in order, without those known to be too large to be worth computing."""
    known: set[ir.Value] = set()
    found = []
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if not all(value in known or _is_stored(value) for value in inputs):
            continue
        if not in_scope(scope, node) or not _may_fold(node):
            continue
        limit = max(config.growth_bytes, sum(_bytes(value) for value in inputs))
        if any(_bytes(output) > limit for output in node.outputs):
            continue
        known.update(node.outputs)
        found.append(node)
    return found


def _is_stored(value: ir.Value) -> bool:
    """An initializer that the caller cannot override; asked without reading its data."""
    return value.const_value is not None and not value.is_graph_input()


def _may_fold(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type in _KEPT or any(part in node.op_type for part in _KEPT_PARTS):
        return False
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return False
    return not any(output.is_graph_output() for output in node.outputs)


def _bytes(value: ir.Value) -> int:
    """Size of a tensor as far as it is known, else 0."""
    if value.const_value is not None:
        return value.const_value.nbytes
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return 0
    return int(np.prod(value.shape.numpy(), dtype=np.int64) * value.dtype.itemsize)


def _evaluate(model: Model, nodes: Iterable[ir.Node]) -> dict[str, np.ndarray]:
    """All storable outputs of these nodes, by name, computed in one session without any optimisation."""
    wanted = [output for node in nodes for output in node.outputs if output.name]
    part = ir.convenience.extract(model.ir.graph, [], wanted)
    extracted = Model(ir.Model(part, ir_version=model.ir.ir_version), f"the constants of {model.name}")
    session = open_session(extracted, optimize=False)
    names = [name for name, dtype in session.outputs.items() if dtype is not None and dtype.kind in "fiub"]
    return dict(zip(names, session.run({}, names), strict=True)) if names else {}


def _is_worth_it(node: ir.Node, values: list[np.ndarray | None], found: set[ir.Node], config: Config) -> bool:
    """Inputs are stored by now, every used output has a value, and the file does not grow by much."""
    if not all(_is_stored(value) for value in node.inputs if value is not None):
        return False
    if any(array is None for array, output in zip(values, node.outputs, strict=True) if output.name):
        return False
    replaced = sum(_bytes(value) for value in set(node.inputs) if value is not None and set(value.consumers()) <= found)
    tied = any(
        value.is_initializer() and not set(value.consumers()) <= found for value in node.inputs if value is not None
    )
    growth_bytes = min(config.growth_bytes, TIED_BYTES) if tied else config.growth_bytes
    return sum(array.nbytes for array in values if array is not None) <= max(growth_bytes, replaced)


def _replace(graph: ir.Graph, node: ir.Node, arrays: list[np.ndarray]) -> None:
    """Initializers take over the names and readers of a node's outputs; the node and unread constants go."""
    for output, array in zip([output for output in node.outputs if output.name], arrays, strict=True):
        name = output.name
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        output.replace_all_uses_with(value)
        if value.uses():
            graph.initializers[str(name)] = value
    inputs = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    _drop_unread(graph, inputs)


def _drop_unread(graph: ir.Graph, values: list[ir.Value]) -> None:
    """Remove initializers among these that nothing reads any more."""
    for value in values:
        if value.is_initializer() and not value.uses() and not value.is_graph_output() and value.name:
            graph.initializers.pop(value.name, None)
