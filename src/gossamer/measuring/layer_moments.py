"""What one layer's weight is multiplied with, as a sum of outer products taken in batch by batch."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import attribute_float, attribute_int, constant
from gossamer.graph.recurrent import RECURRENT
from gossamer.graph.weight_matrix import CONVOLUTIONS, WeightMatrix
from gossamer.measuring.autocorrelation import Offsets, Patches, offsets_are_cheaper
from gossamer.measuring.offsets import Axis, convolved, transposed
from gossamer.measuring.paired_moments import IN_FLOAT, doubled, stacking
from gossamer.measuring.skips import with_input

Arrays = Mapping[str, np.ndarray]


class Room:
    """Memory for sums up to a limit; what goes beyond it lies in unnamed files that vanish with the arrays."""

    def __init__(self, memory_bytes: int) -> None:
        self.left_bytes = memory_bytes

    def zeros(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array in memory, or mapped from a file of its own."""
        size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size_bytes <= self.left_bytes or not size_bytes:
            self.left_bytes -= size_bytes
            return np.zeros(shape, dtype)
        with tempfile.TemporaryFile(prefix="gossamer-moments-") as file:  # the map outlives the name and the handle
            return np.memmap(file, dtype, "w+", shape=shape)

    def give_back(self, array: np.ndarray) -> None:
        """An array is about to be forgotten."""
        if not isinstance(array, np.memmap):
            self.left_bytes += array.nbytes


class Tally(Protocol):
    """A sum over batches.

    Attributes:
        batch_axes: the tensors it needs -> which of their axes counts the samples, where one does.
        by_position: any rows of its one tensor can be left out by themselves.
        rows: vectors that were summed so far.
    """

    @property
    def rows(self) -> int: ...

    @property
    def batch_axes(self) -> Mapping[str, int]: ...
    @property
    def by_position(self) -> bool: ...

    def add(self, arrays: Arrays, times: int) -> None: ...
    def total(self) -> np.ndarray: ...


class Source(NamedTuple):
    """What a use of a weight draws on: equal keys share one tally, whose sum counts `factor` times."""

    key: Hashable
    factor: float = 1.0


