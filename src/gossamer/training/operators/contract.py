"""How an operator is described: a function, and what of a node's inputs and attributes it wants in which form.

The function takes the operator's inputs by position and its attributes by their ONNX names, with the defaults of the
standard. It gives a tensor, or, where `gives_tuple` says so, a tuple with one entry an output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.training.tensors import TORCH_TYPES, number_of

Attributes = dict[str, Any]
_TYPES = (
    "to",
    "dtype",
    "output_dtype",
    "output_datatype",
    "stash_type",
    "softmax_precision",
)  # attributes that name a tensor type


def plain(node: ir.Node) -> Attributes:
    """A node's attributes as Python values; lists become tuples, tensor types torch's. Subgraphs are left out."""
    return {
        name: _value(name, attribute)
        for name, attribute in node.attributes.items()
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    }


def _value(name: str, attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return number_of(attribute.as_tensor())
    if name in _TYPES and attribute.type == ir.AttributeType.INT:
        return TORCH_TYPES.get(ir.DataType(attribute.as_int()))  # 0 stands for "as the input"
    if attribute.type == ir.AttributeType.FLOAT:
        return float(str(np.float32(attribute.as_float())))  # 1e-05, as was meant, not 9.999999747378752e-06
    return tuple(attribute.value) if isinstance(attribute.value, (list, tuple)) else attribute.value


def nothing(node: ir.Node) -> str:
    """No obstacle."""
    return ""


class Operator(NamedTuple):
    """One operator from one version of its domain on.

    Attributes:
        function: what the lowered code calls.
        since: the first version of the domain that means this.
        sizes: inputs that are Python numbers: axes, shapes, pads. A tensor there is read back at run time.
        scalars: inputs that are Python numbers where the graph holds them as constants without axes; else tensors.
        attributes: what of the node is given by keyword.
        gives_tuple: the function gives a tuple whatever the number of outputs.
        several: the function for nodes of more than one output, which gives a tuple; None if there is no such node.
        training: the function takes `training`, the module's mode.
        like: the function takes `like`, a tensor on whose device it makes a new one.
        carries: inputs that may be integers held in floats, so that gradients pass; "all", or those numbered.
        integers: the first output is integers held in floats: "made" always, "moved" if the first input is.
        obstacle: why a node cannot be lowered, or "".
    """

    function: Callable[..., Any]
    since: int = 1
    sizes: tuple[int, ...] = ()
    scalars: tuple[int, ...] = ()
    attributes: Callable[[ir.Node], Attributes] = plain
    gives_tuple: bool = False
    several: Callable[..., Any] | None = None
    training: bool = False
    like: bool = False
    carries: tuple[int, ...] | Literal["all"] = ()
    integers: Literal["", "made", "moved"] = ""
    obstacle: Callable[[ir.Node], str] = nothing


Table = dict[str, Operator | tuple[Operator, ...]]


def moves(function: Callable[..., Any], since: int = 1, sizes: tuple[int, ...] = ()) -> Operator:
    """An operator that moves numbers and does not change them, so that it takes and gives integers held in floats."""
    return Operator(function, since, sizes, carries="all", integers="moved")
