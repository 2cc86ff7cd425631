"""Peak activation memory: the most bytes of tensors alive at once, in the order the graph is written."""

from __future__ import annotations

import onnx_ir as ir

from gossamer.measuring.shapes import Shapes

# outputs that are the input's bytes under another shape; a runtime does not copy them
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})


def peak_activation_bytes(graph: ir.Graph, shapes: Shapes) -> int | None:
    """The peak over all nodes of the bytes alive while a node runs, or None if a shape is unknown.

    A tensor lives from the node that makes it (a graph input: from the start) to its last reader (a graph output: to
    the end); a node's inputs and outputs are alive together. Initializers, and what is computed from them alone, are
    not counted. Views share memory. Between the two halves of a QDQ pair a tensor is counted once, as integers, as in
    a runtime that fuses them. Workspaces of kernels are not known to the graph and not counted.
    """
    owners = _owners(graph)
    sizes = _sizes(owners, shapes)
    if any(size is None for size in sizes.values()):
        return None
    last = _last_use(graph, owners)
    alive = {owners[value] for value in graph.inputs if value in owners}
    current = peak = sum(sizes[owner] or 0 for owner in alive)
    for position, node in enumerate(graph):
        made = {owners[output] for output in node.outputs if output in owners} - alive
        alive |= made
        current += sum(sizes[owner] or 0 for owner in made)
        peak = max(peak, current)
        ended = {owner for owner in alive if last.get(owner, -1) <= position}
        alive -= ended
        current -= sum(sizes[owner] or 0 for owner in ended)
    return peak


def _owners(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Each activation -> the tensor whose memory it shares, itself if none. Constants are not in it."""
    owners = {value: value for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        if not any(used in owners for used in reads(node)) and (node.op_type == "Constant" or node.inputs):
            continue  # computed from constants alone
        source = node.inputs[0] if node.inputs else None
        for index, output in enumerate(node.outputs):
            shared = index == 0 and source is not None and source in owners and _shares(node, source)
            if output.name:
                owners[output] = owners[source] if shared and source is not None else output
    return owners


def _shares(node: ir.Node, source: ir.Value) -> bool:
    if node.op_type in VIEWS or node.op_type == "DequantizeLinear":
        return True
    only_quantized = not source.is_graph_output() and all(
        user.op_type == "QuantizeLinear" for user in source.consumers()
    )
    return node.op_type == "QuantizeLinear" and only_quantized


def reads(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node, and what its subgraphs read from outside."""
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = ir.traversal.RecursiveGraphIterator(attribute.as_graph())
            found += [value for child in inner for value in child.inputs if value is not None]
            found += list(attribute.as_graph().outputs)
    return found


def _last_use(graph: ir.Graph, owners: dict[ir.Value, ir.Value]) -> dict[ir.Value, int]:
    """Owner -> position of the last node that reads its memory; the end of the graph for outputs."""
    last: dict[ir.Value, int] = {}
    for position, node in enumerate(graph):
        for value in reads(node):
            if value in owners:
                last[owners[value]] = position
    for value in graph.outputs:
        if value in owners:
            last[owners[value]] = len(graph)
    return last


def _sizes(owners: dict[ir.Value, ir.Value], shapes: Shapes) -> dict[ir.Value, int | None]:
    """Owner -> bytes: the smallest of the tensors that share it, as a fused QDQ pair keeps the integers."""
    sizes: dict[ir.Value, int | None] = dict.fromkeys(owners.values())
    for value, owner in owners.items():
        size, so_far = shapes.bytes_of(value.name or ""), sizes[owner]
        if size is not None and (so_far is None or size < so_far):
            sizes[owner] = size
    return sizes
