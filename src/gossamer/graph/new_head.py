"""A new last layer for other classes; what is above it stays, and is a good beginning (Yosinski et al. 2014)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.errors import ModelError, OptionError
from gossamer.graph.edit import add_initializer, attribute_int, constant, graph_of
from gossamer.nouns.model import Model

PASSED = (  # from the scores up to the layer that makes them
    "Softmax LogSoftmax Sigmoid Identity Cast Dropout Flatten Squeeze GlobalAveragePool AveragePool ReduceMean"
).split()
LAYERS = ("Gemm", "MatMul", "Conv")
FEWEST = 2


class Head(NamedTuple):
    """The layer that makes the scores.

    Attributes:
        node: a Gemm, a MatMul or a 1x1 Conv.
        bias: the Add behind it that holds its bias, or None.
    """

    node: ir.Node
    bias: ir.Node | None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All of it."""
        return (self.node,) if self.bias is None else (self.node, self.bias)


def find_head(model: Model) -> Head:
    """The layer that makes the model's first output, past a softmax and means over positions.

    Raises:
        ModelError: what makes it is no layer; names it.
    """
    return _walked(model, model.ir.graph.outputs[0])


def with_new_head(model: Model, classes: int, seed: int = 0) -> Model:
    """A model whose last layer gives so many classes: weights uniform up to 1 / sqrt(inputs) by the seed, biases 0.

    Raises:
        OptionError: fewer than two classes.
        ModelError: the last layer is no Gemm, MatMul or 1x1 Conv with a weight of floats; says what it is.
    """
    if classes < FEWEST:
        raise OptionError(f"head is {classes}; allowed is a number of classes from {FEWEST} up")
    clone = model.clone()
    head = find_head(clone)
    node, axis = head.node, _class_axis(head.node)
    old_weight = _weight(head, model.name)
    old = old_weight.shape[axis]
    shape = tuple(classes if index == axis else size for index, size in enumerate(old_weight.shape))
    bound = 1 / math.sqrt(old_weight.size / old)
    drawn = np.random.default_rng(seed).uniform(-bound, bound, shape).astype(old_weight.dtype)
    _put(node, 1, drawn)
    for layer in head.nodes:
        _widen_bias(layer, old, classes)
    _reshape(clone, node, old, classes)
    said = f"the last layer, {node.op_type} {node.name}, was drawn anew for {classes} classes; it gave {old}"
    return replace(clone, path=None, reference=None, notes=(*model.notes, said))


def _walked(model: Model, output: ir.Value) -> Head:
    """Up from an output, by the inputs that carry it."""
    value, bias = output, None
    while (node := value.producer()) is not None:
        if node.op_type in LAYERS and node.domain == "":
            return Head(node, bias)
        carried = _carried(node)
        if carried is None:
            raise ModelError(_refused(model.name, node, "is no layer with weights"))
        bias = node if node.op_type == "Add" else bias
        value = carried
    raise ModelError(f"{model.name}: no layer makes its output {output.name}, so it cannot be given other classes")


def _carried(node: ir.Node) -> ir.Value | None:
    """The input that a node hands on, with no more than a bias added; None where it does more."""
    if node.domain != "" or not node.inputs:
        return None
    if node.op_type in PASSED or (node.op_type == "Reshape" and constant(node.inputs[1]) is not None):
        return node.inputs[0]
    if node.op_type == "Add":
        computed = [value for value in node.inputs if constant(value) is None]
        return computed[0] if len(computed) == 1 else None
    return None


def _weight(head: Head, where: str) -> np.ndarray:
    """The layer's weight.

    Raises:
        ModelError: it has none of its own, or is a convolution of more than a position.
    """
    node = head.node
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype.kind != "f":
        raise ModelError(_refused(where, node, "has no weight of floats; give the float model that it was made from"))
    if node.op_type == "Conv" and (math.prod(weight.shape[2:]) > 1 or attribute_int(node, "group", 1) > 1):
        kernel = "x".join(map(str, weight.shape[2:]))
        raise ModelError(_refused(where, node, f"has a kernel of {kernel} in {attribute_int(node, 'group', 1)} groups"))
    if node.op_type == "MatMul" and weight.ndim != 2:
        raise ModelError(_refused(where, node, f"has a weight of {weight.ndim} axes"))
    return weight


def _refused(where: str, node: ir.Node, why: str) -> str:
    return (
        f"{where}: {node.op_type} {node.name}, the last node before the scores, {why}; "
        "a new head takes the place of a Gemm, a MatMul or a 1x1 Conv"
    )


def _class_axis(node: ir.Node) -> int:
    """Of the weight: which axis counts classes."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and attribute_int(node, "transB", 0) else 1


def _put(node: ir.Node, slot: int, array: np.ndarray) -> None:
    """An array in the place of an input, under its name; others that read the old one keep it."""
    value = node.inputs[slot]
    if value is None or len(value.uses()) > 1 or value.is_graph_output() or not value.is_initializer():
        name = f"{node.name}_new" if value is None else f"{value.name}_new"
        node.replace_input_with(slot, add_initializer(graph_of(node), name, array))
        return
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)


def _widen_bias(node: ir.Node, old: int, classes: int) -> None:
    """Zeros, one a class, where a bias had one a class before."""
    slots = {"Add": (0, 1), "MatMul": ()}.get(node.op_type, (2,))
    for slot in slots:
        bias = constant(node.inputs[slot]) if slot < len(node.inputs) else None
        if bias is not None and bias.size == old:
            shape = tuple(classes if size == old else size for size in bias.shape)
            _put(node, slot, np.zeros(shape, bias.dtype))
        elif bias is not None:
            _put(node, slot, np.zeros_like(bias))


def _reshape(model: Model, node: ir.Node, old: int, classes: int) -> None:
    """Everything behind the layer: inner shapes are left to the runtime, those of outputs say the new classes."""
    behind, above = set[ir.Value](), [node]
    while above:
        for value in (value for value in above.pop().outputs if value not in behind):
            behind.add(value)
            above += value.consumers()
    for value in behind:
        reader = value.producer()
        if reader is not None and reader.op_type == "Reshape":
            _resize(reader, old, classes)
        if not value.is_graph_output():
            value.shape = None
        elif value.shape is not None:
            axis = next((at for at, size in enumerate(value.shape) if at and size == old), None)
            value.shape = ir.Shape(classes if at == axis else size for at, size in enumerate(value.shape))


def _resize(node: ir.Node, old: int, classes: int) -> None:
    """A target that names the number of classes."""
    target = constant(node.inputs[1])
    if target is None or old not in target.tolist():
        return
    at = target.ndim and len(target) - 1 - target.tolist()[::-1].index(old)
    _put(node, 1, np.array([classes if index == at else size for index, size in enumerate(target)], target.dtype))