def source_of(use: WeightMatrix) -> Source:
    """The tensor and the manner in which a use reads it."""
    node = use.node
    names = tuple(value.name if value is not None else "" for value in node.inputs)
    if node.op_type in RECURRENT:
        lengths = (names[4] if len(names) > 4 else "", attribute_int(node, "layout", 0))
        return Source(("states", node.outputs[0].name)) if use.slot == 2 else Source(("inputs", names[0], *lengths))
    if use.is_table:
        return Source(("look-ups", names[1], use.shape[0]))
    if node.op_type in CONVOLUTIONS:
        attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
        return Source((node.op_type, names[0], use.shape_GOK[0], use.k_shape, tuple(attributes)))
    alpha = attribute_float(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
    return Source(("rows", names[1 - use.slot], _row_axis(use)), alpha**2)


def tally_of(use: WeightMatrix, room: Room) -> Tally:
    """An empty sum for a use."""
    node = use.node
    x_name = _name(node.inputs[0 if node.op_type in RECURRENT else 1 - use.slot])
    if node.op_type in RECURRENT:
        return States(node, use, room) if use.slot == 2 else Rows(x_name, -1, use, room, _lengths(node), _time(node))
    if use.is_table:
        return LookUps(x_name, use.shape[0])
    if node.op_type in CONVOLUTIONS:
        return Convolution(x_name, use, room)
    return Rows(x_name, _row_axis(use), use, room, batch_axis=_batch_axis(use))


class Pair:
    """Of an input and of how it differs from the float graph's, stacked: see `paired_moments`.

    Args:
        skip: the tensor that is added to the layer's output, see `skips`; "" for none.

    Attributes:
        beside_GOK: how the change of that goes with the input; None without.
    """

    def __init__(self, use: WeightMatrix, room: Room, skip: str = "") -> None:
        self.inner = tally_of(doubled(use), room)
        ((self.name, axis),) = self.inner.batch_axes.items()
        names = (self.name, skip) if skip else (self.name,)
        self.batch_axes = {each: axis for name in names for each in (name, name + IN_FLOAT)}
        self.by_position = self.inner.by_position
        self.use, self.skip = use, skip
        self.beside_GOK = room.zeros(use.shape_GOK, np.float32) if skip else None
        self.stacked = stacking(use, _row_axis(use))

    def add(self, arrays: Arrays, times: int) -> None:
        now = arrays[self.name]
        self.inner.add({self.name: self.stacked(arrays[self.name + IN_FLOAT], now)}, times)
        if self.beside_GOK is not None:
            change = arrays[self.skip + IN_FLOAT] - arrays[self.skip]
            axes = _axes(self.use, now.shape[2:]) if self.use.node.op_type in CONVOLUTIONS else ()
            self.beside_GOK += times * with_input(self.use, change, now, axes)

    def total(self) -> np.ndarray:
        return self.inner.total()

    @property
    def rows(self) -> int:
        return self.inner.rows


def _row_axis(use: WeightMatrix) -> int:
    """The axis of the input that the weight sums over."""
    if use.node.op_type == "Gemm" and attribute_int(use.node, "transA", 0):
        return 0
    return -2 if use.slot == 0 else -1


def _batch_axis(use: WeightMatrix) -> int:
    """The axis of a product's input that counts samples; in W @ x with a matrix x these are its columns."""
    shape = use.node.inputs[1 - use.slot].shape  # type: ignore[union-attr]  # a product has both
    columns = use.slot == 0 and shape is not None and len(shape) == 2
    return 1 if columns or _row_axis(use) == 0 else 0


class Rows:
    """Of a matrix: every vector along one axis of its input. Of a recurrent layer, those within a sample's length.

    Sums are float32: each adds a product over a whole batch, so that there are few.
    """

    def __init__(
        self,
        name: str,
        axis: int,
        use: WeightMatrix,
        room: Room,
        lengths: ir.Value | None = None,
        time_axis: int = 0,
        batch_axis: int = 0,
    ) -> None:
        self.name, self.axis, self.lengths, self.time_axis = name, axis, lengths, time_axis
        recurrent = use.node.op_type in RECURRENT
        self.batch_axes = _computed({name: 1 - time_axis if recurrent else batch_axis, _name(lengths): 0})
        self.by_position = axis == -1 and not recurrent
        self.h_KK = room.zeros((use.shape_GOK[2],) * 2, np.float32)
        self.rows = 0

    def add(self, arrays: Arrays, times: int) -> None:
        x = arrays[self.name]
        if self.lengths is not None:
            within_TB = _within(x.shape[self.time_axis], _array(self.lengths, arrays, x.shape[1 - self.time_axis]))
            within = within_TB if self.time_axis == 0 else within_TB.T
            x = x * within[..., None].astype(x.dtype)
        axis = -1 if x.ndim == 1 else self.axis
        rows_NK = np.moveaxis(x, axis, -1).reshape(-1, len(self.h_KK)).astype(np.float32, copy=False)
        self.rows += times * len(rows_NK)
        product_KK = rows_NK.T @ rows_NK
        self.h_KK += product_KK if times == 1 else times * product_KK

    def total(self) -> np.ndarray:
        return self.h_KK[None]


class Convolution:
    """Of a convolution, or a transposed one: every patch of its input, by whichever way is cheaper."""

    def __init__(self, name: str, use: WeightMatrix, room: Room) -> None:
        self.name, self.use, self.room = name, use, room
        self.batch_axes, self.by_position = {name: 0}, False
        self.axes: tuple[Axis, ...] = ()
        self.sums: Patches | Offsets | None = None
        self.rows = 0

    def add(self, arrays: Arrays, times: int) -> None:
        x = arrays[self.name].astype(np.float32, copy=False)
        groups, _, k = self.use.shape_GOK
        x_BGCS = x.reshape(len(x), groups, -1, *x.shape[2:])
        self.axes = _axes(self.use, x.shape[2:])
        self.rows += times * len(x) * int(np.prod([axis.outputs for axis in self.axes]))
        if self.sums is None and offsets_are_cheaper(x_BGCS.shape, self.axes):
            self.sums = Offsets(groups, x_BGCS.shape[2], self.room.zeros)
        self.sums = self.sums or Patches(self.room.zeros((groups, k, k), np.float32))
        for _ in range(times):  # a map that does not depend on the sample is rare
            self.sums.add(x_BGCS, self.axes)

    def total(self) -> np.ndarray:
        groups, _, k = self.use.shape_GOK
        if isinstance(self.sums, Patches):
            return self.sums.h_GKK
        h_GKK = self.room.zeros((groups, k, k), np.float32)
        if self.sums is None:
            return h_GKK
        self.sums.result(self.axes, h_GKK)
        for part in self.sums.sums.values():
            self.room.give_back(part)
        self.sums = Patches(h_GKK)
        return h_GKK


class States:
    """Of a recurrent weight: the states that its layer's steps begin with, for each direction.

    A GRU with linear_before_reset 0 multiplies the rows of its candidate with the state after the reset; they are
    judged by the state before it.
    """

    def __init__(self, node: ir.Node, use: WeightMatrix, room: Room) -> None:
        self.name, self.layout = _name(node.outputs[0]), attribute_int(node, "layout", 0)
        self.lengths, self.initial = _lengths(node), node.inputs[5] if len(node.inputs) > 5 else None
        direction = node.attributes.get("direction")
        self.reverse = direction is not None and direction.as_string() == "reverse"
        self.batch_axes = _computed(
            {self.name: 0 if self.layout else 2, _name(self.lengths): 0, _name(self.initial): 1 - self.layout}
        )
        self.by_position = False
        self.h_GKK = room.zeros((use.shape_GOK[0], *(use.shape_GOK[2],) * 2), np.float32)
        self.rows = 0

    def add(self, arrays: Arrays, times: int) -> None:
        y_TGBK = arrays[self.name]
        y_TGBK = y_TGBK.transpose(1, 2, 0, 3) if self.layout else y_TGBK
        steps, _, batch = y_TGBK.shape[:3]
        lengths_B = np.full(batch, steps) if self.lengths is None else _array(self.lengths, arrays, batch)
        for direction, h_KK in enumerate(self.h_GKK):
            backwards = self.reverse or direction == 1
            states_TBK = y_TGBK[1:, direction] if backwards else y_TGBK[:-1, direction]
            rows_NK = states_TBK[_within(steps, lengths_B)[1:]]  # of each step but the first, what the one before gave
            self.rows += times * len(rows_NK) if direction == 0 else 0
            h_KK += times * (rows_NK.T @ rows_NK)
            if self.initial is not None:
                first = _array(self.initial, arrays, batch, 1 - self.layout)
                first_BK = first[:, direction] if self.layout else first[direction]
                begun_NK = first_BK[lengths_B > 0]
                h_KK += times * (begun_NK.T @ begun_NK)

    def total(self) -> np.ndarray:
        return self.h_GKK


class LookUps:
    """Of a table: how often each row was looked up."""

    def __init__(self, name: str, rows: int) -> None:
        self.name = name
        self.batch_axes, self.by_position = {name: 0}, True
        self.counts_O, self.rows = np.zeros(rows), 0

    def add(self, arrays: Arrays, times: int) -> None:
        found = arrays[self.name].astype(np.int64).ravel() % len(self.counts_O)  # -1 is the last row
        self.counts_O += times * np.bincount(found, minlength=len(self.counts_O))

    def total(self) -> np.ndarray:
        return self.counts_O[None]


def _axes(use: WeightMatrix, sizes: Sequence[int]) -> tuple[Axis, ...]:
    """The axes of a map under a (transposed) convolution, its padding worked out."""
    node, kernel = use.node, use.k_shape[1:]
    ones = (1,) * len(kernel)
    strides, dilations = (_ints(node, name, ones) for name in ("strides", "dilations"))
    pads = _ints(node, "pads", (0,) * 2 * len(kernel))
    extra = _ints(node, "output_padding", (0,) * len(kernel))
    wanted = _ints(node, "output_shape", (0,) * len(kernel))[-len(kernel) :]
    attribute = node.attributes.get("auto_pad")
    auto = "NOTSET" if attribute is None else attribute.as_string()
    axes = []
    for axis, (size, taps) in enumerate(zip(sizes, kernel, strict=True)):
        stride, reach = strides[axis], (taps - 1) * dilations[axis] + 1
        before, after = (0, 0) if auto != "NOTSET" else (pads[axis], pads[axis + len(kernel)])
        if node.op_type == "Conv":
            if auto.startswith("SAME"):
                before, after = _shared(max(0, (-(-size // stride) - 1) * stride + reach - size), auto == "SAME_UPPER")
            outputs = (size + before + after - reach) // stride + 1
            axes.append(convolved(size, taps, stride, dilations[axis], before, outputs))
            continue
        whole = stride * (size - 1) + extra[axis] + reach
        outputs = wanted[axis] or (size * stride if auto.startswith("SAME") else whole - before - after)
        if wanted[axis] or auto.startswith("SAME"):
            before, _ = _shared(max(0, whole - outputs), auto == "SAME_UPPER")
        axes.append(transposed(size, taps, stride, dilations[axis], before, outputs))
    return tuple(axes)


def _shared(padding: int, upper: bool) -> tuple[int, int]:
    """Halves; the odd one behind, or in front."""
    return (padding // 2, padding - padding // 2) if upper else (padding - padding // 2, padding // 2)


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def _within(steps: int, lengths_B: np.ndarray) -> np.ndarray:
    """Which steps belong to a sample, bool (T, B)."""
    return np.asarray(np.arange(steps)[:, None] < np.asarray(lengths_B).reshape(-1)[None])


def _lengths(node: ir.Node) -> ir.Value | None:
    return node.inputs[4] if len(node.inputs) > 4 else None


def _time(node: ir.Node) -> int:
    return 1 if attribute_int(node, "layout", 0) else 0


def _array(value: ir.Value, arrays: Arrays, batch: int, axis: int = 0) -> np.ndarray:
    """A tensor; of a constant as many copies as make the batch."""
    known = constant(value)
    if known is None:
        return arrays[_name(value)]
    return np.concatenate([known] * max(1, batch // known.shape[axis]), axis)


def _name(value: ir.Value | None) -> str:
    return "" if value is None or constant(value) is not None else value.name or ""


def _computed(axes: Mapping[str, int]) -> dict[str, int]:
    """Without what is absent or constant."""
    return {name: axis for name, axis in axes.items() if name}
