"""Attention written out in small operators, found in a graph."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import is_float
from gossamer.graph.sizes import Dims, Sizes

LOWEST = np.finfo(np.float32).min
ABSORBS_SCORES = -1e30  # added to any sensible score, this or less leaves nothing of it
HEADS_FIRST, TURNED = (0, 2, 1, 3), (0, 2, 3, 1)  # the transposes of (B, S, H, D) that q and v, and k, arrive by
LAST_TWO = (0, 1, 3, 2)
OF_SHAPES: tuple[str, ...] = (
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Gather",
    "Mul",
    "Reshape",
    "Slice",
    "Squeeze",
    "Sub",
    "Unsqueeze",
)
LONGEST_SHAPE = 64  # nodes that work out one shape


class Operand(NamedTuple):
    """A value, how it is yet to be transposed, its axes (B, S, H, D), and a factor applied on the way."""

    value: ir.Value
    turn: tuple[int, ...]
    dims: Dims
    factor: float


class Mask(NamedTuple):
    """A value added to the scores; or, with `chosen`, taken in their place where that is not `keeps`."""

    value: ir.Value
    chosen: ir.Value | None = None
    keeps: bool = True


class Scores(NamedTuple):
    """The product of q and k^T, what it is multiplied with, and the masks from the first applied to the last."""

    product: ir.Node
    scale: float
    masks: tuple[Mask, ...]


class Attention(NamedTuple):
    """One attention found; `scale` is what q k^T is multiplied with, `scores` the axes (B, H, S, T) of that.

    `product` is the MatMul with v. `heads` is 0 if q, k and v are of rank 4.
    """

    q: Operand
    k: Operand
    v: Operand
    scale: float
    masks: tuple[Mask, ...]
    scores: Dims
    heads: int
    product: ir.Node


class _Ends(NamedTuple):
    """The last product's reading of v, and what lies in front of the Softmax."""

    product: ir.Node
    softmax: ir.Value
    scores: Scores
    q: ir.Value
    k: ir.Value
    v: ir.Value


def match_whole(merge: ir.Node, sizes: Sizes) -> Attention | None:
    """The attention that ends with this Reshape, from (B, S, H*D) to (B, S, H*E), or None."""
    back = made_by(merge.inputs[0], "Transpose")
    ends = None
    if back is not None and _perm(back) == HEADS_FIRST and _all_end_in(back.outputs[0], merge):
        ends = _ends(made_by(back.inputs[0], "MatMul", sole=True), sizes)
    if ends is None:
        return None
    q, k, v = (_parted(x, perm, sizes) for x, perm in ((ends.q, HEADS_FIRST), (ends.k, TURNED), (ends.v, HEADS_FIRST)))
    if q is None or k is None or v is None:
        return None
    whole, own = sizes.of(merge.outputs[0]), sizes.of(v.value)
    found = _checked(q, k, v, ends, sizes, q.dims[2].factor)
    return found if len(whole) == 3 and (whole[0], whole[2]) == (q.dims[0], own[2]) else None


def match_parted(end: ir.Node, sizes: Sizes) -> Attention | None:
    """The attention that ends with this MatMul, from q (B, H, S, D) to (B, H, S, E), or None."""
    ends = _ends(end, sizes)
    if ends is None:
        return None
    parts = [_by_heads(*pair, sizes) for pair in ((ends.q, False), (ends.k, True), (ends.v, False))]
    q, k, v = parts
    return None if q is None or k is None or v is None else _checked(q, k, v, ends, sizes, 0)


def _checked(q: Operand, k: Operand, v: Operand, ends: _Ends, sizes: Sizes, heads: int) -> Attention | None:
    """Batch, heads and lengths agree, and no mask has widened the scores."""
    scores = (q.dims[0], q.dims[2], q.dims[1], k.dims[1])
    agree = q.dims[::2] == k.dims[::2] == v.dims[::2] and k.dims[1] == v.dims[1]
    if not agree or sizes.of(ends.softmax) != scores or v.factor != 1:
        return None
    scale = ends.scores.scale * q.factor * k.factor
    return Attention(q, k, v, scale, ends.scores.masks, scores, heads, ends.product) if 0 < scale < np.inf else None


def _ends(end: ir.Node | None, sizes: Sizes) -> _Ends | None:
    """From the last product back to the first."""
    if end is None or end.op_type != "MatMul" or end.domain != "":
        return None
    softmax = _softmax(end.inputs[0], sizes)
    if softmax is None or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    scores = _scores(softmax.inputs[0], sizes)
    if scores is None:
        return None
    (q, k), v = scores.product.inputs, end.inputs[1]
    return None if q is None or k is None or v is None else _Ends(end, softmax.outputs[0], scores, q, k, v)


def _softmax(value: ir.Value | None, sizes: Sizes) -> ir.Node | None:
    """The Softmax that makes a value; torch puts zeros in the place of NaN behind it, as the operator does itself."""
    value = _uncast(value)
    guard = made_by(value, "Where", sole=True)
    if guard is None:
        return made_by(value, "Softmax", sole=True)
    nan, zero, shares = guard.inputs
    asked, softmax = made_by(nan, "IsNaN", sole=True), made_by(shares, "Softmax")
    known = asked is not None and asked.inputs[0] is shares and sizes.number(zero) == 0
    readers = 0 if shares is None else len(shares.uses())
    return softmax if known and readers == 2 and shares is not None and not shares.is_graph_output() else None


