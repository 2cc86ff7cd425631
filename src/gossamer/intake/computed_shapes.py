"""Shapes that a converter computes at run time become constants where only the batch axis is free."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gossamer.intake.opset import IR_VERSION, infer_shapes

_PRIMES = (1_009, 1_013, 1_019, 1_021, 1_031, 1_033, 1_039, 1_049)  # sizes that no constant shape has by accident
_MOST_SYMBOLS = 4  # two disjoint sets of sizes for them
_MOST_ROUNDS = 8


def fix_shapes(model: ir.Model) -> None:
    """Give Reshape nodes constant shapes where just one axis depends on a free one; the graph is edited.

    tf2onnx computes such shapes from Shape nodes at run time, or gives the batch axis as -1, where its name is lost.
    """
    for _ in range(_MOST_ROUNDS):
        infer_shapes(model)
        if not [node for node in model.graph if node.op_type == "Reshape" and _fix_shape(model.graph, node)]:
            return


def _fix_shape(graph: ir.Graph, node: ir.Node) -> bool:
    """One Reshape, if possible; whether it was changed."""
    source, operand = node.inputs[0], node.inputs[1]
    if source is None or operand is None or source.shape is None or node.domain != "":
        return False
    if "allowzero" in node.attributes and node.attributes["allowzero"].as_int():
        return False
    sizes = (
        _computed(graph, node, operand) if operand.const_value is None else _named(source.shape, operand.const_value)
    )
    if sizes is None:
        return False
    constant = ir.tensor(np.array(sizes, np.int64), name=f"{node.outputs[0].name}/shape")
    value = ir.Value(
        name=constant.name,
        shape=ir.Shape(constant.shape.numpy()),
        type=ir.TensorType(constant.dtype),
        const_value=constant,
    )
    graph.initializers[str(value.name)] = value
    node.replace_input_with(1, value)
    return True


def _named(source: ir.Shape, shape: ir.TensorProtocol) -> list[int] | None:
    """The same constant with 0, which hands the first axis on, for a first -1 that comes to the same."""
    sizes = [int(size) for size in shape.numpy()]
    if len(source) == 0 or not isinstance(source[0], ir.SymbolicDim) or source[0].value is None or sizes[:1] != [-1]:
        return None
    rest = [size for size in list(source)[1:] if isinstance(size, int)]
    if len(rest) < len(source) - 1 or min(sizes[1:], default=1) <= 0 or np.prod(rest) != np.prod(sizes[1:]):
        return None
    return [0, *sizes[1:]]


def _computed(graph: ir.Graph, node: ir.Node, operand: ir.Value) -> list[int] | None:
    """A constant for a shape computed from Shape nodes, if just one axis depends on a free one; names that axis."""
    found, source = _sources(operand), node.inputs[0]
    symbols = sorted({str(size) for shape in (found or {}).values() for size in shape if isinstance(size, str)})
    if not found or not symbols or len(symbols) > _MOST_SYMBOLS or source is None or source.shape is None:
        return None
    runs = []
    for primes in (_PRIMES[:_MOST_SYMBOLS], _PRIMES[_MOST_SYMBOLS:]):
        sizes = dict(zip(symbols, primes, strict=False))
        runs.append(_resolved(_evaluate(graph, operand, found, sizes), _names(source.shape), sizes))
    first, second = runs
    moving = [axis for axis, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]
    if len(moving) != 1:
        return None
    axis = moving[0]
    symbol = dict(zip(_PRIMES, symbols, strict=False)).get(first[axis])
    handed_on = axis == 0 and symbol is not None and _names(source.shape)[:1] == [symbol]
    if not handed_on and min(first) < 0:
        return None
    shape = [symbol if place == axis else (size if size >= 0 else None) for place, size in enumerate(first)]
    node.outputs[0].shape = ir.Shape(shape)
    return [(0 if handed_on else -1) if place == axis else size for place, size in enumerate(first)]


def _names(shape: ir.Shape | None) -> list[int | str | None]:
    """The sizes of a shape, free ones by name, None for an unknown one."""
    return [size if isinstance(size, int) else size.value for size in shape] if shape is not None else [None]


def _resolved(sizes: list[int], source: list[int | str | None], free: dict[str, int]) -> list[int]:
    """The same sizes with a number for -1, where what is reshaped is known."""
    total = 1
    for size in source:
        number = size if isinstance(size, int) else free.get(size or "")
        if number is None:
            return sizes
        total *= number
    rest = int(np.prod([size for size in sizes if size >= 0], dtype=np.int64))
    if sizes.count(-1) != 1 or rest == 0 or total % rest:
        return sizes
    return [total // rest if size == -1 else size for size in sizes]


def _evaluate(
    graph: ir.Graph, operand: ir.Value, found: dict[ir.Value, list[int | str]], sizes: dict[str, int]
) -> list[int]:
    """What a shape comes to when the free axes have these sizes."""
    from onnx.reference import ReferenceEvaluator  # loads every operator

    model = ir.Model(ir.convenience.extract(graph, list(found), [operand]), ir_version=IR_VERSION)
    feeds = {
        str(value.name): np.array([sizes[size] if isinstance(size, str) else size for size in shape], np.int64)
        for value, shape in found.items()
    }
    values: Any = ReferenceEvaluator(ir.serde.serialize_model(model)).run(None, feeds)
    return [int(size) for size in values[0]]


def _sources(operand: ir.Value) -> dict[ir.Value, list[int | str]] | None:
    """The outputs of the Shape nodes that a value is computed from, with what they hold; None if from anything else."""
    found: dict[ir.Value, list[int | str]] = {}
    waiting, seen = [operand], set()
    while waiting:
        value = waiting.pop()
        if value in seen or value.const_value is not None:
            continue
        seen.add(value)
        node = value.producer()
        if node is None or value.is_graph_input():
            return None
        if node.op_type == "Shape" and not node.attributes:
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            names = _names(shape)
            if None in names:
                return None
            found[value] = [size for size in names if size is not None]
        else:
            waiting.extend(source for source in node.inputs if source is not None)
    return found
