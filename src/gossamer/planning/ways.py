"""Every way to compute a layer that its runtime may be faster with, and what each takes, by the prices of its parts.

A layer in thin factors is several layers, each priced by itself. In integers these are priced between other integer
layers, as a network that runs in integers throughout computes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Literal, NamedTuple

import numpy as np

from gossamer.constraints.contract import Constraint, as_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.graph.edit import attribute_int
from gossamer.graph.layers import Layer
from gossamer.measuring.kernels import Attributes, Kernel, Signature, signature_of
from gossamer.measuring.prices import Price
from gossamer.runtimes.contract import Runtime

GROUPS = (32, 64, 128)  # weights that share a scale
BITS: tuple[Literal[8, 4], ...] = (8, 4)
RANKS = (1 / 8, 1 / 4, 3 / 8, 1 / 2)  # of the most a weight can have
FLOAT, BYTES = Kernel("float"), Kernel("int8")

Part = tuple[Signature, Kernel]
Prices = Mapping[Part, Price]


class Way(NamedTuple):
    """How a layer may be computed.

    Attributes:
        constraint: what `constrain_weights` makes of its weight; None leaves it.
        integer: whether it, or what the constraint made of it, then runs in integers.
    """

    constraint: Constraint | None = None
    integer: bool = False

    def __str__(self) -> str:
        words = [as_text(self.constraint)] if self.constraint is not None else []
        return " in ".join([*words, "int8"] if self.integer else words) or "float"


class Shaped(NamedTuple):
    """A layer, what its latency depends on, and the shape of its output for one sample."""

    layer: Layer
    signature: Signature
    y_shape: tuple[int, ...]

    @property
    def matrix(self) -> tuple[int, int]:
        """Outputs, and what each sums over."""
        outputs = self.layer.channels
        return outputs, int(np.prod(self.signature.w_shape)) // max(outputs, 1)


def shaped(layer: Layer, dims: Mapping[str, tuple[int, ...]]) -> Shaped | None:
    """A layer with its shapes; None where these are unknown."""
    signature, y_shape = signature_of(layer, dims), dims.get(layer.node.outputs[0].name or "")
    return None if signature is None or y_shape is None else Shaped(layer, signature, tuple(y_shape))


def ways(one: Shaped, runtime: Runtime) -> tuple[Way, ...]:
    """Float first, then all that the layer's operator allows; whether it is any faster is not known yet."""
    found = [Way()]
    operator = one.layer.node.op_type
    if operator in runtime.INTEGER_OPERATORS:
        found.append(Way(None, True))
    if operator != "Conv":
        found += [Way(Grid(bits, granularity=group)) for bits in BITS for group in GROUPS]
    for low_rank in _low_ranks(one):
        found.append(Way(low_rank))
        if operator in runtime.INTEGER_OPERATORS:
            found.append(Way(low_rank, True))
    return tuple(found)


def parts(one: Shaped, way: Way) -> tuple[Part, ...]:
    """What is computed one after the other, each with its kernel."""
    kernel = BYTES if way.integer else FLOAT
    match way.constraint:
        case None:
            return ((one.signature, kernel),)
        case LowRank():
            return tuple((stage, kernel) for stage in _stages(one, way.constraint))
        case Grid(bits=8 | 4 as bits, granularity=int(group)):
            return ((one.signature, Kernel("blocks", bits, group)),)
    return ()


def cost_ms(found: Sequence[Part], prices: Prices) -> float:
    """The sum over parts; infinite where one is not priced, or the runtime cannot compute it so."""
    return sum((prices[part].ms if part in prices else inf for part in found), 0.0) if found else inf


def _low_ranks(one: Shaped) -> list[LowRank]:
    """In two factors, and a wide kernel in three."""
    if one.layer.node.op_type == "Conv" and attribute_int(one.layer.node, "group", 1) != 1:
        return []
    full = min(one.matrix)
    found = [LowRank(rank) for rank in dict.fromkeys(int(share * full) for share in RANKS) if 0 < rank < full]
    shape = one.signature.w_shape
    if one.layer.node.op_type == "Conv" and int(np.prod(shape[2:])) > 1:
        thin = (int(share * min(shape[:2])) for share in RANKS)
        found += [LowRank(rank, split="tucker") for rank in dict.fromkeys(thin) if rank > 1]
    return found


def _stages(one: Shaped, low_rank: LowRank) -> tuple[Signature, ...]:
    """The layers that the factors make."""
    (op, x_shape, w_shape, attributes), rank = _fields(one.signature), low_rank.rank or 1
    if op != "Conv":
        thin, wide = ((w_shape[0], rank), (rank, w_shape[1]))
        if dict(attributes).get("transB"):
            thin, wide = ((rank, w_shape[1]), (w_shape[0], rank))
        middle = (*x_shape[:-1], rank)
        return Signature(op, x_shape, thin, attributes), Signature(op, middle, wide, attributes)
    ones, outputs, inputs = (1,) * (len(w_shape) - 2), w_shape[0], w_shape[1]
    middle, back = (x_shape[0], rank, *one.y_shape[2:]), (outputs, rank, *ones)
    expand = Signature(op, middle, back, ())
    if low_rank.split == "svd":
        return Signature(op, x_shape, (rank, *w_shape[1:]), attributes), expand
    reduce = Signature(op, x_shape, (min(rank, inputs), inputs, *ones), ())
    reduced = (x_shape[0], min(rank, inputs), *x_shape[2:])
    return reduce, Signature(op, reduced, (rank, min(rank, inputs), *w_shape[2:]), attributes), expand


def _fields(signature: Signature) -> tuple[str, tuple[int, ...], tuple[int, ...], Attributes]:
    return signature.op, signature.x_shape, signature.w_shape, signature.attributes
