"""The walk over a graph's nodes that writes the code of a `torch.fx.GraphModule`."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from torch import fx

from gossamer.errors import ModelError
from gossamer.graph.edit import attribute_int
from gossamer.training.names import attach, attribute_path
from gossamer.training.operators.contract import Operator, plain
from gossamer.training.operators.controls import CONTROLS
from gossamer.training.operators.size_arithmetic import flat
from gossamer.training.operators.sizes import FILLING, OF_TENSORS, SIZES, lengths
from gossamer.training.operators.table import find
from gossamer.training.tensors import TORCH_TYPES, number_of
from gossamer.training.values import Held, Values, holds_node, python_name

MOST_NUMBERS = 64  # larger integer constants are tables, not shapes
_WHOLE = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


class Lowered(NamedTuple):
    """A graph's module, and the values of the graphs around it that it takes behind its own inputs."""

    module: fx.GraphModule
    captured: list[ir.Value]


def lowered_graph(source: ir.Graph, opsets: Mapping[str, int], where: str, outer: Values | None = None) -> Lowered:
    """A graph, or a node's subgraph, as a module; that of a subgraph always gives a tuple.

    Raises:
        ModelError: a node's attributes have no counterpart, or a value is made by no node.
    """
    values = Values(source, opsets, where, outer)
    for value in source.inputs:
        values.take(value)
    for node in source:
        _lower_node(values, node)
    outputs = tuple(values.tensor(value) for value in source.outputs)
    values.graph.output(outputs[0] if len(outputs) == 1 and outer is None else outputs)
    _drop_unused(values.graph)
    module = fx.GraphModule(values.root, values.graph, class_name=python_name(source.name or "Graph"))
    module.meta["initializers"] = values.initializers
    module.meta["subgraphs"] = values.subgraphs
    return Lowered(module, values.captured)


def _lower_node(values: Values, node: ir.Node) -> None:
    if node.domain == "" and node.op_type == "Constant":
        values.hold_constant(node.outputs[0], _content(node, values.where))
    elif node.domain == "" and node.op_type == "Identity":
        values.hold_same(node.outputs[0], _first_input(node, values.where))
    elif node.domain == "" and node.op_type in CONTROLS:
        _lower_control(values, node)
    elif _is_arithmetic_of_sizes(values, node):
        _lower_sizes(values, node)
    else:
        _lower_operator(values, node)


# --- operators on tensors


def _lower_operator(values: Values, node: ir.Node) -> None:
    how = find(node.domain, node.op_type, values.opsets.get(node.domain, 1))
    if how is None:
        raise ModelError(f"{values.where}: {node.op_type} {node.name} has no counterpart in torch")
    obstacle = how.obstacle(node)
    if obstacle:
        raise ModelError(f"{values.where}: {node.op_type} {node.name} cannot be lowered: {obstacle}")
    args = [_argument(values, how, index, value) for index, value in enumerate(node.inputs)]
    while args and args[-1] is None:
        args.pop()
    several = how.several if len(node.outputs) > 1 else None
    function = several or how.function
    named = _named(values, node, function, how.attributes(node))
    if how.training:
        named["training"] = values.mode()
    if how.like:
        named["like"] = values.first_input()
    integers = _integers_made(values, how, node)
    made = values.call(function, tuple(args), named, _label(node))
    if several is None and not how.gives_tuple:
        values.hold(node.outputs[0], Held("integers" if integers else "tensor", made, integers))
        return
    for index, output in enumerate(node.outputs):
        carried = integers if index == 0 or how.integers == "moved" else None
        item = values.call(operator.getitem, (made, index), {}, f"{made.name}_{index}")
        values.hold(output, Held("integers" if carried else "tensor", item, carried))


def _argument(values: Values, how: Operator, index: int, value: ir.Value | None) -> Any:
    if value is None:
        return None
    if index in how.sizes:
        return values.numbers(value)
    tensor = values.constant(value)
    if index in how.scalars and tensor is not None and len(tensor.shape) == 0:
        return number_of(tensor)
    carries = how.carries == "all" or index in how.carries
    return values.floats(value) if carries else values.tensor(value)