def _scores(value: ir.Value | None, sizes: Sizes) -> Scores | None:
    """Follow masks and then scalings back to the first product; none may be read by anything else."""
    value = _uncast(value)
    add, choice = made_by(value, "Add", sole=True), made_by(value, "Where", sole=True)
    if add is not None:
        for inner, mask in (add.inputs, add.inputs[::-1]):
            found = _scores(inner, sizes) if is_float(mask) else None
            if found is not None and mask is not None:
                return found._replace(masks=(*found.masks, Mask(mask)))
        return None
    if choice is not None:
        chosen, *sides = choice.inputs
        for keeps, (inner, low) in ((True, sides), (False, sides[::-1])):
            number = sizes.number(low)
            found = _scores(inner, sizes) if number is not None and number <= ABSORBS_SCORES else None
            if found is not None and low is not None and chosen is not None:
                return found._replace(masks=(*found.masks, Mask(low, chosen, keeps)))
        return None
    scale = 1.0
    while made_by(value, "Mul", "Div", sole=True) is not None:
        inner, factor = _unscaled(value, sizes)
        if inner is value:
            return None
        value, scale = inner, scale * factor
    product = made_by(value, "MatMul", sole=True)
    return None if product is None else Scores(product, scale, ())


def made_by(value: ir.Value | None, *op_types: str, sole: bool = False) -> ir.Node | None:
    """The standard node of these types that makes a value; with `sole`, only if nothing else reads the value."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.domain != "" or node.op_type not in op_types:
        return None
    return None if sole and (len(value.uses()) != 1 or value.is_graph_output()) else node


def _all_end_in(value: ir.Value, merge: ir.Node) -> bool:
    """Whether all that is read off a value, but by `merge` itself, is its shape, to tell `merge` what to make of it."""
    first: tuple[str, ...] = ("Shape",)
    waiting, steps = [(value, first)], 0
    while waiting:
        value, allowed = waiting.pop()
        if value.is_graph_output() or steps > LONGEST_SHAPE:
            return False
        for reader in value.consumers():
            steps += 1
            if reader is merge:
                continue
            if reader.domain != "" or reader.op_type not in allowed:
                return False
            waiting += [(output, OF_SHAPES) for output in reader.outputs]
    return True


def _uncast(value: ir.Value | None) -> ir.Value | None:
    """What a value was before it was cast from float32 to float32."""
    while (cast := made_by(value, "Cast", sole=True)) is not None and is_float(value) and is_float(cast.inputs[0]):
        value = cast.inputs[0]
    return value


def _first(node: ir.Node | None) -> ir.Value | None:
    return None if node is None else node.inputs[0]


def _perm(transpose: ir.Node) -> tuple[int, ...]:
    return tuple(transpose.attributes.get_ints("perm", (3, 2, 1, 0)))


def _unscaled(value: ir.Value | None, sizes: Sizes) -> tuple[ir.Value | None, float]:
    """What a value was before a known scalar scaled it, and the factor; the value itself and 1 if none did."""
    node = made_by(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    for rest, by in (node.inputs, node.inputs[::-1])[: 2 if node.op_type == "Mul" else 1]:
        number = sizes.number(by)
        if number:
            return rest, number if node.op_type == "Mul" else 1 / number
    return value, 1.0


def _turned(value: ir.Value | None, sizes: Sizes) -> tuple[ir.Value | None, tuple[int, ...]]:
    """What a value was before it was transposed, and how; the value itself and () if it was not."""
    turn = made_by(value, "Transpose")
    if turn is not None:
        return turn.inputs[0], _perm(turn)
    middle = made_by(_first(made_by(value, "Reshape")), "Transpose")  # torch swaps the last two axes in rank 3
    before = made_by(_first(middle), "Reshape")
    if middle is None or before is None or _perm(middle) != (0, 2, 1):
        return value, ()
    old, flat = sizes.of(before.inputs[0]), sizes.of(before.outputs[0])
    known = len(old) == 4 and flat[1:] == old[2:] and sizes.of(value) == (*old[:2], old[3], old[2])
    return (before.inputs[0], LAST_TWO) if known else (value, ())


def _traced(value: ir.Value | None, sizes: Sizes) -> tuple[ir.Value | None, tuple[int, ...], float]:
    """Follow scalings and transposes of rank 4 back: the first value, how it was turned in all, and the factor."""
    order, factor = tuple(range(4)), 1.0
    while True:
        value, by = _unscaled(value, sizes)
        factor *= by
        value, own = _turned(value, sizes)
        if len(own) != 4:
            return value, order, factor
        order = tuple(own[axis] for axis in order)


def _parted(value: ir.Value, perm: tuple[int, ...], sizes: Sizes) -> Operand | None:
    """Back to the Reshape that parts the heads, if the transposes together do `perm`."""
    parted, order, factor = _traced(value, sizes)
    whole = _first(made_by(parted, "Reshape"))
    if whole is None or order != perm or not is_float(whole):
        return None
    old, dims = sizes.of(whole), sizes.of(parted)
    if len(old) != 3 or len(dims) != 4 or old[:2] != dims[:2] or dims[2].names or dims[3].names:
        return None
    return Operand(whole, (), dims, factor) if old[2] == dims[2].times(dims[3]) else None


def _by_heads(value: ir.Value, is_key: bool, sizes: Sizes) -> Operand | None:
    """A value (B, H, S, D) as the product reads it; keys arrive as (B, H, D, T)."""
    if is_key:
        start, order, factor = _traced(value, sizes)
        turn = tuple(order[axis] for axis in LAST_TWO)
    else:
        (start, factor), turn = _unscaled(value, sizes), tuple(range(4))
    dims = sizes.of(start)
    if start is None or not is_float(start) or len(dims) != 4 or dims[turn[1]].names:
        return None
    return Operand(start, turn, tuple(dims[turn[axis]] for axis in HEADS_FIRST), factor)
