"""A graph of any origin gets one clean form that every pass relies on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, NameFixPass, RemoveInitializersFromInputsPass

from gossamer.errors import GossamerError, ModelError
from gossamer.intake.opset import IR_VERSION, infer_shapes, known_operators, raise_opset
from gossamer.nouns.model import Model

OLDEST_OPSET = 11


class _Names:
    """Names for what has none: the operator for a node."""

    def generate_node_name(self, node: ir.Node) -> str:
        return node.name or node.op_type

    def generate_value_name(self, value: ir.Value) -> str:
        return value.name or "value"


def normalise(model: Model) -> Model:
    """A copy of a model in clean form, equal in function.

    Of the main graph: nodes and values named uniquely; constants are initializers, and no initializer is an
    input; no Identity, inference Dropout, unused node or unused initializer; functions inlined; opset 21 unless it is
    higher or conversion failed; types and shapes inferred. Weights used in several places stay one initializer.
    Subgraphs of If and Loop are left as they are but for the opset. What was changed or could not be is in `notes`.

    Raises:
        ModelError: an opset below 13 that cannot be converted, or a graph that onnx cannot follow.
    """
    try:
        return _normalised(model)
    except GossamerError:
        raise
    except Exception as error:  # a damaged graph breaks onnx's and onnx_ir's functions in many ways
        raise ModelError(f"{model.name}: the graph is damaged: {root_cause(error)}; export the model again") from error


def root_cause(error: BaseException) -> str:
    """The first line of the first cause; what wraps it repeats whole messages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _normalised(model: Model) -> Model:
    graph_model = model.ir.clone()
    graph_model.ir_version = max(graph_model.ir_version, IR_VERSION)
    notes = [*model.notes, *_inline(graph_model)]
    notes += _free_initializers(graph_model)
    _lift_constants(graph_model.graph)
    NameFixPass(_Names())(graph_model)
    graph_model, note = raise_opset(graph_model, model.name)
    notes += [note] if note else []
    _lift_constants(graph_model.graph)
    _drop_idle_nodes(graph_model.graph)
    _drop_unused(graph_model.graph)
    NameFixPass(_Names())(graph_model)
    infer_shapes(graph_model)
    return replace(model, ir=graph_model, notes=(*notes, *_unknown_notes(graph_model)))


def _inline(model: ir.Model) -> list[str]:
    if not model.functions:
        return []
    try:
        InlinePass()(model.clone())  # a trial, as a failure leaves the graph half done
    except Exception as error:  # onnx_ir wraps what it raises in its own types
        return [f"functions were not inlined: {root_cause(error)}"]
    InlinePass()(model)
    return []


def _free_initializers(model: ir.Model) -> list[str]:
    """Inputs with a default value become constants."""
    names = [value.name or "" for value in model.graph.inputs if value.is_initializer()]
    RemoveInitializersFromInputsPass()(model)
    return [f"{len(names)} inputs with a default value are constants now: {', '.join(names[:5])}"] if names else []


def sort_nodes(model: ir.Model, name: str) -> None:
    """Put every node behind those it reads from, as most code takes for granted; sorted nodes keep their order.

    Raises:
        ModelError: the graph has a cycle.
    """
    seen: set[ir.Node] = set()
    for node in model.graph:
        if any(other.graph is model.graph and other not in seen for other in _read_from(node)):
            break
        seen.add(node)
    else:
        return
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError(f"{name}: the graph has a cycle; export the model again") from error


def _read_from(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes whose outputs a node and its subgraphs read."""
    for reader in (node, *_inner_nodes(node)):
        for value in reader.inputs:
            producer = None if value is None else value.producer()
            if producer is not None:
                yield producer


def _inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """All nodes of a node's subgraphs."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from ir.traversal.RecursiveGraphIterator(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from ir.traversal.RecursiveGraphIterator(graph)


def _lift_constants(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type != "Constant" or node.domain != "" or node.outputs[0].is_graph_output():
            continue
        output, tensor = node.outputs[0], _constant(node)
        if tensor is None or len(node.attributes) != 1:
            continue
        value = ir.Value(
            name=output.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        output.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node; None for text and sparse tensors, which stay nodes."""
    name, attribute = next(iter(node.attributes.items()), ("", None))
    if attribute is None or attribute.is_ref() or attribute.value is None:
        return None
    if name == "value":
        return _renamable(attribute.as_tensor(), node.outputs[0].name or "")
    if name in ("value_int", "value_ints"):
        return ir.Tensor(np.array(attribute.value, np.int64))
    if name in ("value_float", "value_floats"):
        return ir.Tensor(np.array(attribute.value, np.float32))
    return None


def _renamable(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol | None:
    """The same numbers under another name; the tensor itself is shared with the graph that was given."""
    return None if tensor.dtype == ir.DataType.STRING else ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)


def _drop_idle_nodes(graph: ir.Graph) -> None:
    """Remove Identity and inference Dropout, which hand their input on."""
    for node in list(graph):
        if node.domain != "" or node.op_type not in ("Identity", "Dropout") or not _is_idle(node):
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source is None:
            continue
        if not output.is_graph_output():
            output.replace_all_uses_with(source)
        elif not _rename_output(graph, source, output):
            continue
        graph.remove(node, safe=True)


def _is_idle(node: ir.Node) -> bool:
    if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
        return False
    training = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    return training is None or (training.const_value is not None and not training.const_value.numpy().any())


def _rename_output(graph: ir.Graph, source: ir.Value, output: ir.Value) -> bool:
    """Let what a node hands on be the graph's output itself, under the output's name, where that is possible."""
    producer = source.producer()
    if producer is None or producer.graph is not graph or source.is_graph_output() or output not in graph.outputs:
        return False
    name, output.name = output.name, f"{output.name}/handed_on"
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    source.name = name
    return True


def _drop_unused(graph: ir.Graph) -> None:
    """Remove what no output depends on."""
    for node in reversed(list(graph)):
        if node.outputs and not any(value.uses() or value.is_graph_output() for value in node.outputs):
            for inner in _inner_nodes(node):  # its subgraphs read values of the main graph
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _unknown_notes(model: ir.Model) -> list[str]:
    unknown = Counter((node.domain, node.op_type) for node, known in known_operators(model) if not known)
    return [
        f"{count} nodes {op_type} of {f'domain {domain}' if domain else 'an unknown kind'} are kept as they are"
        for (domain, op_type), count in sorted(unknown.items())
    ]
