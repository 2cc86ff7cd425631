"""The sizes of axes as far as they follow from the graph: numbers, names and products of names.

Exporters write the shape of a Reshape as Shape, Gather and Concat nodes, through which onnx's inference loses track of
which axis is which. One walk through the main graph follows them. What two nodes require of each other, such as equal
counts of elements before and after a Reshape, is taken as given: where it were not so, the model would not run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import constant

LARGEST_VECTOR = 16  # elements; shapes, axes and scales are smaller

_AS_FIRST_INPUT = frozenset(
    "Cast Clip Dropout Elu Erf Exp Gelu HardSigmoid HardSwish Identity IsNaN LayerNormalization LeakyRelu Mish Neg Not "
    "RMSNormalization Reciprocal Relu Selu Sigmoid Softmax Softplus Softsign Sqrt Tanh".split()
)
_BROADCAST = frozenset(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mul Or Pow Sub Sum Where".split()
)
_HANDS_ON = frozenset("Cast Identity Reshape Squeeze Unsqueeze".split())
_ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power}


class Size(NamedTuple):
    """A whole number times the sizes named; no names for a number alone."""

    factor: int
    names: tuple[str, ...] = ()

    def times(self, other: Size) -> Size:
        """The product."""
        return Size(self.factor * other.factor, tuple(sorted(self.names + other.names)))

    def over(self, other: Size) -> Size | None:
        """The quotient, or None where it is not whole for all values of the names."""
        names = list(self.names)
        for name in other.names:
            if name not in names:
                return None
            names.remove(name)
        if other.factor == 0 or self.factor % other.factor:
            return None
        return Size(self.factor // other.factor, tuple(names))


ONE = Size(1)
Element = Size | float  # of a vector that the graph computes with: a size or a number that is none
Dims = tuple[Size, ...]


class Sizes:
    """The sizes of the main graph's values; made once, and told of new values by `copy` and `broadcast`."""

    def __init__(self, graph: ir.Graph) -> None:
        self._dims: dict[ir.Value, Dims] = {}
        self._elements: dict[ir.Value, tuple[Element, ...]] = {}
        self._meant: dict[str, Size] = {}  # what a name was found to be
        for value in (*graph.inputs, *graph.initializers.values()):
            self._learn(value, None)
        for node in graph:
            ranks_known = all(value is None or self._known(value) for value in node.inputs)
            dims = self._computed(node) if node.domain == "" and ranks_known else None
            for index, value in enumerate(node.outputs):
                self._learn(value, dims[index] if dims is not None and index < len(dims) else None)
            if node.domain == "" and len(node.outputs) == 1:
                self._follow(node)

    def of(self, value: ir.Value | None) -> Dims:
        """The axes of a value; empty for a scalar and for one of unknown rank."""
        return () if value is None else tuple(self._resolved(size) for size in self._dims.get(value, ()))

    def number(self, value: ir.Value | None) -> float | None:
        """The number that a value of one element always is, if it is known."""
        element = None if value is None else next(iter(self._elements.get(value, ())), None)
        if value is None or element is None or len(self._elements[value]) != 1 or len(self._dims.get(value, ())) > 1:
            return None
        if isinstance(element, Size):
            element = self._resolved(element)
        return _as_number(element)

    def copy(self, old: ir.Value, new: ir.Value) -> None:
        """A new value has the sizes of an old one."""
        if old in self._dims:
            self._dims[new] = self._dims[old]

    def broadcast(self, values: Sequence[ir.Value], new: ir.Value) -> None:
        """A new value has the sizes of these, broadcast."""
        self._learn(new, self._broadcast([self.of(value) for value in values]))

    def _known(self, value: ir.Value) -> bool:
        if value not in self._dims:
            self._learn(value, None)  # a value of a graph around this one, or of a node that stands later
        return value in self._dims

    def _learn(self, value: ir.Value, dims: Sequence[Size | None] | None) -> None:
        """Keep what was computed, else the declared number or name, else a new name."""
        declared = value.shape
        if declared is None and dims is None:
            return
        if dims is None or (declared is not None and len(declared) != len(dims)):
            dims = [None] * (0 if declared is None else len(declared))
        result = []
        for axis, size in enumerate(dims):
            given = None if declared is None else declared[axis]
            stated = given.value if isinstance(given, ir.SymbolicDim) else given
            if isinstance(stated, int):
                if size is not None:
                    self._equate(size, Size(stated))
                size = Size(stated)
            result.append(size or Size(1, (str(stated or f"{value.name} {axis}"),)))
        self._dims[value] = tuple(result)
        small = value.const_value is not None and value.const_value.size <= LARGEST_VECTOR
        array = constant(value) if small else None
        if array is not None and array.ndim <= 1 and array.dtype.kind in "if":
            whole = array.dtype.kind == "i"
            self._elements[value] = tuple(Size(int(x)) if whole else float(x) for x in array.ravel())

    def _resolved(self, size: Size) -> Size:
        while any(name in self._meant for name in size.names):
            result = Size(size.factor)
            for name in size.names:
                result = result.times(self._meant.get(name, Size(1, (name,))))
            size = result
        return size

    def _equate(self, a: Size, b: Size) -> None:
        """Two sizes are one; remembered where that says what a name is."""
        a, b = self._resolved(a), self._resolved(b)
        common = math.gcd(a.factor, b.factor)
        if not common:
            return
        a, b = a._replace(factor=a.factor // common), b._replace(factor=b.factor // common)
        for name in a.names:
            if name in b.names:  # an empty tensor has any size elsewhere; it also has no numbers to change
                a, b = _without(a, name), _without(b, name)
        for one, other in ((a, b), (b, a)):
            if one.factor == 1 and len(one.names) == 1 and other.factor > 0:
                self._meant[one.names[0]] = other
                return

    def _computed(self, node: ir.Node) -> list[Sequence[Size | None] | None] | None:
        """The axes of each output as far as the operator says."""
        dims, op_type = [self.of(value) for value in node.inputs], node.op_type
        if op_type in _AS_FIRST_INPUT:
            return [dims[0]]
        if op_type in _BROADCAST:
            return [self._broadcast(dims)]
        if op_type == "MatMul" and min(map(len, dims)) >= 2:
            self._equate(dims[0][-1], dims[1][-2])
            return [(*self._broadcast([dims[0][:-2], dims[1][:-2]]), dims[0][-2], dims[1][-1])]
        if op_type == "Gemm":
            a, b = (dims[i][:: -1 if node.attributes.get_int(f"trans{'AB'[i]}", 0) else 1] for i in (0, 1))
            return [(a[0], b[1])]
        if op_type == "Transpose":
            return [[dims[0][axis] for axis in node.attributes.get_ints("perm", range(len(dims[0]))[::-1])]]
        if op_type == "Reshape":
            return [self._reshaped(node, dims[0])]
        if op_type == "Gather":
            axis = node.attributes.get_int("axis", 0) % max(len(dims[0]), 1)
            return [(*dims[0][:axis], *dims[1], *dims[0][axis + 1 :])]
        return self._partly_kept(node, dims)

    def _partly_kept(self, node: ir.Node, dims: list[Dims]) -> list[Sequence[Size | None] | None] | None:
        """Operators that change some axes, by numbers in a constant input, and keep the others."""
        if node.op_type == "Split":
            axis = node.attributes.get_int("axis", 0) % max(len(dims[0]), 1)
            return [[None if i == axis else size for i, size in enumerate(dims[0])] for _ in node.outputs]
        if node.op_type == "Expand":
            target = None if node.inputs[1] is None else self._elements.get(node.inputs[1])
            sizes = [self._resolved(size) for size in target or () if isinstance(size, Size)]
            return [self._broadcast([dims[0], tuple(sizes)])] if target and len(sizes) == len(target) else None
        if node.op_type == "Slice":
            axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
            cut = {int(axis) % len(dims[0]) for axis in axes.ravel()} if axes is not None else set(range(len(dims[0])))
            return [[None if axis in cut else size for axis, size in enumerate(dims[0])]]
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or node.op_type not in ("Squeeze", "Unsqueeze"):
            return None
        if node.op_type == "Squeeze":
            gone = {int(axis) % len(dims[0]) for axis in axes.ravel()}
            return [[size for axis, size in enumerate(dims[0]) if axis not in gone]]
        rank, rest = len(dims[0]) + axes.size, iter(dims[0])
        new = {int(axis) % rank for axis in axes.ravel()}
        return [[ONE if axis in new else next(rest) for axis in range(rank)]]

    def _broadcast(self, shapes: Sequence[Dims]) -> list[Size | None]:
        """None where a size depends on which of two names is 1."""
        rank = max(map(len, shapes))
        result: list[Size | None] = []
        for column in zip(*((ONE,) * (rank - len(dims)) + dims for dims in shapes), strict=True):
            wide = {size for size in column if size != ONE}
            numbers = {size for size in wide if not size.names}
            result.append(next(iter(numbers or wide or {ONE})) if numbers or len(wide) < 2 else None)
        return result

    def _reshaped(self, node: ir.Node, old: Dims) -> Sequence[Size | None] | None:
        target = None if node.inputs[1] is None else self._elements.get(node.inputs[1])
        if target is None:
            return None
        copies = not node.attributes.get_int("allowzero", 0)
        new: list[Size | None] = []
        for axis, element in enumerate(target):
            size = self._resolved(element) if isinstance(element, Size) else None
            if size == Size(0) and copies:
                size = old[axis] if axis < len(old) else None
            new.append(None if size is None or size.factor < 0 else size)
        whole, rest = _product(old), _product([size for size in new if size is not None])
        if None not in new:
            self._equate(whole, rest)
        elif new.count(None) == 1:
            new[new.index(None)] = whole.over(rest)
        return new

    def _follow(self, node: ir.Node) -> None:
        """The elements of a small vector that a node makes."""
        found = self._vector(node)
        if found is not None and len(found) <= LARGEST_VECTOR:
            self._elements[node.outputs[0]] = found

    def _vector(self, node: ir.Node) -> tuple[Element, ...] | None:
        if node.op_type == "Shape":
            if node.inputs[0] not in self._dims:
                return None
            dims = self.of(node.inputs[0])
            return dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
        parts = [None if value is None else self._elements.get(value) for value in node.inputs]
        known = [part for part in parts if part is not None]
        if not known or parts[0] is None or len(known) < len(parts):
            return None if node.op_type != "Reshape" else parts[0]
        if node.op_type in _HANDS_ON:
            return _cast(node, parts[0])
        if node.op_type == "ConstantOfShape":
            return _filled(node, parts[0])
        if node.op_type == "Where" and len(known) == 3:
            pairs = zip(*known, strict=False)
            chosen = tuple({ONE: a, Size(0): b}.get(c) if isinstance(c, Size) else None for c, a, b in pairs)
            same = len({len(part) for part in known}) == 1
            return tuple(x for x in chosen if x is not None) if same and None not in chosen else None
        if node.op_type == "Concat":
            return tuple(element for part in known for element in part)
        if node.op_type == "Slice":
            return _sliced(known)
        if node.op_type == "Gather" and all(isinstance(index, Size) for index in known[1]):
            indices = [index.factor for index in known[1] if isinstance(index, Size) and not index.names]
            inside = len(indices) == len(known[1]) and all(-len(parts[0]) <= i < len(parts[0]) for i in indices)
            return tuple(parts[0][i] for i in indices) if inside else None
        return _calculated(node.op_type, known)


def _without(size: Size, name: str) -> Size:
    names = list(size.names)
    names.remove(name)
    return size._replace(names=tuple(names))


def _product(dims: Sequence[Size]) -> Size:
    result = ONE
    for size in dims:
        result = result.times(size)
    return result


def _cast(node: ir.Node, elements: tuple[Element, ...]) -> tuple[Element, ...] | None:
    """A number that becomes an integer loses its fraction."""
    if node.op_type != "Cast":
        return elements
    to = ir.DataType(node.attributes.get_int("to", 1))
    if to in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return elements
    if to not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return tuple(x if isinstance(x, Size) else Size(int(x)) for x in elements)


def _filled(node: ir.Node, shape: tuple[Element, ...]) -> tuple[Element, ...] | None:
    length = shape[0] if len(shape) == 1 else None
    if not isinstance(length, Size) or length.names or not 0 <= length.factor <= LARGEST_VECTOR:
        return None
    given = node.attributes.get("value")
    fill = np.float32(0) if given is None else given.as_tensor().numpy().ravel()[0]
    return (Size(int(fill)) if fill.dtype.kind == "i" else float(fill),) * length.factor


def _sliced(parts: list[tuple[Element, ...]]) -> tuple[Element, ...] | None:
    """A vector has one axis, so the axes need not be asked."""
    bounds = [
        part[0].factor for part in parts[1:] if len(part) == 1 and isinstance(part[0], Size) and not part[0].names
    ]
    if len(bounds) != len(parts) - 1 or len(bounds) < 2:
        return None
    step = bounds[3] if len(bounds) > 3 else 1
    return parts[0][bounds[0] : bounds[1] : step] if step > 0 else None


def _calculated(op_type: str, parts: list[tuple[Element, ...]]) -> tuple[Element, ...] | None:
    """Arithmetic of numbers; and products and whole quotients of sizes."""
    if op_type == "Sqrt" or op_type == "Reciprocal":
        numbers = [_as_number(element) for element in parts[0]]
        usable = [x for x in numbers if x is not None and x > 0]
        return (
            tuple(math.sqrt(x) if op_type == "Sqrt" else 1 / x for x in usable) if len(usable) == len(numbers) else None
        )
    if len(parts) != 2 or (len(parts[0]) != len(parts[1]) and 1 not in map(len, parts)):
        return None
    length = max(map(len, parts))
    pairs = zip(*(part * length if len(part) == 1 else part for part in parts), strict=True)
    result = [_of_two(op_type, a, b) for a, b in pairs]
    return None if None in result else tuple(x for x in result if x is not None)


def _of_two(op_type: str, a: Element, b: Element) -> Element | None:
    if isinstance(a, Size) and isinstance(b, Size):
        if op_type == "Equal":  # sizes are not negative
            apart = (a.factor < 0) != (b.factor < 0) or not (a.names or b.names)
            return Size(int(a == b)) if a == b or apart else None
        if op_type in ("Mul", "Div"):
            return a.times(b) if op_type == "Mul" else a.over(b)
        sign = {"Add": 1, "Sub": -1}.get(op_type, 0)
        return Size(a.factor + sign * b.factor) if sign and not a.names and not b.names else None
    x, y = _as_number(a), _as_number(b)
    if x is None or y is None or op_type not in _ARITHMETIC:
        return None
    with np.errstate(all="ignore"):
        result = float(_ARITHMETIC[op_type](np.float32(x), np.float32(y)))
    return result if math.isfinite(result) else None


def _as_number(element: Element) -> float | None:
    if isinstance(element, Size):
        return None if element.names else float(element.factor)
    return element
