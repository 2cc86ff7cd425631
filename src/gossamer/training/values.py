"""How the values of a graph being lowered are held, and the code that has been written so far.

A value is held in one of three ways:
- tensor: as torch computes it.
- numbers: a Python number or nested tuples of them, at run time or already now. Shapes and what is computed of them are
  held so, which is why `torch.compile` can follow them: sizes stay symbols, and no tensor is read back.
- integers: a float tensor of whole numbers, behind QuantizeLinear, so that gradients pass it straight through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import onnx_ir as ir
import torch
from torch import fx, nn

from gossamer.errors import ModelError
from gossamer.training.names import attach, attribute_path
from gossamer.training.operators.quantization import as_integers
from gossamer.training.operators.sizes import as_tensor, numbers_of
from gossamer.training.tensors import TORCH_TYPES, TRAINABLE, number_of, tensor_of

Kind = Literal["tensor", "numbers", "integers"]
_SCALES = {"QuantizeLinear": (1,), "DequantizeLinear": (1,), "FakeQuantize": (1, 4), "FakeQuantizeBias": (1, 3, 5)}
_STATISTICS = ((3, "BatchNormalization"), (4, "BatchNormalization"))


class Held(NamedTuple):
    """How a value is held.

    Attributes:
        what: the node of the torch graph that gives it, or numbers that are known already.
        dtype: what integers in floats stand for.
    """

    kind: Kind
    what: Any
    dtype: torch.dtype | None = None

    @property
    def is_known(self) -> bool:
        """Whether it is numbers that are known already now."""
        return self.kind == "numbers" and not holds_node(self.what)


class Values:
    """The values of one graph, the torch graph that computes them, and the module that owns its constants.

    Attributes:
        source: the ONNX graph, in `where`, of these `opsets`.
        outer: the values of the graph around it.
        root: holds the parameters, the buffers, and the modules of subgraphs.
        initializers: path of a parameter or buffer -> name of the initializer.
        subgraphs: path of a submodule -> (name of the node's first output, attribute).
        captured: values of outer graphs that became inputs, in order.
    """

    def __init__(self, source: ir.Graph, opsets: Mapping[str, int], where: str, outer: Values | None) -> None:
        self.source, self.opsets, self.where, self.outer = source, opsets, where, outer
        self.graph, self.root = fx.Graph(), nn.Module()
        self.initializers: dict[str, str] = {}
        self.subgraphs: dict[str, tuple[str, str]] = {}
        self.captured: list[ir.Value] = []
        self._held: dict[ir.Value, Held] = {}
        self._tensors: dict[ir.Value, fx.Node] = {}  # made of what is held as numbers or integers
        self._constants: dict[ir.Value, ir.TensorProtocol] = {}  # of Constant nodes
        self._same: dict[ir.Value, ir.Value] = {}  # what Identity hands on -> its source
        self._mode: fx.Node | None = None

    # --- what nodes make

    def take(self, value: ir.Value) -> None:
        """Make a value an input of the module."""
        self._held[value] = Held("tensor", self._placeholder(value))

    def hold(self, value: ir.Value, held: Held) -> None:
        """Say how a node's output is held."""
        self._held[value] = held

    def hold_constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        """The output of a Constant node."""
        self._constants[value] = tensor

    def hold_same(self, value: ir.Value, source: ir.Value) -> None:
        """The output of a node that hands on its input."""
        self._same[value] = self._source_of(source)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], name: str) -> fx.Node:
        """Write a call."""
        return self.graph.create_node("call_function", function, args, named, name=name)

    # --- what nodes ask for

    def tensor(self, value: ir.Value) -> fx.Node:
        """The node whose result is this value as a tensor."""
        value = self._source_of(value)
        held = self.held(value)
        if held.kind == "tensor":
            node: fx.Node = held.what
            return node
        if value not in self._tensors:
            name = python_name(value.name)
            if held.kind == "integers":
                made = self.call(as_integers, (held.what, held.dtype), {}, name)
            else:
                dtype = None if value.dtype is None else TORCH_TYPES.get(value.dtype)
                made = self.call(as_tensor, (held.what, dtype, self.first_input()), {}, name)
            self._tensors[value] = made
        return self._tensors[value]

    def numbers(self, value: ir.Value) -> Any:
        """A value as Python numbers: themselves, or the node that gives them."""
        tensor = self.constant(value)
        if tensor is not None:
            return number_of(tensor)
        if self.is_held_as(value, "numbers"):
            return self.held(value).what
        return self.call(numbers_of, (self.tensor(value),), {}, f"{python_name(value.name)}_numbers")

    def floats(self, value: ir.Value) -> fx.Node:
        """The node whose result is this value as a tensor, integers in floats as they are."""
        if self.is_held_as(value, "integers"):
            node: fx.Node = self.held(value).what
            return node
        return self.tensor(value)

    def held(self, value: ir.Value) -> Held:
        """How a value is held; a constant is written down at its first use, an outer value becomes an input.

        Raises:
            ModelError: no node makes it.
        """
        value = self._source_of(value)
        if value in self._held:
            return self._held[value]
        tensor = self.constant(value)
        if tensor is not None and (value.graph is self.source or self.outer is None):
            held = Held("tensor", self._attribute(value, tensor))
        elif self.outer is None:
            raise ModelError(f"{self.where}: value {value.name} is made by no node; export the model again")
        else:
            held = self.outer.held(value)
            if not held.is_known:
                held = held._replace(what=self._placeholder(value))
                self.captured.append(value)
        self._held[value] = held
        return held

    def is_held_as(self, value: ir.Value, kind: Kind) -> bool:
        """Whether a value is held in this way; a constant is not held yet."""
        value = self._source_of(value)
        if value in self._held:
            return self._held[value].kind == kind
        return self.outer is not None and self.outer.is_held_as(value, kind)

    def constant(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The tensor of a constant of this graph or of one around it."""
        value = self._source_of(value)
        if value in self._constants:
            return self._constants[value]
        if value.const_value is not None and not value.is_graph_input():
            return value.const_value
        return None if self.outer is None else self.outer.constant(value)

    def mode(self) -> fx.Node:
        """`self.training`, so that `module.train()` and `module.eval()` switch what depends on it."""
        if self._mode is None:
            self._mode = self.graph.create_node("get_attr", "training", name="training")
        return self._mode

    def first_input(self) -> fx.Node | None:
        """A tensor that says on which device others are made."""
        return next((node for node in self.graph.nodes if node.op == "placeholder"), None)

    # --- writing

    def _source_of(self, value: ir.Value) -> ir.Value:
        """The value itself, or what Identity made it of."""
        value = self._same.get(value, value)
        return value if self.outer is None else self.outer._source_of(value)

    def _placeholder(self, value: ir.Value) -> fx.Node:
        """One more input, behind those there are."""
        first_call = next((node for node in self.graph.nodes if node.op != "placeholder"), None)
        if first_call is None:
            return self.graph.placeholder(python_name(value.name))
        with self.graph.inserting_before(first_call):
            return self.graph.placeholder(python_name(value.name))

    def _attribute(self, value: ir.Value, tensor: ir.TensorProtocol) -> fx.Node:
        """Register a constant as a parameter or a buffer.

        Those without axes are what a formula is made of (a divisor, a temperature), far more often than they are
        trained; like a quantizer's scales they ask for no gradient until they are told to.
        """
        content = tensor_of(tensor.numpy())
        path = attribute_path(value.name or "constant", self.root)
        own = value not in self._constants
        if own and content.dtype in TRAINABLE and not _is_statistic(value):
            attach(
                self.root,
                path,
                nn.Parameter(
                    content, requires_grad=content.ndim > 0 and not (_is_scale(value) or _joins_planes(value))
                ),
            )
        else:
            attach(self.root, path, content)
        if own:
            self.initializers[path] = str(value.name)
        return self.graph.create_node("get_attr", path, name=path.replace(".", "_"))


def holds_node(what: Any) -> bool:
    """Whether numbers are known only at run time."""
    return any(map(holds_node, what)) if isinstance(what, tuple) else isinstance(what, fx.Node)


def python_name(name: str | None) -> str:
    """A name as Python can write it."""
    return re.sub(r"\W", "_", name or "value", flags=re.ASCII)


def _is_statistic(value: ir.Value) -> bool:
    """Whether a constant is nothing but a running mean or variance."""
    return all((index, node.op_type) in _STATISTICS for node, index in value.uses())


def _joins_planes(value: ir.Value) -> bool:
    """Whether a constant says what the bits of stored integers are worth, see `graph.packed_bits`."""
    makers = [node.inputs[0].producer() for node, slot in value.uses() if slot == 1 and node.inputs[0] is not None]
    casts = [maker for maker in makers if maker is not None and maker.op_type == "Cast" and maker.inputs[0] is not None]
    above = [cast.inputs[0].producer() for cast in casts if cast.inputs[0] is not None]
    return any(node is not None and node.op_type == "BitwiseAnd" for node in above)


def _is_scale(value: ir.Value) -> bool:
    """Whether a constant is the scale of a quantizer, or the unit of its numbers."""
    return any(index in _SCALES.get(node.op_type, ()) for node, index in value.uses())
