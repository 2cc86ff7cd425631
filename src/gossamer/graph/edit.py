"""Small edits that several passes need: new initializers, new nodes, constants read as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

NO_ATTRIBUTES: Mapping[str, int | tuple[int, ...]] = MappingProxyType({})
_TAKEN: WeakKeyDictionary[ir.Graph, set[str]] = WeakKeyDictionary()  # names of values, by graph; forgotten with it


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, or None if the value is computed, fed or absent."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is known to be a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def fresh_name(graph: ir.Graph, wanted: str) -> str:
    """`wanted`, or the first of `wanted_1`, `wanted_2`, ... that no value of the graph or its subgraphs bears yet.

    A name given once is not given again.
    """
    taken = _taken_names(graph)
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


def _taken_names(graph: ir.Graph) -> set[str]:
    """Gathered at a graph's first new name, as searching the graph for each of them takes a minute for 500 layers.

    A clone starts anew, so that the names a pass gives do not depend on what other passes did to the original.
    """
    if graph not in _TAKEN:
        _TAKEN[graph] = {name for part in (graph, *graph.subgraphs()) for name in _names(part) if name}
    return _TAKEN[graph]


def _names(graph: ir.Graph) -> Iterator[str | None]:
    """A subgraph may not use a name of the graph around it again, so both are asked."""
    yield from (value.name for value in graph.inputs)
    yield from graph.initializers
    yield from (output.name for node in graph for output in node.outputs)


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register a new constant; the name is made unique."""
    name = fresh_name(graph, name)
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def shared_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer of this name with these very numbers if there is one, so that tied weights stay tied; else new."""
    known = graph.initializers.get(name)
    stored = constant(known)
    if known is not None and stored is not None and stored.dtype == array.dtype and np.array_equal(stored, array):
        return known
    return add_initializer(graph, name, array)


def add_node(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    output_name: str,
    dtype: ir.DataType,
    shape: ir.Shape | None,
    attributes: Mapping[str, int | tuple[int, ...]] = NO_ATTRIBUTES,
    domain: str = "",
) -> ir.Value:
    """Insert a node with one output in front of another node; the name is made unique, the node is named after it."""
    graph = graph_of(before)
    output_name = fresh_name(graph, output_name)
    node = ir.node(op_type, inputs, attributes, domain=domain, name=f"{output_name}/{op_type}")
    output = node.outputs[0]
    output.name, output.dtype, output.shape = output_name, dtype, shape
    graph.insert_before(before, node)
    return output


def take_over(node: ir.Node, result: ir.Value) -> None:
    """Put `result` in the place of a node's only output, under its name, and remove the node."""
    output = node.outputs[0]
    name = output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph_of(node).remove(node, safe=True)
    result.name = name


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that holds a node.

    Raises:
        ValueError: none does.
    """
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"node {node.name} is in no graph")
    return node.graph


def drop_unused(model: ir.Model) -> None:
    """Remove nodes and initializers of the main graph that nothing uses any more; subgraphs are left intact."""
    for node in reversed(model.graph):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del model.graph.initializers[name]


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def attribute_float(node: ir.Node, name: str, default: float) -> float:
    """A float attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()