def _named(
    values: Values, node: ir.Node, function: Callable[..., Any], attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """What is given by name: the attributes that are not the function's own defaults.

    Raises:
        ModelError: the function does not know an attribute.
    """
    known = _defaults(function)
    unknown = sorted(set(attributes) - set(known))
    if unknown:
        what = f"attribute {', '.join(unknown)} of {node.op_type} {node.name}"
        raise ModelError(f"{values.where}: {what} has no counterpart in torch")
    return {name: value for name, value in attributes.items() if known[name] != value}


@cache
def _defaults(function: Callable[..., Any]) -> Mapping[str, Any]:
    """What a function can be given by name, with its defaults; torch's own functions are given no attributes."""
    try:
        return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    except ValueError:
        return {}


def _integers_made(values: Values, how: Operator, node: ir.Node) -> torch.dtype | None:
    """What the first output's integers stand for, if it holds integers in floats."""
    first = node.inputs[0] if node.inputs else None
    if how.integers == "moved" and first is not None and values.is_held_as(first, "integers"):
        return values.held(first).dtype
    return _stored_type(node) if how.integers == "made" else None


def _stored_type(node: ir.Node) -> torch.dtype:
    """The integer type of a node's first output: as the graph says, else that of its zero point."""
    named = node.attributes.get("output_dtype")
    if named is not None and named.as_int():
        return TORCH_TYPES[ir.DataType(named.as_int())]
    zero_point = node.inputs[2] if node.op_type == "QuantizeLinear" and len(node.inputs) > 2 else None
    dtype = node.outputs[0].dtype or (None if zero_point is None else zero_point.dtype)
    return torch.uint8 if dtype is None else TORCH_TYPES[dtype]


# --- shape arithmetic


def _is_arithmetic_of_sizes(values: Values, node: ir.Node) -> bool:
    """Whether a node computes with sizes: one of its inputs is numbers, and the others may be."""
    if node.domain != "" or node.op_type not in SIZES:
        return False
    if node.op_type in OF_TENSORS:
        return True
    given = [value for value in node.inputs if value is not None]
    whole = [_is_whole(values, value) for value in given]
    if node.op_type in FILLING:
        return all(whole) and all(_is_known(values, value) for value in given) and _fills_little(values, node)
    return any(whole) and all(is_ or _is_scalar(values, value) for is_, value in zip(whole, given, strict=True))


def _is_whole(values: Values, value: ir.Value) -> bool:
    """Whether a value is held as numbers, or may be, as a small constant of integers."""
    tensor = values.constant(value)
    if tensor is None:
        return values.is_held_as(value, "numbers")
    return tensor.dtype in _WHOLE and math.prod(tensor.shape.numpy()) <= MOST_NUMBERS


def _is_known(values: Values, value: ir.Value) -> bool:
    if values.constant(value) is not None:
        return True
    return values.is_held_as(value, "numbers") and values.held(value).is_known


def _fills_little(values: Values, node: ir.Node) -> bool:
    """Whether a node that makes numbers of a size makes few of them, and whole ones."""
    filling = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and (filling is None or filling.as_tensor().dtype not in _WHOLE):
        return False
    given = [values.numbers(value) for value in node.inputs if value is not None]
    if node.op_type == "Range":
        start, limit, delta = flat(tuple(given))
        return bool(abs(limit - start) <= MOST_NUMBERS * abs(delta))
    return bool(math.prod(given[-1]) <= MOST_NUMBERS)


def _is_scalar(values: Values, value: ir.Value) -> bool:
    """Whether a value is a single constant: a factor of sizes, and no weight."""
    tensor = values.constant(value)
    return tensor is not None and math.prod(tensor.shape.numpy()) == 1


def _lower_sizes(values: Values, node: ir.Node) -> None:
    """Shape arithmetic: done now if all of it is known, else a call on Python numbers."""
    function = SIZES[node.op_type]
    named = _named(values, node, function, plain(node))
    first = _first_input(node, values.where)
    if node.op_type in OF_TENSORS and values.is_held_as(first, "numbers"):
        _lower_shape_of_numbers(values, node, first)
        return
    if node.op_type in OF_TENSORS:
        args: tuple[Any, ...] = (values.floats(first),)
    else:
        args = tuple(None if value is None else values.numbers(value) for value in node.inputs)
    if len(node.outputs) > 1:
        named["count"] = len(node.outputs)
    made = values.call(function, args, named, _label(node)) if holds_node(args) else function(*args, **named)
    if len(node.outputs) == 1:
        values.hold(node.outputs[0], Held("numbers", made))
        return
    for index, output in enumerate(node.outputs):
        if isinstance(made, fx.Node):
            item: Any = values.call(operator.getitem, (made, index), {}, f"{made.name}_{index}")
        else:
            item = made[index]
        values.hold(output, Held("numbers", item))


def _lower_shape_of_numbers(values: Values, node: ir.Node, value: ir.Value) -> None:
    """The shape of a shape: as the graph says, or asked at run time."""
    held = values.held(value)
    if held.is_known:
        made: Any = lengths(held.what)
    elif value.shape is not None and value.shape.is_static():
        made = tuple(map(int, value.shape.numpy()))
    else:
        made = values.call(lengths, (held.what,), {}, _label(node))
    if node.op_type == "Size":
        made = values.call(math.prod, (made,), {}, _label(node)) if isinstance(made, fx.Node) else math.prod(made)
    elif node.attributes:
        span = slice(attribute_int(node, "start", 0), attribute_int(node, "end", MOST_NUMBERS))
        made = (
            values.call(operator.getitem, (made, span), {}, _label(node)) if isinstance(made, fx.Node) else made[span]
        )
    values.hold(node.outputs[0], Held("numbers", made))


# --- nodes with subgraphs


def _lower_control(values: Values, node: ir.Node) -> None:
    """Each subgraph is a module, given by name with what it captures of the graphs around it."""
    inputs = tuple(None if value is None else values.tensor(value) for value in node.inputs)
    named = plain(node)
    for name, attribute in node.attributes.items():
        if attribute.type != ir.AttributeType.GRAPH:
            continue
        part = lowered_graph(attribute.as_graph(), values.opsets, values.where, values)
        path = attribute_path(f"{_label(node)}_{name}", values.root)
        attach(values.root, path, part.module)
        values.subgraphs[path] = (str(node.outputs[0].name), name)
        module = values.graph.create_node("get_attr", path, name=path)
        named[name] = (module, tuple(values.held(value).what for value in part.captured))
    made = values.call(CONTROLS[node.op_type], inputs, named, _label(node))
    for index, output in enumerate(node.outputs):
        item = values.call(operator.getitem, (made, index), {}, f"{made.name}_{index}")
        values.hold(output, Held("tensor", item))


# --- what is asked of nodes


def _content(node: ir.Node, where: str) -> ir.TensorProtocol:
    """The tensor of a Constant node.

    Raises:
        ModelError: it holds text, or a sparse tensor.
    """
    attribute = next(iter(node.attributes.values()))
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor()
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return ir.tensor(attribute.value, dtype=ir.DataType.FLOAT)
    if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
        return ir.tensor(attribute.value, dtype=ir.DataType.INT64)
    raise ModelError(f"{where}: Constant {node.name} holds {attribute.type.name}, which has no counterpart in torch")


def _first_input(node: ir.Node, where: str) -> ir.Value:
    value = node.inputs[0] if node.inputs else None
    if value is None:
        raise ModelError(f"{where}: {node.op_type} {node.name} lacks its input; export the model again")
    return value


def _label(node: ir.Node) -> str:
    return python_name(node.name or f"{node.op_type.lower()}_{node.outputs[0].name}")


def _drop_unused(graph: fx.Graph) -> None:
    """Remove calls whose result nobody reads."""
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)
